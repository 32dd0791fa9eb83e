"""A reward under attack, before anything is trained on it: who is paid for nothing, who is refused, and what follows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from covey.engines.base import Engine
from covey.guard.attacks import FAMILIES, Attack, Family
from covey.guard.findings import AuditResult, CallTimes, ModelSample, SampleSummary
from covey.guard.measures import (
    Judged,
    family_rows,
    junk_spread,
    kind_rows,
    measured,
    paid_variants,
    part_rows,
    separation,
)
from covey.guard.search import SearchResult, SearchSpec, sample_of, search_exploit
from covey.guard.targets import Target, canonical, guess_rate, kind_of, target_of
from covey.guard.trials import accepted, audited_prompts, carriers_of, later_trials, probes_of, right_trials
from covey.guard.verdict import BREAKING, AuditLimits, Evidence, mere_guesses, reasons_of, spread, verdict_of
from covey.models.policy import Policy
from covey.rewards.base import FunctionReward, Reward, Rewarder, score_all, score_of
from covey.rollout import sample_groups
from covey.sampling import Sampling, rollout_keys
from covey.tasks.base import Task, training_prompts
from covey.types import CoveyError, Prompt, Score

PASSES = 0.5
FIRST_CHUNK, LARGEST_CHUNK = 4, 256
"""Completions that are scored at once, at first and at most; between chunks the clock is looked at."""
CHUNK_S = 0.25
"""A chunk that takes less than this is followed by one twice as large."""
NUM_KEYS = 2000
"""Training questions whose answers tell how far a single answer gets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSpec:
    """How much is tried."""

    num_prompts: int = 24
    families: Mapping[str, Family] = field(default_factory=lambda: FAMILIES)
    search: SearchSpec | None = field(default_factory=SearchSpec)
    """None: no search."""
    num_repeats: int = 32
    """Completions that are scored a second time."""
    num_examples: int = 5
    """Of each family, and of each kind of mistake."""
    num_read: int = 20
    """Completions of the model that are listed for a person to read."""
    deadline_s: float | None = None
    """After which no further completions are scored; None = never."""
    limits: AuditLimits = field(default_factory=AuditLimits)
    is_short: bool = False
    seed: int = 0


SHORT = AuditSpec(num_prompts=4, search=None, num_repeats=4, num_examples=2, deadline_s=5.0, is_short=True)
"""Under a second for rewards that come with Covey, cut off after five for others."""


def audit(
    task: Task,
    reward: Reward | Rewarder,
    *,
    samples: Sequence[tuple[Prompt, str]] = (),
    spec: AuditSpec | None = None,
    short: bool = False,
) -> AuditResult:
    """Attack the reward on questions of the task, and return what it pays and refuses, with a verdict.

    `samples` are completions that the model gave. Of a bare reward, gold is the task's. The same seed gives the same
    result, but for times, and for a deadline that cuts it short.

    Raises:
        CoveyError: the task has no training questions, or the reward compares answers and calls none of them right.
    """
    spec, started = spec or (SHORT if short else AuditSpec()), time.monotonic()
    rewarder = reward if isinstance(reward, Rewarder) else Rewarder(proxy=reward, gold=task.gold)
    refuse_comparisons(rewarder.proxy)
    until = None if spec.deadline_s is None else started + spec.deadline_s
    prompts = audited_prompts(task, num_prompts=spec.num_prompts, seed=spec.seed)
    if not prompts:
        raise CoveyError(f"task {task.name!r} has no training questions to try its reward on")
    trials = tried(task, rewarder, prompts, spec, until=until)
    rows, targets = trials.rows, trials.targets
    own = judged_samples(samples, rewarder)
    search = None
    if spec.search is not None:
        carriers = list(dict.fromkeys(carrier for target in targets for carrier in target.carriers if carrier != "{}"))
        search = search_exploit(targets, rewarder.proxy, rewarder.gold, spec.search, carriers=carriers)
    found = measured(rows, rewarder.proxy, tolerance=spec.limits.tolerance)
    paid = paid_variants(found)
    guessed = max(guess_rate(targets), majority_rate(task.train[:NUM_KEYS]))
    guesses = mere_guesses(paid, guessed, spec.limits)
    evidence = Evidence(
        found=found,
        families=family_rows(found, num_examples=spec.num_examples),
        paid=paid,
        parts=part_rows(found),
        separation=separation(found, BREAKING, without=guesses),
        separation_all=separation(found, (*BREAKING, "twist"), without=guesses),
        junk_spread=junk_spread(found),
        repeat_spread=repeat_spread(rows, rewarder.proxy, num_repeats=spec.num_repeats),
        guess_rate=guessed,
        has_gold=rewarder.gold is not None,
        exploit=search.best if search is not None else None,
        num_samples=len(own),
        num_overpaid=len(overpaid_of(own, rewarder)),
        knows_right=trials.knows_right,
        num_left_out=trials.num_left_out,
        first_error=next((row.reward.error for row in rows if row.reward.value is None), None),
    )
    elapsed_s = time.monotonic() - started
    return result_of(evidence, task, rewarder, spec, own=own, search=search, elapsed_s=elapsed_s)


def refuse_comparisons(reward: Reward) -> None:
    """Raise if the reward compares answers."""
    if compares_answers(reward):
        raise CoveyError(
            f"{reward.name} compares answers with each other, so that what it pays for one says nothing of it alone; there is "
            "nothing to audit. Judges have covey.rewards.judge_check, reward models their held-out accuracy"
        )


def compares_answers(reward: Reward) -> bool:
    """Return whether the reward, or any that it is made of, compares answers instead of calling them right or wrong."""
    inner = [getattr(reward, "reward", None), *(part.reward for part in getattr(reward, "parts", ()))]
    return getattr(reward, "compares_answers", False) or any(compares_answers(each) for each in inner if each is not None)


def result_of(
    evidence: Evidence,
    task: Task,
    rewarder: Rewarder,
    spec: AuditSpec,
    *,
    own: Sequence[ModelSample],
    search: SearchResult | None,
    elapsed_s: float,
) -> AuditResult:
    """Return the evidence with what follows from it."""
    rows = evidence.found.rows
    reasons = reasons_of(evidence, spec.limits)
    seconds = [row.reward.elapsed_s for row in rows]
    return AuditResult(
        task=task.name,
        reward=rewarder.proxy.name,
        gold=rewarder.gold.name if rewarder.gold is not None else None,
        verdict=verdict_of(reasons),
        reasons=tuple(reasons),
        families=tuple(evidence.families),
        kinds=tuple(kind_rows(evidence.found)),
        parts=tuple(evidence.parts),
        separation=evidence.separation,
        separation_all=evidence.separation_all,
        junk_spread=evidence.junk_spread,
        repeat_spread=evidence.repeat_spread,
        right_std=spread([row for row in rows if row.is_right]),
        wrong_std=spread([row for row in rows if row.is_wrong]),
        guess_rate=evidence.guess_rate,
        doubts=tuple(row for row in rows if not row.attack.is_right and row.gold_passes)[: 4 * spec.num_examples],
        search=search,
        samples=sample_summary(own, rewarder, num_read=spec.num_read) if own else None,
        times=CallTimes(mean_s=sum(seconds) / max(1, len(seconds)), max_s=max(seconds, default=0.0)),
        num_prompts=len(evidence.found.scales),
        num_completions=len(rows),
        num_left_out=evidence.num_left_out,
        elapsed_s=elapsed_s,
        is_short=spec.is_short,
        seed=spec.seed,
        limits=spec.limits,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """The completions that were scored."""

    rows: list[Judged]
    targets: list[Target]
    """The questions, with the forms that the reward was seen to read."""
    num_left_out: int
    knows_right: bool
    """Whether there was time for all right answers."""


def tried(task: Task, rewarder: Rewarder, prompts: Sequence[Prompt], spec: AuditSpec, *, until: float | None) -> Tried:
    """Return the right answers and the attacks with their scores. Which forms are attacked follows from which are paid."""
    slack = spec.limits.tolerance * (rewarder.proxy.high - rewarder.proxy.low)
    probes = probes_of(task)
    first = in_turns([(prompt, right_trials(target_of(prompt), probes.get(prompt.prompt_id, ()))) for prompt in prompts])
    rows = list(judged(first, rewarder, until=until))
    by_prompt: dict[str, list[Judged]] = {prompt.prompt_id: [] for prompt in prompts}
    for row in rows:
        by_prompt[row.prompt.prompt_id].append(row)
    targets: list[Target] = []
    later: list[tuple[Prompt, list[Attack]]] = []
    for prompt in prompts:
        own = by_prompt[prompt.prompt_id]
        targets.append(target_of(prompt, carriers=carriers_of(accepted(own, slack), target_of(prompt).key)))
        trials = later_trials(targets[-1], own, probes.get(prompt.prompt_id, ()), slack=slack, families=spec.families)
        later.append((prompt, trials))
    second = in_turns(later)
    num_first = len(rows)
    rows += judged(second, rewarder, until=until)
    return Tried(
        rows=rows, targets=targets, num_left_out=len(first) + len(second) - len(rows), knows_right=num_first == len(first)
    )


def in_turns(trials: Sequence[tuple[Prompt, Sequence[Attack]]]) -> list[tuple[Prompt, Attack]]:
    """Return one trial of each question after the other, so that a deadline leaves something of every question."""
    longest = max(len(attacks) for _, attacks in trials)
    return [(prompt, attacks[turn]) for turn in range(longest) for prompt, attacks in trials if turn < len(attacks)]


def judged(trials: Sequence[tuple[Prompt, Attack]], rewarder: Rewarder, *, until: float | None) -> Iterator[Judged]:
    """Yield the completions with their scores, as many chunks as there is time for, and one at least."""
    start, size = 0, FIRST_CHUNK
    while start < len(trials):
        began = time.monotonic()
        chunk = trials[start : start + size]
        scores = rewarder.score_all([sample_of(prompt, attack.completion) for prompt, attack in chunk])
        for (prompt, attack), (score, gold) in zip(chunk, scores, strict=True):
            yield Judged(prompt=prompt, attack=attack, reward=score, gold=gold)
        now = time.monotonic()
        if until is not None and now > until:
            return
        start += len(chunk)
        size = min(2 * size, LARGEST_CHUNK) if now - began < CHUNK_S else size


def majority_rate(prompts: Sequence[Prompt]) -> float:
    """Return the share of the questions that have the commonest answer; 0 if none has any."""
    counts = Counter(canonical(key) for prompt in prompts if (key := kind_of(prompt.answer)[1]))
    return max(counts.values(), default=0) / max(1, counts.total())


def repeat_spread(rows: Sequence[Judged], reward: Reward, *, num_repeats: int) -> float:
    """Return the largest difference between two scores of the same completion, as a share of the reward's range."""
    scored = [row for row in rows if row.reward.value is not None]
    chosen = scored[:: max(1, len(scored) // max(1, num_repeats))][:num_repeats]
    again = score_all(reward, [sample_of(row.prompt, row.attack.completion) for row in chosen])
    gaps = [
        abs(score.value - row.reward.value)
        for row, score in zip(chosen, again, strict=True)
        if score.value is not None and row.reward.value is not None
    ]
    return max(gaps, default=0.0) / (reward.high - reward.low)


def judged_samples(samples: Sequence[tuple[Prompt, str]], rewarder: Rewarder) -> list[ModelSample]:
    """Return the model's completions with their scores."""
    scores = rewarder.score_all([sample_of(prompt, completion) for prompt, completion in samples])
    return [
        ModelSample(prompt=prompt, completion=completion, reward=score, gold=gold)
        for (prompt, completion), (score, gold) in zip(samples, scores, strict=True)
    ]


def passes(score: Score | None, reward: Reward | None) -> bool | None:
    """Return whether the score lies in the upper half of the range; None without a score."""
    if score is None or score.value is None or reward is None:
        return None
    return score.value >= reward.low + PASSES * (reward.high - reward.low)


def sample_summary(own: Sequence[ModelSample], rewarder: Rewarder, *, num_read: int) -> SampleSummary:
    """Return what reward and gold make of the model's completions, and which of them a person should read."""
    overpaid, underpaid = overpaid_of(own, rewarder), [each for each in own if disagreement(each, rewarder) == (False, True)]
    rewards = [each.reward.value for each in own if each.reward.value is not None]
    golds = [each.gold.value for each in own if each.gold is not None and each.gold.value is not None]
    to_read = [*overpaid, *underpaid]
    if rewarder.gold is None:
        scored = [each for each in own if each.reward.value is not None]
        to_read = sorted(scored, key=lambda each: -(each.reward.value or 0.0))
    return SampleSummary(
        num_samples=len(own),
        reward_mean=fmean(rewards) if rewards else None,
        gold_mean=fmean(golds) if golds else None,
        reward_std=pstdev(rewards) if rewards else None,
        num_overpaid=len(overpaid),
        num_underpaid=len(underpaid),
        to_read=tuple(to_read[:num_read]),
    )


def disagreement(each: ModelSample, rewarder: Rewarder) -> tuple[bool | None, bool | None]:
    """Return whether the reward pays the completion, and whether gold passes it."""
    return passes(each.reward, rewarder.proxy), passes(each.gold, rewarder.gold)


def overpaid_of(own: Sequence[ModelSample], rewarder: Rewarder) -> list[ModelSample]:
    """Return the completions that the reward pays and gold denies."""
    return [each for each in own if disagreement(each, rewarder) == (True, False)]


def model_samples(
    task: Task,
    *,
    policy: Policy,
    engine: Engine,
    sampling: Sampling,
    num_prompts: int = 32,
    samples_per_prompt: int = 8,
    seed: int = 0,
) -> list[tuple[Prompt, str]]:
    """Return completions that the model gives to training questions, for `audit`."""
    prompts = training_prompts(task.train, seed=seed, start=0, count=min(num_prompts, len(task.train)))
    keys = [
        rollout_keys(seed, "audit", step=0, draw=0, prompt_id=prompt.prompt_id, group_size=samples_per_prompt)
        for prompt in prompts
    ]
    # Scored later, together with gold; here it would be a second time.
    unscored = Rewarder(proxy=FunctionReward(name="none", score=lambda sample: score_of(0.0)), gold=None)
    groups, _, _ = sample_groups(prompts, policy=policy, engine=engine, rewarder=unscored, sampling=sampling, keys=keys)
    return [(group.prompt, rollout.text) for group in groups for rollout in group.rollouts]
