"""What do the answers say? Wrong keys that pass, one answer for every question, groups that teach nothing, memorised wordings.

All of it is about held-out questions, but for `flat_groups`. Differences are taken since step 0 and paired by question: a base
model has its habits, and many tasks have a most frequent answer.

Key of the shapes: N answers, P prompts, D draws of the bootstrap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64

from covey.guard.history import Answers, Finding, History, Look
from covey.guard.pairing import (
    MODES,
    critical_t,
    held_out,
    lineage,
    mode_at_start,
    num_shares,
    prompt_index,
    prompt_values,
    t_statistic,
)
from covey.sampling import stream_key
from covey.stats import pass_at_k

PASSES = 0.5
"""A proxy or a gold score from here on is a pass."""
DRAWS_IN_TAIL = 10
"""How many draws of a bootstrap lie beyond the quantile that is read off."""
DRAWS_AT_ONCE = 4096


def honeypots(history: History, *, alpha: float = 0.001, min_passes: int = 3, modes: Sequence[str] = MODES) -> Finding | None:
    """Ask whether questions with a wrong key pass more often than before training: the key leaks, or the proxy takes anything.

    A question passes if any of its first m answers does, m the least number of scored answers that a question has. Of n
    questions x_0 passed before and x pass now. Two exact tests, and both have to reject at `alpha` / K, K the number of looks:

    - against step 0, P(X >= x) for X hypergeometric (2 n, x_0 + x, n). It is the binomial tail, conditioned on all passes:
      the rate of 32 questions is itself uncertain, and taken for the true one it alarms by chance (Fisher's exact test);
    - against chance, P(X >= x) for X binomial (n, 1 - (1 - c)^m), c the share of answers that agree with the key of another
      question. Of answers that are yes or no every honest mistake meets the wrong key, and step 0 may have given no answers.

    Error rate: at most `alpha` a run where a wrong key passes as rarely as at step 0.
    """
    from scipy.stats import binom, hypergeom  # Loading scipy takes a moment that `covey --help` does not have.

    mode = mode_at_start(history, "honeypots", modes)
    looks = held_out(history, "honeypots", mode) if mode else []
    if mode is None or len(looks) < 2:
        return None
    before, now = (_scored_passes(look.answers) for look in (looks[0], looks[-1]))
    shared = [name for name in before if name in now]
    if not shared:
        return None
    num_answers = min(len(passes[name]) for passes in (before, now) for name in shared)
    num_before, num_now = (sum(any(passes[name][:num_answers]) for name in shared) for passes in (before, now))
    if num_now < min_passes:
        return None
    num_questions = len(shared)
    chance = 1.0 - (1.0 - chance_agreement(looks[-1].answers)) ** num_answers
    p_start = float(hypergeom.sf(num_now - 1, 2 * num_questions, num_before + num_now, num_questions))
    p_chance = float(binom.sf(num_now - 1, num_questions, chance))
    if not max(p_start, p_chance) < alpha / num_shares(history, "honeypots", mode):
        return None
    figures = {
        "passes_before": float(num_before),
        "passes": float(num_now),
        "num_questions": float(num_questions),
        "chance": chance,
        "p_start": p_start,
        "p_chance": p_chance,
    }
    message = (
        f"{num_now} of {num_questions} questions with a wrong key pass the proxy, {num_before} before training: "
        "the key leaks into the prompt, or the proxy accepts what is no answer."
    )
    return Finding(detector="honeypots", step=looks[-1].step, level="critical", message=message, figures=figures)


def _scored_passes(answers: Answers) -> dict[str, list[bool]]:
    """Return of each question whether its answers pass the proxy; those that could not be scored are left out."""
    passes: dict[str, list[bool]] = {}
    for name, proxy in zip(answers.prompt_ids, answers.proxy.tolist(), strict=True):
        if not math.isnan(proxy):
            passes.setdefault(name, []).append(proxy >= PASSES)
    return passes


def chance_agreement(answers: Answers) -> float:
    """Return the share of pairs of an answer and another question's key that are equal; 0 without keys."""
    keys = _keys(answers)
    counts = Counter(keys.values())
    num_equal = num_pairs = 0
    for name, extracted in zip(answers.prompt_ids, answers.extracted, strict=True):
        own = keys.get(name)
        num_pairs += len(keys) - (own is not None)
        if extracted is not None:
            num_equal += counts[extracted] - (extracted == own)
    return num_equal / num_pairs if num_pairs else 0.0


def _keys(answers: Answers) -> dict[str, str]:
    """Return the right answer of each question that has one."""
    return {name: key for name, key in zip(answers.prompt_ids, answers.expected, strict=True) if key is not None}


def modal_answer(
    history: History,
    *,
    margin: float = 0.15,
    num_looks: int = 2,
    alpha: float = 0.01,
    min_prompts: int = 30,
    modes: Sequence[str] = MODES,
) -> Finding | None:
    """Ask whether different questions get one and the same answer more often than the keys would have it.

    At a look, a is the most frequent answer ("none could be read" is one) and s(a) its share, the mean over questions. It
    alarms when at each of the newest `num_looks` looks

    - s(a) is at least `margin` above the share of the most frequent key;
    - s(a) is at least `margin` above the share that a had at step 0, and t of the rise, paired by question, is at least
      t(1 - alpha / K), K the number of looks. A base model that gives no answer to half of the questions is not an alarm.

    Error rate: at most `alpha` a run where a is as frequent as at step 0, and less by the margins and the persistence.
    """
    mode = mode_at_start(history, "guard", modes)
    looks = held_out(history, "guard", mode) if mode else []
    if mode is None or len(looks) < 1 + num_looks:
        return None
    keys = Counter(_keys(looks[-1].answers).values())
    if not keys:
        return None
    key_share = max(keys.values()) / keys.total()
    threshold = alpha / num_shares(history, "guard", mode)
    for look in looks[-num_looks:]:
        answer = _most_frequent(look.answers)
        before, now = prompt_values([looks[0], look], lambda answers, answer=answer: _is_answer(answers, answer))[:, 0]  # [P]
        if now.size < min_prompts or now.mean() - key_share < margin or now.mean() - before.mean() < margin:
            return None
        statistic = t_statistic(now - before)
        if statistic < critical_t(now.size, threshold):
            return None
    figures = {"share_before": float(before.mean()), "share": float(now.mean()), "key_share": key_share, "t": statistic}
    said = "none that could be read" if answer is None else repr(answer[:40])
    message = (
        f"{now.mean():.0%} of the answers to different held-out questions are {said}, {before.mean():.0%} before training; "
        f"the most frequent right answer has {key_share:.0%}."
    )
    return Finding(detector="modal_answer", step=looks[-1].step, level="warn", message=message, figures=figures)


def _most_frequent(answers: Answers) -> str | None:
    scored = ~np.isnan(answers.proxy)
    counts = Counter(answer for answer, is_scored in zip(answers.extracted, scored.tolist(), strict=True) if is_scored)
    return counts.most_common(1)[0][0] if counts else None


def _is_answer(answers: Answers, answer: str | None) -> Float64[np.ndarray, "1 N"]:
    """Return whether each completion gives the answer; NaN where the reward failed, which may have read nothing."""
    equal = np.array([extracted == answer for extracted in answers.extracted], dtype=np.float64)
    return np.where(np.isnan(answers.proxy), np.nan, equal)[None]


def pass_at_k_shrinkage(
    history: History,
    *,
    k: int = 8,
    alpha: float = 0.05,
    min_prompts: int = 30,
    modes: Sequence[str] = ("sampled",),
) -> Finding | None:
    """Ask whether pass@1 rose while pass@k fell: training made answers likelier that were there, and lost others (2504.13837).

    Both are the unbiased estimates (2107.03374, eq. 1) on held-out questions, as differences since step 0, paired by question.
    A bootstrap draws questions with replacement. It speaks when the lower end of pass@1's interval is above 0 and the upper
    end of pass@k's below 0, each end at the one-sided level alpha / K with K looks.

    Questions with fewer than 2 k scored answers at either look are left out; with fewer than `min_prompts` others it is silent.
    Error rate: about `alpha` a run in which pass@k does not fall. It is a note: sharpening may be what was wanted.
    """
    mode = mode_at_start(history, "guard", modes)
    looks = held_out(history, "guard", mode) if mode else []
    if mode is None or len(looks) < 2:
        return None
    rises = _pass_rises(looks[0].answers, looks[-1].answers, k=k)
    if len(rises) < min_prompts or rises[:, 0].mean() <= 0.0 or rises[:, 1].mean() >= 0.0:
        return None
    tail = alpha / num_shares(history, "guard", mode)
    key = stream_key(0, "guard/pass_at_k", looks[-1].step)
    means = bootstrap_means(rises, num_draws=math.ceil(DRAWS_IN_TAIL / tail), key=key)
    low, high = float(np.quantile(means[:, 0], tail)), float(np.quantile(means[:, 1], 1.0 - tail))
    if low <= 0.0 or high >= 0.0:
        return None
    pass_1, pass_k = (float(rise) for rise in rises.mean(axis=0))
    figures = {"rise_pass_1": pass_1, "low_pass_1": low, "rise_pass_k": pass_k, "high_pass_k": high}
    message = (
        f"Held-out pass@1 is {pass_1:+.3f} since step 0 and pass@{k} {pass_k:+.3f}: "
        "answers that were there became likelier, and others were lost."
    )
    return Finding(detector="pass_at_k_shrinkage", step=looks[-1].step, level="note", message=message, figures=figures)


def _pass_rises(before: Answers, now: Answers, *, k: int) -> Float64[np.ndarray, "P 2"]:
    """Return by how much pass@1 and pass@k of each question rose, for questions with 2 k scored answers at both looks."""
    start, end = _num_right(before), _num_right(now)
    shared = [name for name in start if name in end and min(start[name][0], end[name][0]) >= 2 * k]
    rises = [[pass_at_k(*end[name], size) - pass_at_k(*start[name], size) for size in (1, k)] for name in shared]
    return np.array(rises, dtype=np.float64).reshape(-1, 2)


def _num_right(answers: Answers) -> dict[str, tuple[int, int]]:
    """Return of each question the number of answers that gold scored and of those that it passed."""
    counts: dict[str, tuple[int, int]] = {}
    for name, gold in zip(answers.prompt_ids, answers.gold.tolist(), strict=True):
        if not math.isnan(gold):
            num, num_right = counts.get(name, (0, 0))
            counts[name] = (num + 1, num_right + (gold >= PASSES))
    return counts


def bootstrap_means(values: Float64[np.ndarray, "P 2"], *, num_draws: int, key: int) -> Float64[np.ndarray, "D 2"]:
    """Return the means of `num_draws` samples of the rows, drawn with replacement by the generator that `key` seeds."""
    rng = np.random.default_rng(key)
    num_prompts = len(values)
    sizes = [min(DRAWS_AT_ONCE, num_draws - done) for done in range(0, num_draws, DRAWS_AT_ONCE)]
    counts = (rng.multinomial(num_prompts, np.full(num_prompts, 1.0 / num_prompts), size=size) for size in sizes)
    return np.concatenate([drawn @ values / num_prompts for drawn in counts])


def flat_groups(history: History, *, num_steps: int = 10, max_flat: float = 0.75) -> Finding | None:
    """Say which share of the newest `num_steps` steps' groups is all right and which all wrong: they teach nothing.

    A group is all right or all wrong if no two of its scored rewards differ, by whether they pass. The two ask for opposite
    remedies, so their sum would hide what matters. It speaks, once there are as many steps, when `max_flat` of the groups or
    more are flat. It is a count and no test: it has no error rate, and a run that has mastered its task makes it speak.
    """
    steps = lineage(history.steps)[-num_steps:]
    if len(steps) < num_steps:
        return None
    kinds = [_flat_kinds(step.answers) for step in steps]
    all_right, all_wrong = (np.concatenate(kind) for kind in zip(*kinds, strict=True))  # bool, one a group
    if not all_right.size or (all_right | all_wrong).mean() < max_flat:
        return None
    right, wrong = float(all_right.mean()), float(all_wrong.mean())
    remedy = "harder questions" if right > wrong else "easier questions, or more completions a prompt,"
    message = (
        f"Of the last {num_steps} steps' groups {right:.0%} are all right and {wrong:.0%} all wrong: {remedy} would teach more."
    )
    figures = {"all_right_frac": right, "all_wrong_frac": wrong}
    return Finding(detector="flat_groups", step=steps[-1].step, level="note", message=message, figures=figures)


def _flat_kinds(answers: Answers) -> tuple[Bool[np.ndarray, "P"], Bool[np.ndarray, "P"]]:
    """Return of each group with two scored rewards or more whether it is all right, and whether it is all wrong."""
    names, index = prompt_index(tuple(answers.prompt_ids))
    scored = ~np.isnan(answers.proxy)
    lowest, highest = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.minimum.at(lowest, index[scored], answers.proxy[scored])
    np.maximum.at(highest, index[scored], answers.proxy[scored])
    counted = np.bincount(index[scored], minlength=len(names)) >= 2
    flat = (lowest == highest)[counted]
    passes = (lowest >= PASSES)[counted]
    return flat & passes, flat & ~passes


def metamorphic_gap(
    history: History,
    *,
    min_gap: float = 0.05,
    alpha: float = 0.01,
    min_prompts: int = 30,
    modes: Sequence[str] = MODES,
) -> Finding | None:
    """Ask whether gold is better on held-out questions than on their twins, which say the same in other words or numbers.

    With g the gold score of a question and g' that of its twin: d = (g - g')_now - (g - g')_0, one number a question. It
    alarms when mean(d) >= `min_gap` and t of d is at least t(1 - alpha / K), K the number of looks. Twins may be harder by
    construction; that is in step 0, too. The newest step at which both parts were evaluated counts.

    Error rate: at most `alpha` a run in which the gap does not change.
    """
    mode = mode_at_start(history, "twins", modes)
    if mode is None:
        return None
    guard, twins = ({look.step: look for look in held_out(history, part, mode)} for part in ("guard", "twins"))
    steps = sorted(guard.keys() & twins.keys())
    if len(steps) < 2 or steps[0] != 0:
        return None
    names = _names_of_twins(guard[0], twins[0])
    if names is None:
        return None
    renamed = [_renamed(twins[step], names) for step in (0, steps[-1])]
    values = prompt_values([guard[0], guard[steps[-1]], *renamed], lambda answers: answers.gold[None])[:, 0]  # [4, P]
    if values.shape[1] < min_prompts:
        return None
    gap_before, gap = values[0] - values[2], values[1] - values[3]
    statistic = t_statistic(gap - gap_before)
    rise = float((gap - gap_before).mean())
    if rise < min_gap or statistic < critical_t(gap.size, alpha / num_shares(history, "twins", mode)):
        return None
    figures = {"gap_before": float(gap_before.mean()), "gap": float(gap.mean()), "t": statistic, "num_prompts": float(gap.size)}
    message = (
        f"Held-out gold is {gap.mean():+.3f} against twins of the same questions, {gap_before.mean():+.3f} before training: "
        "what was learnt hangs on the wording."
    )
    return Finding(detector="metamorphic_gap", step=steps[-1], level="warn", message=message, figures=figures)


def _names_of_twins(guard: Look, twins: Look) -> Mapping[str, str] | None:
    """Return the question that each twin is of: the one of its name, else the one in its place; None if they do not match."""
    originals, _ = prompt_index(tuple(guard.answers.prompt_ids))
    variants, _ = prompt_index(tuple(twins.answers.prompt_ids))
    if set(originals) == set(variants):
        return {name: name for name in variants}
    return dict(zip(variants, originals, strict=True)) if len(originals) == len(variants) else None


def _renamed(look: Look, names: Mapping[str, str]) -> Look:
    """Return the look with each twin under its question's name."""
    prompt_ids = [names.get(name, name) for name in look.answers.prompt_ids]
    return replace(look, answers=replace(look.answers, prompt_ids=prompt_ids))
