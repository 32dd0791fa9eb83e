"""Prompts are drawn with the stated weights, from the state alone; and the state survives JSON bit for bit."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
import scipy.stats
from tests.builders import make_prompt

from covey.curriculum import CURRICULA, EpochStream, PassRateCurriculum, PromptSource
from covey.metrics import metric_values
from covey.sampling import stream_key, uniform
from covey.tasks.base import training_prompts
from covey.types import CoveyError

TRAIN = [make_prompt(name) for name in "abcdefg"]
RATES = {"a": 0, "b": 1, "c": 4, "d": 8}
"""How many of eight completions of a prompt are right; the other prompts are not seen."""
PINNED = ["fgce", "ecgf", "ecfb", "gced"]
every_curriculum = pytest.mark.parametrize("make", list(CURRICULA.values()), ids=list(CURRICULA))


def ids(source: PromptSource, count: int) -> list[str]:
    return [prompt.prompt_id for prompt in source.draw(count)]


def experienced(num_right: Mapping[str, int] = RATES, *, seed: int = 0, groups: int = 20) -> PassRateCurriculum:
    """Return a curriculum that has seen each named prompt in groups of eight that all ended alike."""
    source = PassRateCurriculum(TRAIN, seed=seed)
    for name, right in num_right.items():
        for _ in range(groups):
            source.observe(name, right, 8)
    return source


def train_for(source: PromptSource, num_steps: int) -> list[list[str]]:
    """Draw three prompts a step, each solved as often as its letter says, and return what was drawn."""
    drawn: list[list[str]] = []
    for _ in range(num_steps):
        drawn.append(ids(source, 3))
        for name in drawn[-1]:
            source.observe(name, ord(name) - ord("a"), 7)
    return drawn


# --- every source -------------------------------------------------------------------------------------------------------


@every_curriculum
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(make: Callable[..., PromptSource], stop: int):
    uninterrupted = train_for(make(TRAIN, seed=3), 12)
    stopped, resumed = make(TRAIN, seed=3), make(TRAIN, seed=3)
    before = train_for(stopped, stop)
    resumed.restore(json.loads(json.dumps(stopped.state())))
    assert before + train_for(resumed, 12 - stop) == uninterrupted


@every_curriculum
def test_the_state_survives_json_bit_for_bit(make: Callable[..., PromptSource]):
    source, other = make(TRAIN, seed=3), make(TRAIN, seed=3)
    train_for(source, 17)
    saved = json.dumps(source.state())
    other.restore(json.loads(saved))
    assert other.state() == source.state() == json.loads(saved)
    assert json.dumps(other.state()) == saved


@every_curriculum
def test_seeds_give_different_draws(make: Callable[..., PromptSource]):
    assert len({tuple(ids(make(TRAIN, seed=seed), 7)) for seed in range(5)}) == 5


@every_curriculum
def test_a_state_is_not_changed_by_what_happens_later(make: Callable[..., PromptSource]):
    source = make(TRAIN, seed=3)
    train_for(source, 2)
    state = source.state()
    saved = json.dumps(state)
    train_for(source, 5)
    assert json.dumps(state) == saved


@pytest.mark.parametrize(("started", "resumed"), [("none", "pass_rate"), ("pass_rate", "none")])
def test_the_state_of_another_curriculum_is_refused(started: str, resumed: str):
    state = CURRICULA[started](TRAIN, seed=0).state()
    with pytest.raises(CoveyError, match=r"resume with the train\.curriculum that the run was started with"):
        CURRICULA[resumed](TRAIN, seed=0).restore(state)


# --- epochs -------------------------------------------------------------------------------------------------------------


def test_the_stream_visits_each_prompt_equally_often():
    source = EpochStream(TRAIN, seed=0)
    drawn = Counter(name for _ in range(7 * 4) for name in ids(source, 5))
    assert drawn == dict.fromkeys("abcdefg", 20)


def test_the_stream_is_that_of_the_training_prompts_however_it_is_cut():
    source = EpochStream(TRAIN, seed=9)
    drawn = [prompt for count in (1, 0, 6, 20, 3) for prompt in source.draw(count)]
    assert drawn == training_prompts(TRAIN, seed=9, start=0, count=30)


def test_the_stream_does_not_look_at_results():
    source, told = EpochStream(TRAIN, seed=0), EpochStream(TRAIN, seed=0)
    told.observe("a", 0, 8)
    assert told.state() == source.state() == {"position": 0}
    assert told.curriculum_metrics() == {}


# --- weights ------------------------------------------------------------------------------------------------------------


def test_rates_are_discounted_and_start_at_one_half():
    source = PassRateCurriculum(TRAIN, seed=0, memory=0.5)
    assert source.pass_rate("a") == 0.5
    source.observe("a", 3, 4)
    assert source.pass_rate("a") == (1 + 3) / (2 + 4)
    source.observe("a", 0, 2)
    assert source.pass_rate("a") == (1 + 1.5) / (2 + 2 + 2)
    assert source.state()["rates"] == {"a": [1.5, 4.0]}


def test_weights_are_four_times_the_variance_and_at_least_the_floor():
    source = PassRateCurriculum(TRAIN, seed=0, floor=0.2)
    source.observe("a", 6, 8)
    source.observe("b", 100, 100)
    source.observe("c", 0, 100)
    assert source.weight("a") == pytest.approx(4 * 0.7 * 0.3, abs=1e-12)
    assert [source.weight(name) for name in "bcd"] == [0.2, 0.2, 1.0]


def test_a_group_in_which_nothing_was_scored_changes_nothing():
    source = experienced()
    before = source.state()
    source.observe("a", 0, 0)
    source.observe("g", 0, 0)
    assert source.state() == before


def test_the_next_prompt_is_drawn_in_proportion_to_the_weights():
    source = experienced()
    num_draws = 10_000
    drawn = Counter(name for _ in range(num_draws) for name in ids(source, 1))
    weights = {name: source.weight(name) for name in "abcdefg"}
    expected = {name: num_draws * weight / sum(weights.values()) for name, weight in weights.items()}
    assert drawn["c"] > 5 * drawn["a"]
    assert scipy.stats.chisquare([drawn[name] for name in expected], list(expected.values())).pvalue > 0.01


def test_a_draw_without_replacement_has_the_exact_probabilities_of_its_ordered_pairs():
    source = experienced()
    num_draws = 10_000
    drawn = Counter(tuple(ids(source, 2)) for _ in range(num_draws))
    weights = {name: source.weight(name) for name in "abcdefg"}
    total = sum(weights.values())
    pairs = list(itertools.permutations("abcdefg", 2))
    expected = [num_draws * weights[first] / total * weights[second] / (total - weights[first]) for first, second in pairs]
    assert sum(expected) == pytest.approx(num_draws)
    assert scipy.stats.chisquare([drawn[pair] for pair in pairs], expected).pvalue > 0.01


def answered(source: PassRateCurriculum, count: int) -> list[str]:
    """Draw, and observe groups in which nothing could be scored: they leave the rates alone."""
    drawn = ids(source, count)
    for name in drawn:
        source.observe(name, 0, 0)
    return drawn


def test_draws_are_those_of_a_slow_transcription_with_keys():
    source = experienced(seed=4)
    for draw in range(50):
        keys = {
            name: (1 - uniform(stream_key(4, "curriculum", draw, name), 0)) ** (1 / source.weight(name)) for name in "abcdefg"
        }
        assert answered(source, 4) == sorted(keys, key=lambda name: -keys[name])[:4]


def test_a_second_draw_of_a_step_brings_prompts_that_the_first_has_not_drawn():
    source = experienced()
    for _ in range(20):
        first, second = ids(source, 4), ids(source, 3)
        assert sorted(first + second) == list("abcdefg")
        for name in first + second:
            source.observe(name, 0, 0)


def test_draws_never_change():
    """Pinned: a resumed run goes on with the draws of the code that it was started with."""
    source = experienced()
    assert ["".join(answered(source, 4)) for _ in range(4)] == PINNED


def test_prompts_that_are_never_solved_do_not_starve():
    hopeless = dict.fromkeys("abcdef", 0) | {"g": 4}
    source = experienced(hopeless, groups=1000)
    drawn = Counter(name for _ in range(300) for name in ids(source, 2))
    assert min(drawn[name] for name in "abcdef") > 20


def test_a_weight_too_low_for_keys_still_orders_the_prompts_at_random():
    source = PassRateCurriculum(TRAIN, seed=0, floor=1e-6)
    for name in "abcdefg":
        source.observe(name, 0, 10**9)  # u ** (1 / weight) would be 0 for all of them.
    assert len({tuple(ids(source, 7)) for _ in range(20)}) == 20


# --- draws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_no_prompt_comes_twice_in_a_draw(count: int):
    assert len(set(ids(experienced(), count))) == count


def test_more_prompts_than_there_are_come_round_again():
    drawn = ids(experienced(), 17)
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == list("abcdefg")
    assert drawn[:7] != drawn[7:14]
    assert len(set(drawn[14:])) == 3


def test_a_longer_draw_begins_with_the_shorter_one():
    assert ids(experienced(), 5) == ids(experienced(), 17)[:5]


def test_the_order_of_saved_rates_does_not_matter():
    state = experienced().state()
    source, other = PassRateCurriculum(TRAIN, seed=0), PassRateCurriculum(TRAIN, seed=0)
    source.restore(state)
    other.restore({"draws": state["draws"], "rates": dict(reversed(state["rates"].items()))})
    assert [ids(source, 5) for _ in range(10)] == [ids(other, 5) for _ in range(10)]
    assert json.dumps(other.state()) == json.dumps(source.state())
    assert other.curriculum_metrics() == source.curriculum_metrics()


def test_the_order_in_which_prompts_are_observed_does_not_matter():
    forwards, backwards = experienced(), experienced(dict(reversed(RATES.items())))
    assert json.dumps(forwards.state()) == json.dumps(backwards.state())
    assert ids(forwards, 7) == ids(backwards, 7)


def test_the_order_of_the_training_prompts_does_not_matter():
    reordered = PassRateCurriculum(TRAIN[::-1], seed=0)
    reordered.restore(experienced().state())
    assert ids(reordered, 7) == ids(experienced(), 7)


def test_rates_of_prompts_that_the_task_does_not_have_are_refused():
    with pytest.raises(CoveyError, match="holds prompt 'x', which the task does not train on"):
        PassRateCurriculum(TRAIN, seed=0).restore({"draws": 1, "rates": {"a": [1.0, 2.0], "x": [1.0, 2.0]}})


# --- metrics ------------------------------------------------------------------------------------------------------------


def test_metrics_are_the_mean_rate_of_the_prompts_seen_and_their_share():
    source = PassRateCurriculum(TRAIN, seed=0)
    source.observe("a", 0, 6)
    source.observe("b", 5, 6)
    values = metric_values(source.curriculum_metrics())
    assert values == {"curriculum/rate_mean": pytest.approx((1 / 8 + 6 / 8) / 2), "curriculum/seen_frac": 2 / 7}


def test_before_anything_was_seen_there_is_no_mean_rate():
    values = metric_values(PassRateCurriculum(TRAIN, seed=0).curriculum_metrics())
    assert values == {"curriculum/rate_mean": None, "curriculum/seen_frac": 0.0}
