"""Rows that learn from completions of the policy that training starts from, and what a run of them costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.digits import digit_share, leave_out_slow_parts, train_digits

from covey.api import Run
from covey.monitor.run_directory import COSTS_KEYS, read_rows
from covey.types import CoveyError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offline")


@pytest.fixture(scope="module", autouse=True)
def _no_slow_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


def completions_of(run: Run) -> list[tuple[str, str]]:
    paths = sorted((run.path / "rollouts").glob("*.parquet"))
    return [(row["prompt_id"], row["completion"]) for path in paths for row in read_rows(path)]


def costs_of(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "costs.json").read_text())


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo"])
def test_offline_completions_do_not_depend_on_what_was_learnt(directory: Path, name: str):
    """Not even where learning is so fast that every completion of the policy itself changes."""
    threshold = {"algorithm__threshold": 0.1} if name == "sft" else {}
    slow, fast = (
        train_digits(directory, f"{name} {rate}", algorithm__name=name, learning_rate=rate, num_steps=4, **threshold)
        for rate in (1e-5, 3e-2)
    )
    assert completions_of(slow) == completions_of(fast)
    assert [row["loss/value"] for row in slow.metrics][1:] != [row["loss/value"] for row in fast.metrics][1:]


def test_online_completions_do(directory: Path):
    slow, fast = (
        train_digits(directory, f"online {rate}", algorithm__name="online_dpo", learning_rate=rate, num_steps=4)
        for rate in (1e-5, 3e-2)
    )
    assert completions_of(slow) != completions_of(fast)


def test_all_arms_of_a_seed_see_the_same_prompts_and_the_same_first_completions(directory: Path):
    names = ("grpo", "raft", "dpo", "sft")
    runs = [train_digits(directory, f"same {name}", algorithm__name=name, num_steps=1) for name in names]
    assert len({tuple(sorted(completions_of(run))) for run in runs}) == 1  # In the order of who is trained on.


@pytest.mark.parametrize("name", ["raft", "sft", "dpo", "online_dpo", "ppo"])
def test_the_reward_rises(directory: Path, name: str):
    options: dict[str, Any] = {"num_steps": 25, "group_size": 8, "learning_rate": 1e-2, "prompts_per_step": 4}
    reward: Any = digit_share
    if name in ("raft", "sft"):
        options |= {"algorithm__threshold": 0.25}
    if name == "ppo":
        options |= {"algorithm__critic_learning_rate": 1e-2}
    run = train_digits(directory, f"learns {name}", algorithm__name=name, reward=reward, evaluation__every=0, **options)
    gold = [row["proxy_mean"] for row in run.evaluation if (row["part"], row["mode"]) == ("test", "sampled")] or [
        row["proxy_mean"] for row in run.evaluation if row["mode"] == "sampled"
    ]
    assert gold[-1] > gold[0] + (0.1 if name == "sft" else 0.2)  # SFT learns from what the random model happened to say.


def test_the_pairs_margin_grows_and_its_accuracy_with_it(directory: Path):
    run = train_digits(directory, "margin", algorithm__name="dpo", num_steps=15, group_size=8, learning_rate=3e-3)
    found = [row for row in run.metrics if row.get("pair/margin") is not None]
    assert found[0]["pair/margin"] == pytest.approx(0.0, abs=1e-9)
    assert found[0]["pair/accuracy"] == 0.5
    assert found[-1]["pair/margin"] > 1.0
    assert found[-1]["pair/accuracy"] > 0.9
    assert found[-1]["pair/loss"] < found[0]["pair/loss"]


def test_costs_name_what_each_row_holds(directory: Path):
    costs = {
        name: costs_of(train_digits(directory, f"costs {name}", algorithm__name=name, num_steps=2))
        for name in ("grpo", "dpo", "ppo")
    }
    assert all(tuple(each) == COSTS_KEYS for each in costs.values())
    policy = costs["grpo"]["parameters"]["policy"]
    assert costs["grpo"]["parameters"] == {"policy": policy, "trained": policy, "reference": 0, "critic": 0}
    assert costs["dpo"]["parameters"]["reference"] == policy
    assert costs["ppo"]["parameters"]["critic"] > 0.5 * policy
    assert costs["ppo"]["memory_bytes"]["critic"] > costs["grpo"]["memory_bytes"]["critic"] == 0
    for each in costs.values():
        assert sum(each["memory_bytes"].values()) >= each["peak_rss_bytes"]
        assert each["tokens"]["generated"] >= each["tokens"]["trained"] > 0
        assert each["num_updates"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm__name": "dpo", "num_iterations": 2}, "no importance ratio"),
        ({"algorithm__name": "dpo", "beta": 0.1}, "pair_beta"),
        ({"algorithm__name": "sft", "reference_every": 2}, "has to stay"),
        ({"algorithm__name": "raft", "algorithm__correction": "mask_token"}, "no ratio to correct"),
        ({"algorithm__name": "raft", "token_filter": "top_entropy"}, "whole completions"),
        ({"algorithm__name": "grpo", "algorithm__threshold": 0.5}, "has no such option"),
    ],
    ids=str,
)
def test_options_that_contradict_a_row_are_refused(directory: Path, options: dict[str, Any], words: str):
    with pytest.raises(CoveyError, match=words):
        train_digits(directory, "refused", **options)


def test_raft_may_pass_over_its_selection_several_times(directory: Path):
    run = train_digits(directory, "passes", algorithm__name="raft", algorithm__threshold=0.1, num_iterations=2, num_steps=2)
    assert run.metrics[-1]["optimizer/num_updates"] == 4
