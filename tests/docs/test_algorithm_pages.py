"""Every row of the algorithm table has a page that says what the row is, and what the pages say can be run and is true."""

from __future__ import annotations

import json
import math
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from covey.algos.aggregate import AGGREGATIONS
from covey.algos.filters import TOKEN_FILTERS
from covey.algos.kl import KL_TERMS
from covey.algos.mismatch import CORRECTIONS
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS, DEFAULT_ALGORITHM, OPTIONS, PAIR_ALGORITHMS
from covey.api import find_recipe
from covey.config import Recipe, load_recipe, make_recipe
from covey.pairs_recipe import explain_row, load_pairs_recipe
from covey.tensors import GroupStats

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "algorithms").glob("*.md"))
GUIDES = [DOCS / "guide" / f"{name}.md" for name in ("kl", "sampling-control", "several-rewards", "several-processes")]
HEADINGS = ["Overview", "Usage", "Logged metrics", "Implementation details", "Results"]
CHANCES = [0.1, 0.3, 0.5, 0.9]
GROUP_SIZE = 8

PAGES_OF_ROWS = {**ALGORITHMS, **PAIR_ALGORITHMS}

every_row = pytest.mark.parametrize("name", list(ALGORITHMS))
every_pair_row = pytest.mark.parametrize("name", list(PAIR_ALGORITHMS))
every_page = pytest.mark.parametrize("name", list(PAGES_OF_ROWS))


def page_of(name: str) -> str:
    return (DOCS / "algorithms" / f"{name}.md").read_text()


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all table rows, without the lines that only draw a table."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[str]:
    """Return the lines of a page's shell blocks that train."""
    return [line for block in blocks(path, "bash") for line in block.splitlines() if "covey train" in line]


def recipe_of(command: str) -> Recipe:
    """Return the recipe that a `covey train` line would run."""
    words = shlex.split(command, comments=True)
    arguments = words[words.index("covey") + 2 :]
    names = [word for word in arguments if "=" not in word]
    assert len(names) <= 1, f"no options are expected in {command!r}"
    return load_recipe(find_recipe(names[0] if names else None), [word for word in arguments if "=" in word])


def numbers(cells: list[str]) -> list[float]:
    return [float(cell) for cell in cells]


def golden() -> dict[str, Any]:
    return json.loads((ROOT / "tests" / "numerics" / "golden.json").read_text())


def test_there_is_a_page_for_each_row_and_none_besides() -> None:
    assert {path.stem for path in PAGES} == {*PAGES_OF_ROWS, "index"}


@every_page
def test_a_page_has_the_five_headings_in_order(name: str) -> None:
    assert re.findall(r"^## (.*)$", page_of(name), flags=re.MULTILINE) == HEADINGS


@every_page
def test_a_page_names_the_paper_of_its_row(name: str) -> None:
    assert PAGES_OF_ROWS[name].paper.removeprefix("arXiv ") in section(page_of(name), "Overview")


@every_row
def test_a_page_lists_every_option_of_its_row_with_its_default_and_no_other(name: str) -> None:
    spec = ALGORITHMS[name]
    cells = {row[0].strip("`"): row[1].strip("`") for row in rows_of(section(page_of(name), "Usage"))}
    told = {
        key.removeprefix("algorithm."): tomllib.loads(f"value = {cells[key]}")["value"]
        for key in cells
        if key.removeprefix("algorithm.") in {*OPTIONS, "aggregation", "kl"}
    }
    assert told == spec.options | {"aggregation": spec.aggregation, "kl": spec.kl}


@every_row
def test_the_commands_of_a_page_train_its_row(name: str) -> None:
    lines = commands(DOCS / "algorithms" / f"{name}.md")
    assert lines
    assert {recipe_of(line).algorithm.name for line in lines} == {name}


@every_pair_row
def test_a_page_lists_every_option_of_a_row_that_learns_from_pairs_with_its_default(name: str) -> None:
    cells = {row[0].strip("`"): row[1].strip("`") for row in rows_of(section(page_of(name), "Usage"))[1:]}
    told = {key: tomllib.loads(f"value = {cell}")["value"] for key, cell in cells.items() if cell != "needed"}
    assert told == {key: value for key, value in explain_row(name, None)["options"].items() if key != "pairs.path"}


@every_pair_row
def test_the_commands_of_a_page_train_a_row_that_learns_from_pairs(name: str) -> None:
    lines = commands(DOCS / "algorithms" / f"{name}.md")
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)[2:]
        [file] = [find_recipe(word) for word in words if "=" not in word] or [None]
        recipe = load_pairs_recipe(file, [word for word in words if "=" in word])
        assert (recipe.algorithm.name, recipe.pairs.path) == (name, "pairs.jsonl")


def test_the_table_of_rows_that_learn_from_pairs_has_all_of_them() -> None:
    rows = rows_of(section(page_of("index"), "Rows that learn from pairs"))[1:]
    told = [(re.sub(r"\[`(.*)`\]\(.*\)", r"\1", row[0]), row[1]) for row in rows]
    assert told == [(name, f"a {spec.trains}") for name, spec in PAIR_ALGORITHMS.items()]


@pytest.mark.parametrize("path", [DOCS / "algorithms" / "index.md", *GUIDES], ids=lambda path: path.stem)
def test_every_command_that_trains_is_a_valid_recipe(path: Path) -> None:
    assert commands(path)
    for line in commands(path):
        assert recipe_of(line)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_every_piece_of_a_recipe_is_valid(path: Path) -> None:
    for block in blocks(path, "toml"):
        assert make_recipe(tomllib.loads(block))


def test_the_navigation_lists_the_pages_in_the_order_of_the_table() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    [entries] = [entry["Algorithms"] for entry in navigation if "Algorithms" in entry]
    paths = [entry if isinstance(entry, str) else next(iter(entry.values())) for entry in entries]
    assert paths == ["algorithms/index.md", *(f"algorithms/{name}.md" for name in PAGES_OF_ROWS)]


def test_the_table_of_rows_has_their_aggregations_and_kl_terms() -> None:
    rows = rows_of(section(page_of("index"), "The rows"))
    told = {re.sub(r"\[`(.*)`\]\(.*\)", r"\1", row[0]): (row[4], row[5]) for row in rows if len(row) == 6 and row[0][0] == "["}
    assert told == {name: (f"`{spec.aggregation}`", f"`{spec.kl}`") for name, spec in ALGORITHMS.items()}


def test_every_aggregation_has_its_weight_in_the_table() -> None:
    told = [row[0].strip("`") for row in rows_of(section(page_of("index"), "The rows")) if len(row) == 2]
    assert told[1:] == list(AGGREGATIONS)


def stats_of(rewards: list[list[float]]) -> GroupStats:
    """Return groups of completions that could all be scored and have one token each, of a reward without parts."""
    values = torch.tensor(rewards, dtype=torch.float64)
    return GroupStats(
        rewards=values,
        scored=torch.ones_like(values, dtype=torch.bool),
        lengths=torch.ones_like(values, dtype=torch.long),
        parts=torch.zeros(*values.shape, 0, dtype=torch.float64),
    )


ONE_IN_EIGHT, TWO_IN_EIGHT = [1.0] + [0.0] * 7, [1.0, 1.0] + [0.0] * 6
TWO_GROUPS = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("grpo", [ONE_IN_EIGHT]),
        ("passk", [TWO_IN_EIGHT]),
        ("passk_max", [[0.9, 0.5, 0.1, 0.1]]),
        ("batch_std", TWO_GROUPS),
        ("reinforce_pp_baseline", TWO_GROUPS),
        ("bnpo", TWO_GROUPS),
    ],
)
def test_the_advantages_that_a_page_quotes_are_those_of_the_code(name: str, rewards: list[list[float]]) -> None:
    details = section(page_of(name), "Implementation details")
    advantages = Objective.of_row(ALGORITHMS[name]).advantages(stats_of(rewards))
    assert {f"{value:.4f}" for value in advantages[0].tolist() if value} <= set(re.findall(r"-?\d\.\d{4}", details))


def expected_update(name: str, p: float) -> float:
    """Return E[sum over a group of A d log pi / dz] / G of a policy that is right with probability p = sigmoid(z)."""
    total = 0.0
    for num_right in range(GROUP_SIZE + 1):
        rewards = [1.0] * num_right + [0.0] * (GROUP_SIZE - num_right)
        advantages = Objective.of_row(ALGORITHMS[name]).advantages(stats_of([rewards]))[0]
        probability = math.comb(GROUP_SIZE, num_right) * p**num_right * (1 - p) ** (GROUP_SIZE - num_right)
        scores = [reward - p for reward in rewards]  # d log pi / dz
        total += probability * sum(a * score for a, score in zip(advantages.tolist(), scores, strict=True)) / GROUP_SIZE
    return total


def test_the_expected_updates_are_those_of_the_code() -> None:
    first, truth, *rows = rows_of(section(page_of("index"), "What the rows climb"))
    assert first[1:] == [f"p = {p}" for p in CHANCES]
    assert numbers(truth[1:]) == pytest.approx([p * (1 - p) for p in CHANCES], abs=6e-5)
    assert len(rows) >= 8
    for name, *cells in rows:
        assert numbers(cells) == pytest.approx([expected_update(name.strip("`"), p) for p in CHANCES], abs=6e-5), name


def test_the_shares_of_flat_groups_are_those_of_the_formula() -> None:
    first, *rows = rows_of(section((DOCS / "guide" / "sampling-control.md").read_text(), "Refill"))
    sizes = [int(cell.removeprefix("G = ")) for cell in first[1:]]
    assert len(rows) == 4
    for chance, *cells in rows:
        p = float(chance)
        assert numbers(cells) == pytest.approx([p**size + (1 - p) ** size for size in sizes], abs=6e-4)


def test_the_guide_to_kl_has_a_line_for_every_term() -> None:
    table = section((DOCS / "guide" / "kl.md").read_text(), "Five terms").split("\n### ", 1)[0]
    assert sorted(row[0].strip("`") for row in rows_of(table)[1:]) == sorted(KL_TERMS)


def test_the_gradients_of_the_kl_terms_are_the_golden_ones() -> None:
    _, *rows = [row for row in rows_of(section((DOCS / "guide" / "kl.md").read_text(), "Five terms")) if len(row) == 4]
    keys = ["true_grad_reverse_KL", "true_grad_forward_KL(q||p)", "E[grad k1_loss]", "E[grad k2_loss]", "E[grad k3_loss]"]
    keys += ["E[grad (ratio*k3)] (DeepSeek-V3.2)", "E[k1_in_reward score-fn]"]
    assert [numbers(row[1:]) for row in rows] == [golden()["kl_grad"][key] for key in keys]


def test_what_token_terms_miss_is_golden() -> None:
    text = section((DOCS / "guide" / "kl.md").read_text(), "Five terms").split("\n### Token by token", 1)[1]
    found = [numbers(row[1:]) for row in rows_of(text) if row[1]]
    expected = golden()["kl_grad_two_step"]
    of_first = [expected["true_sequence_grad"][0], expected["token_k2_loss_grad"][0], expected["missing_future_term_at_s0"]]
    assert found == of_first


def test_every_correction_and_filter_stands_in_its_table_with_its_defaults() -> None:
    guide = (DOCS / "guide" / "sampling-control.md").read_text()
    told = {row[0].strip("`"): row[-2:] for row in rows_of(section(guide, "Engine against trainer"))[1:]}
    of_row = {name: ["-" if name.startswith("tis") else f"{row.low:g}", f"{row.high:g}"] for name, row in CORRECTIONS.items()}
    assert told == of_row
    shares = {row[0].strip("`"): float(row[-1]) for row in rows_of(section(guide, "Token filters"))[1:]}
    assert shares == {name: row.share for name, row in TOKEN_FILTERS.items() if name != "none"}


def test_the_default_algorithm_is_the_one_that_has_a_result() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "main_job.json").read_text())
    assert recipe_of(f"covey train {result['recipe']}").algorithm.name == DEFAULT_ALGORITHM
    with_results = [name for name in ALGORITHMS if "main_job.json" in section(page_of(name), "Results")]
    assert with_results == [DEFAULT_ALGORITHM]
