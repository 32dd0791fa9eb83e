"""The algorithm's section: each row's own numbers, and what may not be combined."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tests.rows import SELECTING_ROWS

from covey.algorithm_section import AlgorithmSection
from covey.algos.aggregate import AGGREGATIONS
from covey.algos.filters import TOKEN_FILTERS
from covey.algos.kl import KL_TERMS
from covey.algos.mismatch import CORRECTIONS
from covey.algos.registry import ALGORITHMS, OPTIONS
from covey.config import ConfigError, load_recipe, make_recipe

every_row = pytest.mark.parametrize("name", ALGORITHMS)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, list(overrides))
    return str(caught.value)


@every_row
def test_what_a_recipe_leaves_out_is_what_the_row_says(name: str):
    section, spec = load_recipe(None, [f"algorithm.name={name}"]).algorithm, ALGORITHMS[name]
    assert {option: getattr(section, option) for option in spec.options} == spec.options
    assert (section.aggregation, section.kl) == (spec.aggregation, spec.kl)


@every_row
def test_a_resolved_recipe_holds_the_options_of_its_row_and_no_others(name: str):
    written = tomllib.loads(load_recipe(None, [f"algorithm.name={name}"]).to_toml())["algorithm"]
    assert {option for option in OPTIONS if option in written} == set(ALGORITHMS[name].options)


@every_row
def test_a_resolved_recipe_reads_back_equal(name: str):
    more = [] if name in SELECTING_ROWS else ["algorithm.correction=mask_token", "algorithm.beta=0.1"]
    recipe = load_recipe(None, [f"algorithm.name={name}", *more])
    assert make_recipe(tomllib.loads(recipe.to_toml())) == recipe


def test_every_option_of_a_row_is_a_key_of_the_section():
    assert set(OPTIONS) <= set(AlgorithmSection.model_fields)


@every_row
def test_a_resolved_recipe_with_another_row_gets_that_rows_numbers(name: str, tmp_path: Path):
    saved = tmp_path / "saved.toml"
    saved.write_text(load_recipe(None, ["algorithm.name=gspo"]).to_toml())
    assert load_recipe(saved, [f"algorithm.name={name}"]).algorithm == load_recipe(None, [f"algorithm.name={name}"]).algorithm


def test_a_number_that_a_recipe_changed_survives_another_row(tmp_path: Path):
    saved = tmp_path / "saved.toml"
    saved.write_text(load_recipe(None, ["algorithm.epsilon_low=0.1"]).to_toml())
    assert load_recipe(saved, ["algorithm.name=dapo"]).algorithm.epsilon_low == 0.1


@pytest.mark.parametrize(("correction", "row"), CORRECTIONS.items())
def test_a_correction_brings_its_bounds(correction: str, row: object):
    section = load_recipe(None, [f"algorithm.correction={correction}"]).algorithm
    assert (section.correction_low, section.correction_high) == (CORRECTIONS[correction].low, CORRECTIONS[correction].high)
    assert section.correction_high is not None


def test_a_token_filter_brings_its_share():
    assert load_recipe(None, ["algorithm.token_filter=top_entropy"]).algorithm.filter_share == 0.2


@pytest.mark.parametrize(
    ("row", "option"),
    [("grpo", "tau_positive=1.0"), ("rloo", "ddof=0"), ("cispo", "delta=4.0"), ("reinforce", "epsilon_low=0.1")],
)
def test_an_option_of_another_row_is_refused_with_the_rows_own(row: str, option: str):
    message = refusal(f"algorithm.name={row}", f"algorithm.{option}")
    assert message.startswith(f"algorithm.{option}: the row {row!r} has no such option; it has ")


@pytest.mark.parametrize("aggregation", ["token-mean", "group-mean-token-mean"])
@pytest.mark.parametrize("row", ["gspo", "gmpo"])
def test_a_loss_of_whole_completions_refuses_means_over_tokens(row: str, aggregation: str):
    message = refusal(f"algorithm.name={row}", f"algorithm.aggregation={aggregation}")
    assert "would weigh it by length" in message


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["algorithm.kl_target=0.1"], "algorithm.kl_target=0.1: "),
        (["algorithm.name=gspo", "algorithm.token_filter=top_entropy"], "algorithm.token_filter='top_entropy': the loss of"),
        (["algorithm.kl_budget=5.0", "algorithm.reference_every=9"], "algorithm.kl_budget=5.0 with reference_every=9: "),
        (["algorithm.kl_horizon=9"], "algorithm.kl_horizon=9: it belongs to kl_target"),
        (["algorithm.reference_mix=0.5"], "algorithm.reference_mix=0.5: it belongs to reference_every"),
        (["algorithm.kl_cov_coefficient=2.0"], "algorithm.kl_cov_coefficient=2.0: it belongs to token_filter='kl_cov'"),
        (["algorithm.correction=tis_token", "algorithm.correction_low=0.9"], "algorithm.correction_low=0.9: 'tis_token' has"),
        (["algorithm.beta=0.1", "algorithm.reference_every=1"], "algorithm.reference_every=1 with reference_mix=1"),
        (["algorithm.name=remax", "train.num_iterations=2"], "train.num_iterations=2, train.num_minibatches=1 with"),
        (["algorithm.name=gdpo", "reward.combine=product", "reward.parts={a = 1.0, b = 1.0}"], "reward.combine='product' with"),
        (["algorithm.name=maxrl", "reward.parts={a = 1.0, b = 1.0}"], "reward.parts with algorithm.name='maxrl': "),
        (["train.overlong_penalty=0.5"], "train.overlong_penalty=0.5 belongs to train.overlong_buffer"),
        (["reward.tie_break=0.5"], "reward.tie_break=0.5 belongs to reward.combine='lexicographic'"),
        (["algorithm.reference_every=5"], "algorithm.reference_every=5: "),
        (["algorithm.correction_high=3.0"], "algorithm.correction='none': "),
        (["algorithm.correction=mask_token", "algorithm.correction_low=7.0"], "algorithm.correction_low=7.0 must be below"),
        (["algorithm.filter_share=0.5"], "algorithm.filter_share=0.5: "),
        (["algorithm.dual_clip=0.5"], "algorithm.dual_clip=0.5: "),
        (["algorithm.delta=1.1"], "algorithm.delta=1.1 must be above 1 + epsilon_high=1.2"),
        (["algorithm.kl=k4_loss"], "algorithm.kl='k4_loss': no such KL term; choose one of "),
        (["algorithm.correction=tis"], "algorithm.correction='tis': no such correction; choose one of none, "),
        (["algorithm.token_filter=all"], "algorithm.token_filter='all': no such token filter; choose one of none, "),
        (["algorithm.name=passk", "algorithm.k=8"], "algorithm.k=8 with train.group_size=8: "),
        (["algorithm.token_filter=kl_cov"], "algorithm.token_filter='kl_cov' with one update a step: "),
        (["train.overlong_buffer=24"], "train.overlong_buffer=24 must be smaller than sampling.max_new_tokens=24"),
        (["algorithm.name=maxrl", "train.overlong_buffer=4"], "train.overlong_buffer=4 with algorithm.name='maxrl': "),
        (["train.num_minibatches=9"], "train.num_minibatches=9 with train.prompts_per_step=8: "),
        (["train.curriculum=hard"], "train.curriculum='hard': no such curriculum; choose one of "),
        (["reward.combine=product"], "reward.combine='product' needs at least two parts"),
        (["reward.name=last_number", "reward.parts={last_number = 1.0}"], "reward.name='last_number' and parts="),
        (['sampling.stop=[""]'], "sampling.stop=['']: an empty stop string"),
    ],
)
def test_options_that_exclude_each_other_are_refused_when_the_recipe_is_read(overrides: list[str], start: str):
    assert refusal(*overrides).startswith(start)


@pytest.mark.parametrize("row", ["maxrl", "passk", "bnpo"])
def test_rows_that_count_successes_refuse_what_blurs_them(row: str):
    assert refusal(f"algorithm.name={row}", "train.overlong_buffer=4").startswith("train.overlong_buffer=4 with ")
    parts = "reward.parts={last_number = 1.0, asserted_number = 1.0}"
    assert refusal(f"algorithm.name={row}", parts).startswith("reward.parts with ")
    assert load_recipe(None, [f"algorithm.name={row}", parts, "reward.combine=product"]).reward.combine == "product"


@pytest.mark.parametrize("row", ["reinforce", "reinforce_pp", "remax"])
def test_rows_whose_baseline_is_not_the_group_need_one_completion_only(row: str):
    assert load_recipe(None, [f"algorithm.name={row}", "train.group_size=1"]).train.group_size == 1


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_can_be_chosen(aggregation: str):
    assert load_recipe(None, [f"algorithm.aggregation={aggregation}"]).algorithm.aggregation == aggregation


@pytest.mark.parametrize("term", KL_TERMS)
def test_every_kl_term_can_be_chosen(term: str):
    assert load_recipe(None, ["algorithm.beta=0.1", f"algorithm.kl={term}"]).algorithm.has_reference


@pytest.mark.parametrize("token_filter", TOKEN_FILTERS)
def test_every_token_filter_can_be_chosen(token_filter: str):
    recipe = load_recipe(None, [f"algorithm.token_filter={token_filter}", "train.num_iterations=2"])
    assert recipe.algorithm.token_filter == token_filter


@pytest.mark.parametrize("option", ["beta=0.1", "track_kl=true", "kl_budget=2.0"])
def test_a_reference_is_held_when_something_asks_for_it(option: str):
    assert load_recipe(None, [f"algorithm.{option}"]).algorithm.has_reference
    assert not load_recipe(None).algorithm.has_reference
