"""A profile's seconds, by a clock that the tests turn, and the profile of a run on the tiny model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.digits import leave_out_slow_parts, train_digits

from covey.monitor.console import QuietConsole
from covey.monitor.profile import NAMES, Profile, ProfiledConsole, percentile, profile_lines
from covey.monitor.run_directory import PROFILE_KEYS, PROFILE_PHASE_KEYS
from covey.report.stats import PHASES


class Watch:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def turn(self, seconds: float) -> None:
        self.now_s += seconds


def row(summary: dict[str, Any], name: str, part_of: str | None = None) -> dict[str, Any]:
    [found] = [row for row in summary["phases"] if (row["name"], row["part_of"]) == (name, part_of)]
    return found


def profiled_steps(*updates_s: float) -> dict[str, Any]:
    """Return the summary of steps whose updates took so long, each with half a second besides."""
    watch = Watch()
    profile = Profile(watch)
    profile.start()
    for step, update_s in enumerate(updates_s, start=1):
        profile.begin()
        watch.turn(update_s)
        profile.add("update_s", update_s)
        watch.turn(0.5)
        profile.count(num_sampled=10, num_trained=30)
        profile.end_step(step)
    profile.finish()
    return profile.summary(peak_rss_bytes=1)


def test_a_phase_has_its_total_its_calls_and_the_median_of_its_steps() -> None:
    update = row(profiled_steps(1.0, 2.0, 6.0), "update")
    assert {key: update[key] for key in ("total_s", "num_calls", "num_steps", "median_s", "p90_s")} == {
        "total_s": 9.0,
        "num_calls": 3,
        "num_steps": 3,
        "median_s": 2.0,
        "p90_s": 6.0,
    }
    assert update["share_frac"] == pytest.approx(9.0 / 10.5)


def test_what_belongs_to_no_phase_is_the_rest_of_the_step() -> None:
    summary = profiled_steps(1.0, 2.0)
    assert (row(summary, "rest of the step")["total_s"], summary["step_median_s"]) == (1.0, 2.0)


def test_the_shares_of_the_phases_add_up_to_one() -> None:
    assert sum(row["share_frac"] for row in profiled_steps(1.0, 3.0)["phases"] if not row["part_of"]) == pytest.approx(1.0)


def test_tokens_are_counted_against_the_seconds_of_their_phase() -> None:
    assert profiled_steps(1.0, 5.0)["trained_tokens_per_s"] == 60 / 6
    assert profiled_steps(1.0)["sampled_tokens_per_s"] is None


def test_a_phase_counts_only_the_steps_in_which_it_happened() -> None:
    watch = Watch()
    profile = Profile(watch)
    for step in (1, 2, 3):
        if step == 2:
            watch.turn(4.0)
            profile.add("checkpoint_s", 4.0)
        profile.end_step(step)
    checkpoint = row(profile.summary(peak_rss_bytes=1), "checkpoint")
    assert (checkpoint["num_steps"], checkpoint["median_s"]) == (1, 4.0)


def test_a_checkpoint_after_the_last_step_counts_and_is_no_step() -> None:
    watch = Watch()
    profile = Profile(watch)
    watch.turn(1.0)
    profile.end_step(1)
    watch.turn(3.0)
    profile.add("checkpoint_s", 3.0)
    profile.finish()
    summary = profile.summary(peak_rss_bytes=1)
    assert (summary["num_steps"], summary["step_median_s"]) == (1, 1.0)
    assert row(summary, "checkpoint")["share_frac"] == 0.75


def test_what_came_before_the_first_step_is_left_out() -> None:
    watch = Watch()
    profile = Profile(watch)
    watch.turn(9.0)
    profile.add("evaluate_s", 9.0)
    profile.start()
    watch.turn(1.0)
    profile.end_step(1)
    summary = profile.summary(peak_rss_bytes=1)
    assert (row(summary, "evaluation")["total_s"], summary["step_median_s"]) == (0.0, 1.0)


def test_decoding_is_what_lies_between_the_engines_signs_of_life_within_a_call() -> None:
    watch = Watch()
    profile = Profile(watch)
    console = ProfiledConsole(QuietConsole(io.StringIO()), profile)
    for _ in range(2):  # Two draws, with rewards of 5 seconds behind each.
        for done, seconds in ((4, 3.0), (8, 1.0), (12, 1.0)):
            watch.turn(seconds)
            console.phase("sampling", done, 12)
        watch.turn(5.0)
    profile.add("rollout_s", 10.0)
    summary = profile.summary(peak_rss_bytes=1)
    decoding = row(summary, "decoding", "sampling")
    assert (decoding["total_s"], decoding["num_calls"]) == (4.0, 4)
    assert row(summary, "other", "sampling")["total_s"] == 6.0


def test_an_update_is_told_apart_into_micro_batches_norm_and_optimizer() -> None:
    watch = Watch()
    profile = Profile(watch)
    console = ProfiledConsole(QuietConsole(io.StringIO()), profile)
    watch.turn(50.0)  # Something else.
    profile.begin()
    for done in (1, 2):
        watch.turn(2.0)
        console.phase("update", done, 2)
    watch.turn(0.25)
    profile.mark("gradient norm")
    watch.turn(0.5)
    profile.mark("optimizer")
    watch.turn(1.0)
    profile.add("update_s", 5.75)
    summary = profile.summary(peak_rss_bytes=1)
    found = {name: row(summary, name, "update")["total_s"] for name in ("micro-batches", "gradient norm", "optimizer", "other")}
    assert found == {"micro-batches": 4.0, "gradient norm": 0.25, "optimizer": 0.5, "other": 1.0}


def test_the_90th_percentile_is_the_smallest_value_that_90_percent_do_not_exceed() -> None:
    assert [percentile(range(1, count + 1), 0.9) for count in (1, 2, 9, 10, 11, 20)] == [1, 2, 9, 9, 10, 18]
    assert percentile([], 0.9) is None


def test_the_table_has_a_line_for_each_phase_that_took_time() -> None:
    lines = profile_lines(profiled_steps(1.0, 2.0))
    assert [line.split("  ")[0] for line in lines[1:-1]] == ["update", "rest of the step"]
    assert lines[-1] == "a step 2.00 s (90 % within 2.50 s), 20 tokens/s trained, peak memory 0.00 GB"


def test_the_profile_knows_the_phases_of_the_report() -> None:
    assert list(NAMES) == list(PHASES)


# Of a run


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


@pytest.fixture(scope="module")
def profile(directory: Path) -> dict[str, Any]:
    run = train_digits(directory, "profiled", profile=True, num_steps=3, evaluation__every=2, checkpoint__every=2)
    return json.loads((run.path / "profile.json").read_text())


def test_a_profile_has_the_documented_keys(profile: dict[str, Any]) -> None:
    assert list(profile) == list(PROFILE_KEYS)
    assert all(sorted(row) == sorted(PROFILE_PHASE_KEYS) for row in profile["phases"])


def test_every_phase_of_a_run_is_in_its_profile(profile: dict[str, Any]) -> None:
    happened = {row["name"]: row["num_steps"] for row in profile["phases"] if not row["part_of"]}
    # The last checkpoint comes after the last step; steps 2 and 3 are measured.
    assert {name: happened[name] for name in ("sampling", "update", "evaluation", "checkpoint")} == {
        "sampling": 3,
        "update": 3,
        "evaluation": 2,
        "checkpoint": 2,
    }
    assert (profile["first_step"], profile["last_step"], profile["num_steps"]) == (1, 3, 3)


def test_the_insides_of_sampling_and_update_are_in_it(profile: dict[str, Any]) -> None:
    assert row(profile, "optimizer", "update")["num_calls"] == 3
    assert row(profile, "micro-batches", "update")["num_calls"] >= 3
    assert row(profile, "decoding", "sampling")["num_calls"] > 3
    for name in ("sampling", "update"):
        parts = [part["total_s"] for part in profile["phases"] if part["part_of"] == name]
        assert sum(parts) == pytest.approx(row(profile, name)["total_s"], abs=1e-9)


def test_a_profiled_run_computes_the_same_numbers(directory: Path, profile: dict[str, Any]) -> None:
    plain = train_digits(directory, "plain", num_steps=3, evaluation__every=2, checkpoint__every=2)
    assert (plain.path / "metrics.jsonl").read_bytes() == (directory / "profiled" / "metrics.jsonl").read_bytes()
    assert not (plain.path / "profile.json").exists()
