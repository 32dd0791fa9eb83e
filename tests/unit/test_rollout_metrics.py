"""What is reported of a step's groups: their metrics, rewards that fail too often, and a row for every completion."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from tests.builders import make_group, make_prompt, make_rollout

from covey.metrics import Metric, metric_values
from covey.rollout import SampledGroups, refuse_failing_reward, rollout_metrics, rollout_rows
from covey.types import CoveyError, Group


def group_of(*rollouts: tuple[float | None, float | None], lengths: Sequence[int] = (2, 2), prompt_id: str = "p") -> Group:
    """Return a group of (reward, gold) pairs."""
    return Group(
        prompt=make_prompt(prompt_id),
        rollouts=tuple(
            make_rollout(reward, gold=gold, length=length) for (reward, gold), length in zip(rollouts, lengths, strict=True)
        ),
    )


def step_with(*, used: Sequence[Group] = (), dropped: Sequence[Group] = ()) -> SampledGroups:
    draws = [0] * (len(used) + len(dropped))
    return SampledGroups(used=list(used), dropped=list(dropped), draws=draws, rollout_s=0.0, reward_s=0.0)


HAND_MADE = SampledGroups(
    used=[group_of((1.0, 1.0), (0.0, 0.0), lengths=(3, 5))],
    dropped=[
        group_of((1.0, 0.0), (1.0, 0.0)),
        group_of((0.0, 0.0), (0.0, 0.0)),
        group_of((0.5, 0.0), (0.5, 0.0)),
        group_of((None, None), (None, 1.0)),
    ],
    draws=[0, 0, 0, 1, 1],
    rollout_s=0.0,
    reward_s=0.0,
)


# --- metrics -----------------------------------------------------------------------------------------------------------


def values_of(sampled: SampledGroups) -> dict[str, float | None]:
    metrics: dict[str, Metric] = rollout_metrics(sampled, reward_low=0.0, reward_high=1.0)
    return metric_values(metrics)


def test_the_metrics_of_a_hand_made_step():
    assert values_of(HAND_MADE) == pytest.approx(
        {
            "reward/mean": 0.5,
            "reward/std": math.sqrt(6 * 0.5**2 / 7),
            "reward/error_frac": 0.2,
            "reward/none_frac": 0.2,
            "gold/mean": 2 / 9,
            "gold/error_frac": 0.0,
            "group/usable_frac": 0.2,
            "group/all_correct_frac": 0.2,
            "group/all_wrong_frac": 0.2,
            "group/num_sampled": 5,
            "group/num_used": 1,
            "completion/length_mean": 2.4,
            "completion/length_max": 5,
            "completion/truncated_frac": 0.0,
            "tokens/generated": 24,
        }
    )


def test_a_group_that_is_flat_between_the_ends_is_neither_all_correct_nor_all_wrong():
    sampled = step_with(dropped=[make_group([0.5, 0.5])])
    values = values_of(sampled)
    assert (values["group/all_correct_frac"], values["group/all_wrong_frac"], values["group/usable_frac"]) == (0.0, 0.0, 0.0)


def test_the_ends_of_the_range_are_those_of_the_reward():
    sampled = step_with(dropped=[make_group([5.0, 5.0]), make_group([-5.0, -5.0])])
    metrics = rollout_metrics(sampled, reward_low=-5.0, reward_high=5.0)
    assert (metrics["group/all_correct_frac"].value, metrics["group/all_wrong_frac"].value) == (0.5, 0.5)


def test_a_kept_flat_group_is_used_and_still_not_usable():
    sampled = step_with(used=[make_group([1.0, 1.0])])
    values = values_of(sampled)
    assert (values["group/num_used"], values["group/usable_frac"]) == (1.0, 0.0)


def test_truncated_completions_are_counted_as_a_share():
    group = Group(
        prompt=make_prompt(),
        rollouts=(make_rollout(0.0, is_truncated=True), make_rollout(1.0), make_rollout(1.0), make_rollout(1.0)),
    )
    sampled = step_with(used=[group])
    assert values_of(sampled)["completion/truncated_frac"] == 0.25


def test_parts_are_averaged_over_the_rollouts_that_have_them():
    group = Group(
        prompt=make_prompt(), rollouts=(make_rollout(0.0, form=0.5, style=1.0), make_rollout(1.0, form=0.0), make_rollout(1.0))
    )
    values = values_of(step_with(used=[group]))
    assert (values["reward/part/form"], values["reward/part/style"]) == (0.25, 1.0)


def test_without_any_score_mean_and_deviation_are_unknown_and_no_zero():
    sampled = step_with(dropped=[make_group([None, None])])
    values = values_of(sampled)
    assert (values["reward/mean"], values["reward/std"], values["gold/mean"]) == (None, None, None)
    assert values["reward/error_frac"] == 1.0


def test_a_run_without_verifier_has_no_gold_mean():
    sampled = step_with(used=[make_group([0.0, 1.0])])
    assert values_of(sampled)["gold/mean"] is None


# --- failing rewards ---------------------------------------------------------------------------------------------------


def failing(num_failed: int, of: int = 10) -> SampledGroups:
    rewards = [None] * num_failed + [0.0] * (of - num_failed)
    return step_with(used=[make_group(rewards)])


@pytest.mark.parametrize("num_failed", [0, 1, 2])
def test_failures_up_to_the_declared_share_pass(num_failed: int):
    refuse_failing_reward(failing(num_failed), max_error_frac=0.2)


def test_more_failures_than_declared_are_refused_with_the_first():
    with pytest.raises(
        CoveyError, match=r"could not score 3 of 10 completions, more than reward\.max_error_frac=0\.2.*\nit failed"
    ):
        refuse_failing_reward(failing(3), max_error_frac=0.2)


def test_a_single_failure_is_refused_where_none_is_allowed():
    with pytest.raises(CoveyError, match="1 of 10"):
        refuse_failing_reward(failing(1), max_error_frac=0.0)


def test_failures_in_dropped_groups_count():
    sampled = step_with(used=[make_group([0.0, 1.0])], dropped=[make_group([None, None])])
    with pytest.raises(CoveyError, match="2 of 4"):
        refuse_failing_reward(sampled, max_error_frac=0.1)


# --- rows --------------------------------------------------------------------------------------------------------------


def test_rows_say_of_every_completion_what_it_was_worth_and_whether_it_was_used():
    rows = rollout_rows(HAND_MADE)
    assert [(row["draw"], row["sample"], row["reward"], row["gold"], row["used"]) for row in rows] == [
        (0, 0, 1.0, 1.0, True),
        (0, 1, 0.0, 0.0, True),
        (0, 0, 1.0, 0.0, False),
        (0, 1, 1.0, 0.0, False),
        (0, 0, 0.0, 0.0, False),
        (0, 1, 0.0, 0.0, False),
        (1, 0, 0.5, 0.0, False),
        (1, 1, 0.5, 0.0, False),
        (1, 0, None, None, False),
        (1, 1, None, 1.0, False),
    ]
    assert [row["error"] for row in rows if row["error"]] == ["it failed", "it failed"]


def test_parts_are_written_as_json():
    group = Group(prompt=make_prompt(), rollouts=(make_rollout(0.5, form=0.5),))
    [row] = rollout_rows(step_with(used=[group]))
    assert json.loads(str(row["parts"])) == {"form": 0.5}
