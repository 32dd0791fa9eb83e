"""Rollouts and the run: fresh weights, own random numbers, honest scores, and nothing lost over a resume."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders import make_prompt, make_reward, make_rollout, make_sample, shake
from tests.digits import bits_of, digit_share, leave_out_slow_parts, resume_digits, train_digits
from tests.engines import fill_embedding
from tests.generation import PROMPTS, SAMPLING, generate, trainer_gap

from covey.algos.critic import gae
from covey.algos.preference import dpo_loss, ipo_loss, preference_margin
from covey.api import Run
from covey.batch import make_tokens
from covey.engines.scripted import ScriptedEngine
from covey.engines.transformers import TransformersEngine
from covey.evaluate import EvaluationSpec, evaluate
from covey.models.policy import Policy
from covey.monitor.run_directory import read_rows
from covey.rewards.base import Rewarder, safe_score
from covey.rewards.extract import MAX_TEXT_CHARACTERS, normalise
from covey.rewards.length import soft_overlong_penalty, with_overlong_penalty
from covey.rewards.numeric import asserted_number
from covey.rollout import SampledGroups, refuse_failing_reward, rollout_metrics, rollout_rows, sample_groups
from covey.sampling import Sampling, rollout_keys
from covey.stats import pass_at_k
from covey.types import CoveyError, Group


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


# Tokens between engine and trainer


def test_sampled_tokens_are_trained_as_they_are_and_never_encoded_again(shared_tiny_policy: Policy):
    """Broken UTF-8: its text holds replacement characters, which encode to other tokens."""
    ids = [0xE2, 0x82, 65, 0xFF, 257]
    engine = ScriptedEngine(lambda prompt, sample: ids, stop_ids=frozenset({257}))
    groups, _, _ = sample_groups(
        [make_prompt()],
        policy=shared_tiny_policy,
        engine=engine,
        rewarder=Rewarder(proxy=make_reward(lambda sample: 0.0), gold=None),
        sampling=SAMPLING,
        keys=[[0, 1]],
    )
    assert [rollout.completion.token_ids for rollout in groups[0].rollouts] == [ids, ids]
    assert make_tokens(groups).completion_ids.tolist() == [ids, ids]


def test_a_completion_that_ends_with_a_stop_text_has_one_log_prob_for_each_token(shared_tiny_policy: Policy):
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=40, stop=("e", "t", "a", "o", "1", "2"))
    completions = [
        item for group in generate(TransformersEngine(shared_tiny_policy), PROMPTS, sampling=sampling) for item in group
    ]
    assert any(item.finish_reason == "stop" and item.token_ids[-1] in (*b"etao12",) for item in completions)
    for item in completions:
        assert len(item.token_ids) == len(item.logprobs)
        assert (item.finish_reason == "stop") == (item.token_ids[-1] in (*b"etao12", 257))


# Weights and caches


def test_after_a_large_update_the_engine_answers_as_the_trainer_now_does(tiny_policy: Policy):
    engine = TransformersEngine(tiny_policy)
    before = generate(engine, PROMPTS)
    shake(tiny_policy, scale=0.2)
    engine.load_weights(tiny_policy, 1)
    after = generate(engine, PROMPTS)
    assert [[item.token_ids for item in group] for group in after] != [[item.token_ids for item in group] for group in before]
    assert trainer_gap(tiny_policy, PROMPTS, after) < 1e-4
    fresh = generate(TransformersEngine(tiny_policy), PROMPTS)
    for mine, other in zip(after, fresh, strict=True):
        assert [item.token_ids for item in mine] == [item.token_ids for item in other]
        assert all(a.logprobs == pytest.approx(b.logprobs, abs=1e-6) for a, b in zip(mine, other, strict=True))


def test_what_was_computed_for_a_prompt_is_forgotten_with_the_weights(tiny_policy: Policy):
    """The prompts begin alike, as behind a system message: what they share may be computed once, but not kept."""
    prompts = [list(b"Add these numbers: 2 and 3"), list(b"Add these numbers: 4")]
    engine = TransformersEngine(tiny_policy)
    generate(engine, prompts)
    shake(tiny_policy, scale=0.2)
    engine.load_weights(tiny_policy, 1)
    assert trainer_gap(tiny_policy, prompts, generate(engine, prompts)) < 1e-4


def test_log_probs_of_cached_decoding_are_those_of_a_full_forward_pass(shared_tiny_policy: Policy):
    prompts = [list(b"The sum of 2 and 3?"), list(b"The sum of 4"), list(b"x")]
    assert trainer_gap(shared_tiny_policy, prompts, generate(TransformersEngine(shared_tiny_policy), prompts)) < 1e-4


# Random numbers


def test_the_completions_of_a_group_have_their_own_random_numbers(tiny_policy: Policy):
    keys = rollout_keys(0, "rollout", step=1, draw=0, prompt_id="p", group_size=64)
    assert len(set(keys)) == 64
    fill_embedding(tiny_policy, 0.0)  # uniform over 264 tokens: 64 draws of 2 tokens hardly ever repeat
    [group] = TransformersEngine(tiny_policy).generate([PROMPTS[0]], Sampling(max_new_tokens=2), group_size=64, keys=[keys])
    assert len({tuple(item.token_ids) for item in group}) > 55


def test_the_tokens_of_a_completion_have_their_own_random_numbers(tiny_policy: Policy):
    fill_embedding(tiny_policy, 0.0)
    keys = [rollout_keys(0, "rollout", step=1, draw=0, prompt_id="p", group_size=4)]
    [group] = TransformersEngine(tiny_policy).generate([PROMPTS[0]], Sampling(max_new_tokens=12), group_size=4, keys=keys)
    assert all(len(set(item.token_ids)) > 8 for item in group if len(item.token_ids) == 12)
    assert any(len(item.token_ids) == 12 for item in group)


# Scores


def test_an_error_in_a_reward_is_no_score_and_is_counted():
    def broken(sample: Any) -> float:
        raise ValueError("the verifier is broken")

    score = safe_score(make_reward(broken), make_sample("21"))
    assert score.value is None
    assert "the verifier is broken" in (score.error or "")


def sampled(rewards: list[float | None], **fields: Any) -> SampledGroups:
    rollouts = tuple(make_rollout(reward, **fields) for reward in rewards)
    group = Group(prompt=make_prompt(), rollouts=rollouts)
    return SampledGroups(used=[group], dropped=[], draws=[0], rollout_s=0.0, reward_s=0.0)


def test_a_reward_that_fails_too_often_ends_the_run():
    assert rollout_metrics(sampled([None, 1.0, 0.0, 1.0]), reward_low=0.0, reward_high=1.0)["reward/error_frac"].value == 0.25
    refuse_failing_reward(sampled([None, 1.0, 0.0, 1.0]), max_error_frac=0.3)
    with pytest.raises(CoveyError, match="1 of 4"):
        refuse_failing_reward(sampled([None, 1.0, 0.0, 1.0]), max_error_frac=0.1)


def test_a_verifier_works_in_a_thread():
    found: list[Any] = []
    prompt = make_prompt(answer=21)
    thread = threading.Thread(
        target=lambda: found.append(safe_score(make_reward_of_numbers(), make_sample("21", prompt=prompt)))
    )
    thread.start()
    thread.join()
    assert [score.value for score in found] == [1.0]


def make_reward_of_numbers() -> Any:
    return dataclasses.replace(make_reward(lambda sample: 0.0), score=asserted_number)


def test_a_verifier_reads_no_more_than_a_bounded_part_of_a_text():
    """Patterns that take a step for each pair of characters never end on a megabyte."""
    for text in ("-" * 400_000, "1," * 200_000, "1 " * 200_000, "-\n" * 200_000):
        assert len(normalise(text)) <= MAX_TEXT_CHARACTERS
        assert asserted_number(make_sample(text, answer=21)).value == 0.0


def test_a_reward_counts_tokens_and_not_characters(shared_tiny_policy: Policy):
    """Three bytes make one character here, and the end token makes none."""
    seen: list[tuple[int, bool]] = []

    def reward(sample: Any) -> float:
        seen.append((sample.num_tokens, sample.is_truncated))
        return 0.0

    scripts = {0: [*"\u20ac\u20ac".encode(), 257], 1: list(b"abcdefgh")}
    sample_groups(
        [make_prompt()],
        policy=shared_tiny_policy,
        engine=ScriptedEngine(lambda prompt, sample: scripts[sample], stop_ids=frozenset({257})),
        rewarder=Rewarder(proxy=make_reward(reward), gold=None),
        sampling=Sampling(max_new_tokens=8),
        keys=[[0, 1]],
    )
    assert seen == [(7, False), (8, True)]


def test_the_soft_penalty_for_length_is_golden():
    lengths = {80: 0.0, 81: -0.05, 90: -0.5, 100: -1.0, 300: -1.0, 1: 0.0}
    for length, penalty in lengths.items():
        assert soft_overlong_penalty(length, max_tokens=100, buffer=20) == pytest.approx(penalty, abs=1e-12)
    reward = with_overlong_penalty(make_reward(lambda sample: 1.0), max_tokens=100, buffer=20)
    assert reward(dataclasses.replace(make_sample("x"), num_tokens=90)).value == pytest.approx(0.5)


def test_length_metrics_count_every_completion_truncated_ones_too():
    kept, cut = sampled([1.0, 0.0], length=2), sampled([1.0], length=8, is_truncated=True)
    both = dataclasses.replace(kept, used=[*kept.used, *cut.used], draws=[0, 0])
    metrics = rollout_metrics(both, reward_low=0.0, reward_high=1.0)
    assert metrics["completion/length_mean"].value == pytest.approx(4.0)
    assert metrics["completion/length_max"].value == 8
    assert metrics["completion/truncated_frac"].value == pytest.approx(1 / 3)


# Evaluation


def evaluated(policy: Policy, mode: Any, *, samples_per_prompt: int = 3) -> list[dict[str, Any]]:
    spec = EvaluationSpec(sampling=Sampling(temperature=1.0, max_new_tokens=4), samples_per_prompt=samples_per_prompt, seed=0)
    rewarder = Rewarder(proxy=make_reward(lambda sample: 0.0), gold=None)
    prompts = [make_prompt("a", "One"), make_prompt("b", "Two")]
    return evaluate(prompts, spec, mode=mode, policy=policy, engine=TransformersEngine(policy), rewarder=rewarder)


def test_greedy_evaluation_asks_once_and_takes_the_likeliest_token(shared_tiny_policy: Policy):
    rows = evaluated(shared_tiny_policy, "greedy")
    assert [row["prompt_id"] for row in rows] == ["a", "b"]
    for row, text in zip(rows, ("One", "Two"), strict=True):
        ids = shared_tiny_policy.encode(make_prompt(text=text).messages)
        for _ in range(row["num_tokens"]):
            with torch.no_grad():
                ids.append(int(shared_tiny_policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert row["completion"] == shared_tiny_policy.decode(ids[-row["num_tokens"] :])


def test_evaluation_uses_numbers_of_its_own_and_leaves_the_global_state_alone(shared_tiny_policy: Policy):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = evaluated(shared_tiny_policy, "sampled")
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["completion"] for row in evaluated(shared_tiny_policy, "sampled")] == [row["completion"] for row in first]
    assert not any(module.training for module in shared_tiny_policy.model.modules())
    training = TransformersEngine(shared_tiny_policy).generate(
        [shared_tiny_policy.encode(make_prompt(text="One").messages)],
        Sampling(max_new_tokens=4),
        group_size=3,
        keys=[rollout_keys(0, "rollout", step=0, draw=0, prompt_id="a", group_size=3)],
    )
    drawn = [shared_tiny_policy.decode(item.token_ids) for item in training[0]]
    assert drawn != [row["completion"] for row in first[:3]]


# A whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    patch = pytest.MonkeyPatch()
    leave_out_slow_parts(patch)
    options: dict[str, Any] = {"beta": 0.01, "num_steps": 3, "learning_rate": 1e-2, "warmup_steps": 0}
    yield train_digits(tmp_path_factory.mktemp("run"), "run", **options)
    patch.undo()


def test_the_reference_stays_behind_while_the_policy_moves(run: Run):
    distances = [row["kl/ref"] for row in run.metrics]
    assert distances[0] == pytest.approx(0.0, abs=1e-9)
    assert distances[2] > 1e-4


def test_the_engine_serves_the_present_policy_in_every_step(run: Run):
    assert [row["policy/version"] for row in run.metrics] == [1, 2, 3]
    assert all(row["mismatch/max"] < 1e-4 for row in run.metrics)


def test_the_logged_reward_is_the_one_that_was_optimised(run: Run):
    for step, row in enumerate(run.metrics, start=1):
        table = read_rows(run.path / "rollouts" / f"step-{step:06d}.parquet")
        assert row["reward/mean"] == pytest.approx(sum(item["reward"] for item in table) / len(table), abs=1e-9)
        assert all(item["reward"] == pytest.approx(digit_share(item["completion"])) for item in table)


def test_the_advantages_can_be_recomputed_from_what_is_logged():
    """A negative reward and a part: what is shown for a completion is what its advantage is made of."""
    from covey.algos.advantages import dr_grpo_advantages
    from covey.batch import group_stats

    step = sampled([-0.5, 1.0, 0.25], form=0.3)
    logged = [row["reward"] for row in rollout_rows(step)]
    mean = sum(logged) / len(logged)
    expected = [[value - mean for value in logged]]
    torch.testing.assert_close(dr_grpo_advantages(group_stats(step.used)), torch.tensor(expected, dtype=torch.float64))
    assert rollout_metrics(step, reward_low=-1.0, reward_high=1.0)["reward/mean"].value == pytest.approx(mean)


RESUMED: dict[str, Any] = {
    "beta": 0.05,
    "algorithm__kl_target": 0.01,
    "algorithm__kl_horizon": 100,
    "algorithm__entropy_target": 9.0,
    "algorithm__entropy_coefficient": 0.01,
    "algorithm__reference_every": 1,
    "algorithm__reference_mix": 0.5,
    "warmup_steps": 4,
    "evaluation__every": 0,
}


def test_a_run_made_longer_ends_with_the_bits_of_one_that_was_never_stopped(tmp_path: Path):
    """Prompts, random numbers, optimizer, learning rate, controllers and a moving reference all go on where they were."""
    train_digits(tmp_path, "whole", num_steps=4, **RESUMED)
    train_digits(tmp_path, "parts", num_steps=2, **RESUMED)
    resume_digits(tmp_path, "parts", num_steps=4)
    whole, parts = bits_of(tmp_path / "whole"), bits_of(tmp_path / "parts")
    assert parts["metrics"] == whole["metrics"]
    assert (parts["model"], parts["optimizer"]) == (whole["model"], whole["optimizer"])


# Formulas beside the policy gradient


def test_gae_is_golden_and_reads_nothing_behind_the_end():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.5, 0.4, 0.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, lam=0.95)
    assert advantages[0].tolist() == pytest.approx([0.7465, 0.47, 0.6], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([0.9465, 0.97, 1.0], abs=1e-6)
    longer = torch.tensor([[True, True, True, False, False]])
    garbage = torch.tensor([[0.2, 0.5, 0.4, 7.0, -9.0, 0.0]])
    padded, _ = gae(torch.tensor([[0.0, 0.0, 1.0, 5.0, 5.0]]), garbage, longer, lam=0.95)
    assert padded[0].tolist() == pytest.approx([0.7465, 0.47, 0.6, 0.0, 0.0], abs=1e-6)


def test_dpo_and_ipo_are_golden_and_antisymmetric():
    pair = [torch.tensor([value], dtype=torch.float64) for value in (-10.0, -12.0, -11.0, -11.5)]
    margin = preference_margin(*pair)
    assert float(margin) == pytest.approx(1.5)
    assert float(dpo_loss(margin, pair_beta=0.1)) == pytest.approx(0.62095705, abs=1e-8)
    assert float(ipo_loss(margin, pair_beta=0.1)) == pytest.approx(12.25, abs=1e-9)
    swapped = preference_margin(pair[1], pair[0], pair[3], pair[2])
    assert float(swapped) == -float(margin)
    assert float(dpo_loss(margin) - dpo_loss(swapped)) == pytest.approx(-0.1 * float(margin), abs=1e-12)


def test_each_pair_has_its_own_loss():
    margins = torch.tensor([1.5, -1.5, 40.0], dtype=torch.float64)
    expected = [-math.log(1 / (1 + math.exp(-0.1 * float(margin)))) for margin in margins]
    assert dpo_loss(margins, pair_beta=0.1).tolist() == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252, abs=1e-12)
    assert pass_at_k(4, 4, 2) == 1.0
    assert pass_at_k(8, 0, 4) == 0.0
    # Its mean over all outcomes of eight tries is the chance that one of four succeeds.
    chance = sum(math.comb(8, right) * 0.3**right * 0.7 ** (8 - right) * pass_at_k(8, right, 4) for right in range(9))
    assert chance == pytest.approx(1 - 0.7**4, abs=1e-12)
