"""Controls of a run, seen from outside: what ends it, what is left out, what is penalised, what is refreshed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.digits import digit_share, leave_out_slow_parts, newest, num_timed_steps, resume_digits, train_digits

from covey.algos.registry import ALGORITHMS
from covey.api import Run
from covey.monitor.run_directory import read_jsonl, read_rows
from covey.types import CoveyError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(scope="module", autouse=True)
def _no_slow_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [row for file in sorted((run.path / "rollouts").glob("*.parquet")) for row in read_rows(file)]


def test_a_spent_kl_budget_ends_the_run_with_a_last_evaluation_and_a_reason(directory: Path):
    run = train_digits(directory, "budget", kl_budget=0.01, num_steps=30, learning_rate=3e-2)
    last = len(run.metrics)
    assert 1 < last < 30
    assert run.metrics[-1]["kl/sequence"] > 0.01 >= max(row["kl/sequence"] or 0 for row in run.metrics[:-1])
    assert [event["step"] for event in read_jsonl(run.path / "events.jsonl") if event["kind"] == "kl_budget"] == [last]
    assert run.evaluation[-1]["step"] == last
    assert newest(run.path).name == f"step-{last:06d}"


def test_a_run_that_its_budget_ended_has_nothing_left_to_do(directory: Path):
    run = train_digits(directory, "over", kl_budget=0.01, num_steps=30, learning_rate=3e-2)
    metrics = run.metrics
    assert resume_digits(directory, "over").metrics == metrics


def test_kl_is_tracked_on_request_although_it_does_not_act(directory: Path):
    plain = train_digits(directory, "plain")
    tracked = train_digits(directory, "tracked", track_kl=True)
    assert [row["grad/norm"] for row in tracked.metrics] == pytest.approx([row["grad/norm"] for row in plain.metrics], rel=1e-4)
    assert "kl/ref" not in plain.metrics[-1]
    assert tracked.metrics[0]["kl/sequence"] == pytest.approx(0, abs=1e-5)
    assert tracked.metrics[-1]["kl/token_p99"] >= tracked.metrics[-1]["kl/token_median"] >= 0
    assert tracked.metrics[-1]["kl/token_max"] > 0


def test_each_completion_is_saved_with_its_distance_and_its_farthest_token(directory: Path):
    run = train_digits(directory, "distances", track_kl=True, learning_rate=3e-2)
    rows = [row for row in read_rows(run.path / "rollouts" / "step-000006.parquet") if row["used"]]
    assert rows
    assert {row["kl_max_token"] in row["completion"] + "<|im_end|>" for row in rows} == {True}
    assert max(row["kl_max"] for row in rows) == pytest.approx(run.metrics[-1]["kl/token_max"])
    assert sum(row["kl"] for row in rows) / len(rows) == pytest.approx(run.metrics[-1]["kl/sequence"])


def test_a_reference_is_refreshed_although_a_step_makes_no_update(directory: Path):
    path = directory / "flat"

    def flat(completion: str) -> float:
        return 0.5 if num_timed_steps(path) == 3 else digit_share(completion)

    options: dict[str, Any] = {"track_kl": True, "reference_every": 3, "learning_rate": 3e-2, "num_steps": 5}
    run = train_digits(directory, "flat", reward=flat, **options)
    distances = [row.get("kl/sequence") for row in run.metrics]
    assert run.metrics[2]["optimizer/num_updates"] == run.metrics[1]["optimizer/num_updates"]
    assert abs(distances[3] or 0.0) < 1e-4 < abs(distances[1] or 0.0)


def test_a_reference_that_is_refreshed_at_every_step_stays_at_distance_zero(directory: Path):
    run = train_digits(directory, "refreshed", track_kl=True, reference_every=1, learning_rate=3e-2)
    assert max(abs(row["kl/sequence"]) for row in run.metrics) < 1e-4


def test_masked_truncated_completions_are_sampled_and_logged_but_not_trained_on(directory: Path):
    kept = train_digits(directory, "kept", num_steps=1)
    masked = train_digits(directory, "masked", num_steps=1, truncated="mask")
    first_kept, first_masked = kept.metrics[0], masked.metrics[0]
    assert first_kept["completion/truncated_frac"] > 0
    for key in ("completion/truncated_frac", "completion/length_mean", "reward/mean", "tokens/generated"):
        assert first_masked[key] == first_kept[key]
    whole = [row for row in rows_of(masked) if row["finish_reason"] == "stop"]
    assert (first_masked.get("tokens/trained") or 0) <= sum(row["num_tokens"] for row in whole)


def test_a_step_whose_completions_are_all_truncated_and_masked_makes_no_update(directory: Path):
    """With one token a completion is cut off or empty; the empty ones have equal rewards."""

    def is_odd(completion: str) -> float:
        return float(sum(completion.encode()) % 2)

    run = train_digits(directory, "all truncated", reward=is_odd, num_steps=2, max_new_tokens=1, truncated="mask")
    trained = train_digits(directory, "none masked", reward=is_odd, num_steps=2, max_new_tokens=1)
    assert min(row["completion/truncated_frac"] for row in run.metrics) > 0.5
    assert run.metrics[-1]["optimizer/num_updates"] == 0 < trained.metrics[-1]["optimizer/num_updates"]


def test_length_is_penalised_in_the_reward_that_is_logged_and_optimised(directory: Path):
    run = train_digits(directory, "overlong", num_steps=1, overlong_buffer=4, overlong_penalty=0.5)
    row = run.metrics[0]
    lengths = [one["num_tokens"] for one in rows_of(run)]
    penalty = sum(-min(1.0, max(0, length - 4) / 4) for length in lengths) / len(lengths)
    assert penalty < 0
    assert row["reward/part/overlong"] == pytest.approx(penalty)
    assert row["reward/mean"] == pytest.approx(row["reward/part/digit_share"] + 0.5 * penalty)


def test_parts_of_a_list_of_rewards_are_logged_with_their_share_of_the_variance(directory: Path):
    def constant(completion: str) -> float:
        return 0.5

    run = train_digits(directory, "list", num_steps=1, reward=[digit_share, constant], reward_weights=[2.0, 1.0])
    row = run.metrics[0]
    assert row["reward/mean"] == pytest.approx(2 * row["reward/part/digit_share"] + 0.5)
    assert (row["reward/variance_frac/digit_share"], row["reward/variance_frac/constant"]) == (1.0, 0.0)


def test_the_greedy_baseline_is_sampled_scored_and_counted(directory: Path):
    run = train_digits(directory, "remax", num_steps=1, algorithm__name="remax")
    row = run.metrics[0]
    assert row["tokens/generated"] > sum(one["num_tokens"] for one in rows_of(run))
    assert row["reward/greedy_mean"] is not None


def test_a_stop_string_ends_completions(directory: Path):
    run = train_digits(directory, "stopped", num_steps=1, stop=["e", "a", "1"], max_new_tokens=12)
    ended = [row for row in rows_of(run) if any(text in row["completion"] for text in "ea1")]
    assert ended
    assert {row["finish_reason"] for row in ended} == {"stop"}
    assert {row["completion"][-1] in "ea1" for row in ended} == {True}


def test_a_reward_that_asks_for_a_column_the_data_lacks_is_refused_before_sampling(directory: Path):
    def needs(completion: str, difficulty: str) -> float:
        return 0.0

    with pytest.raises(CoveyError, match="difficulty"):
        train_digits(directory, "columns", reward=needs)
    assert not (directory / "columns").exists()


def test_several_updates_a_step_are_counted_and_move_the_ratio(directory: Path):
    run = train_digits(directory, "several", num_steps=2, num_iterations=2, num_minibatches=2)
    updates = [row["optimizer/num_updates"] for row in run.metrics]
    assert updates[0] in (2, 4)  # One group with a signal can only make one minibatch a pass.
    assert run.metrics[0]["ratio/max"] > 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_trains(directory: Path, name: str):
    options: dict[str, Any] = {"k": 2} if name == "passk" else {}

    def is_odd(completion: str) -> float:
        return float(sum(completion.encode()) % 2)

    beta = 0.0 if ALGORITHMS[name].pair_loss else 0.05
    options |= {"reward": is_odd, "algorithm__name": name, "beta": beta, "num_steps": 2, "max_new_tokens": 6}
    run = train_digits(directory, f"row {name}", **options)
    assert run.metrics[-1]["optimizer/num_updates"] > 0
    assert all(row["grad/norm"] > 0 for row in run.metrics if row.get("grad/norm") is not None)
