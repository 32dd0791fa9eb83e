"""`covey algorithms` and `covey convert-config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.commands import covey

from covey.algos.registry import ALGORITHMS, PAIR_ALGORITHMS
from covey.config import load_recipe

TRL = """
model_name_or_path: some/model
learning_rate: 1.0e-6
num_generations: 8
per_device_train_batch_size: 16
gradient_accumulation_steps: 4
max_completion_length: 128
beta: 0.04
use_liger_kernel: true
"""


def test_every_row_is_listed_with_its_paper(tmp_path: Path) -> None:
    finished = covey("algorithms", directory=tmp_path)
    assert finished.code == 0, finished.err
    assert [line.split()[0] for line in finished.out.splitlines()] == [*ALGORITHMS, *PAIR_ALGORITHMS]
    assert all(f"({spec.paper})" in finished.out for spec in [*ALGORITHMS.values(), *PAIR_ALGORITHMS.values()])


def test_the_list_is_json_on_request(tmp_path: Path) -> None:
    finished = covey("algorithms", "--json", directory=tmp_path)
    assert json.loads(finished.out)["gspo"] == {"title": "GSPO", "paper": "arXiv 2507.18071"}


def test_a_formula_has_the_recipes_numbers_in_it(tmp_path: Path) -> None:
    overrides = ["algorithm.epsilon_high=0.31", "algorithm.beta=0.07", "sampling.max_new_tokens=77"]
    finished = covey("algorithms", "dr_grpo", *overrides, directory=tmp_path)
    assert finished.code == 0, finished.err
    assert "l_t = -min(w_t A, clip(w_t, 1 - 0.2, 1 + 0.31) A)" in finished.out
    assert "L = 1/(N 77) sum_i sum_t l_t" in finished.out
    assert "KL: 0.07 times k3_t" in finished.out


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_can_be_printed_and_leaves_no_option_unfilled(tmp_path: Path, name: str) -> None:
    finished = covey("algorithms", name, "--json", directory=tmp_path)
    assert finished.code == 0, finished.err
    printed = json.loads(finished.out)
    assert "{" not in "".join(printed["formula"])
    assert set(ALGORITHMS[name].options) <= set(printed["options"])


def test_a_recipe_that_comes_along_can_be_named(tmp_path: Path) -> None:
    finished = covey("algorithms", "dapo", "arithmetic", directory=tmp_path)
    assert finished.code == 0, finished.err
    assert finished.out.startswith("DAPO (arXiv 2503.14476)")


def test_an_unknown_row_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    finished = covey("algorithms", "grop", directory=tmp_path)
    assert finished.code == 2
    assert f"choose one of {', '.join(ALGORITHMS)}" in finished.err.replace("\n", " ")


def test_a_converted_configuration_is_a_recipe_that_names_what_was_lost(tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text(TRL)
    finished = covey("convert-config", "grpo.yaml", "converted.toml", directory=tmp_path)
    assert finished.code == 0, finished.err
    recipe = load_recipe(tmp_path / "converted.toml")
    assert (recipe.train.learning_rate, recipe.algorithm.beta, recipe.sampling.max_new_tokens) == (1e-6, 0.04, 128)
    assert "use_liger_kernel" in (tmp_path / "converted.toml").read_text()


def test_without_an_output_the_recipe_is_printed(tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text(TRL)
    finished = covey("convert-config", "grpo.yaml", directory=tmp_path)
    (tmp_path / "printed.toml").write_text(finished.out)
    assert load_recipe(tmp_path / "printed.toml").algorithm.beta == 0.04


def test_converting_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text(TRL)
    (tmp_path / "mine.toml").write_text("precious")
    finished = covey("convert-config", "grpo.yaml", "mine.toml", directory=tmp_path)
    assert finished.code == 2
    assert "mine.toml exists already" in finished.err
    assert (tmp_path / "mine.toml").read_text() == "precious"
