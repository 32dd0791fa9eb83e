"""Is the model worse than it was? Gold on held-out questions against the best earlier checkpoint, and over the distance moved.

The best earlier checkpoint is chosen on part choose and tested on part guard, other questions. The maximum of several noisy
means is too high by chance alone, so a test on the questions that chose it would find a fall in most honest runs.

Key of the shapes: L looks, P prompts, D points of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from covey.guard.history import Answers, Finding, History, Look
from covey.guard.pairing import (
    MODES,
    critical_t,
    held_out,
    lineage,
    mode_at_start,
    num_shares,
    prompt_means,
    prompt_values,
    t_statistic,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fall:
    """Gold on part guard is lower than at the checkpoint that part choose calls the best of the earlier ones."""

    step: int
    best_step: int
    gold: float
    best_gold: float
    proxy: float
    best_proxy: float
    t_gold: float
    t_held: float
    """t of `proxy_share` times the fall of gold, less the fall of the proxy: large if the proxy held."""
    threshold: float

    @property
    def has_proxy_held(self) -> bool:
        return self.t_held >= self.threshold

    @property
    def figures(self) -> dict[str, float]:
        names = ("best_step", "best_gold", "gold", "best_proxy", "proxy", "t_gold", "t_held", "threshold")
        return {name: float(getattr(self, name)) for name in names}


def gold_fall(
    history: History,
    *,
    alpha: float = 0.01,
    min_fall: float = 0.05,
    proxy_share: float = 0.5,
    min_prompts: int = 20,
    modes: Sequence[str] = MODES,
) -> Fall | None:
    """Return the fall of gold at the newest look of part guard if it is at least `min_fall` and no accident.

    With differences paired by prompt and K looks: mean(g_best - g_now) >= min_fall, and their t >= t(1 - alpha / K).
    """
    mode = mode_at_start(history, "guard", modes)
    looks = held_out(history, "guard", mode) if mode else []
    if mode is None or len(looks) < 2:
        return None
    best = _best_earlier(looks, lineage(history.looks_at("choose", mode)), min_prompts=min_prompts)
    if best is None:
        return None
    before, now = prompt_values([best, looks[-1]], _gold_and_proxy)
    if now.shape[-1] < min_prompts:
        return None
    fall = before - now  # [2, P]
    threshold = critical_t(now.shape[-1], alpha / num_shares(history, "guard", mode))
    t_gold = t_statistic(fall[0])
    if fall[0].mean() < min_fall or t_gold < threshold:
        return None
    return Fall(
        step=looks[-1].step,
        best_step=best.step,
        gold=float(now[0].mean()),
        best_gold=float(before[0].mean()),
        proxy=float(now[1].mean()),
        best_proxy=float(before[1].mean()),
        t_gold=t_gold,
        t_held=t_statistic(proxy_share * fall[0] - fall[1]),
        threshold=threshold,
    )


def _gold_and_proxy(answers: Answers) -> Float64[np.ndarray, "2 N"]:
    return np.stack([answers.gold, answers.proxy])


def _gold(answers: Answers) -> Float64[np.ndarray, "1 N"]:
    return answers.gold[None]


def _best_earlier(guard: Sequence[Look], choose: Sequence[Look], *, min_prompts: int) -> Look | None:
    """Return the evaluation on part guard of the earlier checkpoint that is best on part choose, the first of equals."""
    at_step = {look.step: look for look in guard[:-1]}
    best, best_gold = None, -math.inf
    for look in choose:
        if look.step in at_step:
            _, means = prompt_means(look.answers, _gold(look.answers))
            gold = means[np.isfinite(means)]
            if gold.size >= min_prompts and gold.mean() > best_gold:
                best, best_gold = at_step[look.step], float(gold.mean())
    return best


def gold_regression(
    history: History, *, alpha: float = 0.01, min_fall: float = 0.05, proxy_share: float = 0.5
) -> Finding | None:
    """Find that gold fell while the proxy held: over-optimization, and worth going back to the best checkpoint.

    Gold must have fallen (`gold_fall`), and the proxy must have kept more than 1 - `proxy_share` of what gold lost: the t of
    proxy_share (g_best - g_now) - (q_best - q_now), paired by prompt, is at or above t(1 - alpha / K). A policy that merely
    becomes worse loses both: q falls by 1 - FN - FP of what g falls, which is more than half of it for every proxy that is
    worth optimising. That is `collapse`. Error rate: at most `alpha` a run.
    """
    fall = gold_fall(history, alpha=alpha, min_fall=min_fall, proxy_share=proxy_share)
    if fall is None or not fall.has_proxy_held:
        return None
    message = (
        f"Gold fell from {fall.best_gold:.3f} at step {fall.best_step} to {fall.gold:.3f}, while the proxy went from "
        f"{fall.best_proxy:.3f} to {fall.proxy:.3f}: what is optimised is not what is wanted any more."
    )
    return Finding(detector="gold_regression", step=fall.step, level="critical", message=message, figures=fall.figures)


def collapse(history: History, *, alpha: float = 0.01, min_fall: float = 0.05, proxy_share: float = 0.5) -> Finding | None:
    """Find that gold fell and the proxy fell with it, or could not be shown to hold: the training is at fault, not the reward.

    The other half of `gold_regression`, with the same test that gold fell. Error rate: at most `alpha` a run whose gold does
    not fall.
    """
    fall = gold_fall(history, alpha=alpha, min_fall=min_fall, proxy_share=proxy_share)
    if fall is None or fall.has_proxy_held:
        return None
    message = (
        f"Gold fell from {fall.best_gold:.3f} at step {fall.best_step} to {fall.gold:.3f}, and the proxy from "
        f"{fall.best_proxy:.3f} to {fall.proxy:.3f}: try a lower learning rate, or a KL penalty."
    )
    return Finding(detector="collapse", step=fall.step, level="warn", message=message, figures=fall.figures)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The gain in gold over the distance d = sqrt(KL) as R(d) = d (alpha - beta ln d)."""

    alpha: float
    beta: float
    best_distance: float
    """d* = exp(alpha / beta - 1), where the gain is largest; NaN unless `is_identified`."""
    best_gain: float
    """R* = beta d*; NaN unless `is_identified`."""
    not_identified: str
    """Why the points do not show where the gain is largest; empty if they do."""

    @property
    def is_identified(self) -> bool:
        return not self.not_identified


def fit_curve(
    distance: Float64[np.ndarray, "D"],
    gain: Float64[np.ndarray, "D"],
    *,
    min_points: int = 6,
    min_ratio: float = 2.0,
    confidence: float = 0.99,
    max_reach: float = 1.5,
) -> Curve:
    """Return the least-squares curve through the points (Gao et al., arXiv 2210.10760, for reinforcement learning).

    R(d) = d (alpha - beta ln d) is linear in alpha and beta. Its largest value is R* = beta d* at d* = exp(alpha / beta - 1).
    It is identified by at least `min_points` points, whose largest distance is `min_ratio` times the smallest, that show a
    bend (beta > 0, one-sided at `confidence`) and reach at least d* / `max_reach`. The form is empirical, holds for one method
    and one reward, and is rough near d = 0; a sudden exploit follows no such curve.
    """
    alpha, beta, error = _least_squares(distance, gain) if distance.size > 2 else (math.nan, math.nan, math.nan)
    reason = ""
    if distance.size < min_points:
        reason = f"{distance.size} points, and at least {min_points} are needed"
    elif distance.max() < min_ratio * distance.min():
        reason = f"the distances span less than a factor of {min_ratio:g}"
    elif not beta > critical_t(distance.size - 1, 1.0 - confidence) * error:
        reason = "the curve does not bend"
    elif math.log(distance.max() * max_reach) < alpha / beta - 1.0:
        reason = "the largest gain lies beyond what was seen"
    best = math.nan if reason else math.exp(alpha / beta - 1.0)
    return Curve(alpha=alpha, beta=beta, best_distance=best, best_gain=beta * best, not_identified=reason)


def _least_squares(distance: Float64[np.ndarray, "D"], gain: Float64[np.ndarray, "D"]) -> tuple[float, float, float]:
    """Return alpha, beta and the standard error of beta, with D - 2 degrees of freedom."""
    terms = np.stack([distance, -distance * np.log(distance)], axis=1)  # [D, 2]
    (alpha, beta), _, rank, _ = np.linalg.lstsq(terms, gain)
    if rank < 2:
        return float(alpha), float(beta), math.inf
    rest = gain - terms @ np.array([alpha, beta])
    covariance = np.linalg.inv(terms.T @ terms) * float(rest @ rest) / (distance.size - 2)
    return float(alpha), float(beta), math.sqrt(float(covariance[1, 1]))


def distances_at(
    history: History, looks: Sequence[Look], *, kl_metric: str = "kl/sequence", window: int = 5
) -> dict[int, float]:
    """Return the distance sqrt(KL) by step of the looks after step 0: from the mean over the last `window` recorded steps.

    Steps where nothing has recorded a KL, or the mean is not positive, are left out.
    """
    recorded = [(step.step, step.metrics.get(kl_metric)) for step in lineage(history.steps)]
    known = [(step, value) for step, value in recorded if value is not None and math.isfinite(value)]
    kl = np.array([value for _, value in known])
    at = [look.step for look in looks if look.step > 0]
    ends = np.searchsorted([step for step, _ in known], at, side="right")
    means = {step: float(kl[max(0, end - window) : end].mean()) for step, end in zip(at, ends, strict=True) if end > 0}
    return {step: math.sqrt(mean) for step, mean in means.items() if mean > 0.0}


def gain_curve(history: History, *, modes: Sequence[str] = MODES, kl_metric: str = "kl/sequence") -> Curve | None:
    """Return the curve of part choose, of the gain in gold since step 0; None without an evaluation at a known distance."""
    mode = mode_at_start(history, "choose", modes)
    looks = held_out(history, "choose", mode) if mode else []
    return _curve_of(looks, distances_at(history, looks, kl_metric=kl_metric))


def _has_gold(look: Look) -> bool:
    return bool(np.isfinite(look.answers.gold).any())


def _curve_of(looks: Sequence[Look], distances: Mapping[int, float]) -> Curve | None:
    points = [look for look in looks if look.step in distances and _has_gold(look)]
    if not points:
        return None
    gold = prompt_values([looks[0], *points], _gold)[:, 0]  # [1 + D, P]
    if gold.shape[1] == 0:
        return None
    means = gold.mean(axis=1)
    return fit_curve(np.array([distances[look.step] for look in points]), means[1:] - means[0])


def past_the_peak(
    history: History,
    *,
    alpha: float = 0.01,
    near: float = 0.9,
    min_looks: int = 3,
    min_prompts: int = 20,
    modes: Sequence[str] = MODES,
    kl_metric: str = "kl/sequence",
) -> Finding | None:
    """Find that the policy has moved past the distance where gold is highest, and that gold is falling.

    The curve is fitted on part choose. At the evaluations of part guard with d > `near` d*, at least `min_looks`, each prompt
    has a least-squares slope of gold over d, and their t must be at or below -t(1 - alpha / K). The rule of the thumb, that the
    last three means do not rise, warns in every honest run that has learned what there is to learn. Error rate: at most `alpha`
    a run whose gold does not fall. A warning, as the curve is a description, and no law.
    """
    mode = mode_at_start(history, "guard", modes)
    looks = held_out(history, "guard", mode) if mode else []
    if mode is None or len(looks) <= min_looks:
        return None
    choose = held_out(history, "choose", mode)
    distance_at = distances_at(history, [*choose, *looks], kl_metric=kl_metric)
    curve = _curve_of(choose, distance_at)
    if curve is None or not curve.is_identified:
        return None
    past = [look for look in looks if distance_at.get(look.step, 0.0) > near * curve.best_distance and _has_gold(look)]
    if len(past) < min_looks or past[-1] is not looks[-1]:
        return None
    gold = prompt_values(past, _gold)[:, 0]  # [L, P]
    distances = np.array([distance_at[look.step] for look in past])
    centred = distances - distances.mean()
    if gold.shape[1] < min_prompts or not centred.any():
        return None
    slopes = centred @ gold / float(centred @ centred)  # [P]
    statistic, threshold = t_statistic(slopes), critical_t(gold.shape[1], alpha / num_shares(history, "guard", mode))
    if statistic > -threshold:
        return None
    figures = {
        "distance": float(distances[-1]),
        "best_distance": curve.best_distance,
        "best_gain": curve.best_gain,
        "slope": float(slopes.mean()),
        "t": statistic,
        "threshold": threshold,
    }
    message = (
        f"The policy has moved sqrt(KL) = {figures['distance']:.2f} from the start; gold was highest near "
        f"{curve.best_distance:.2f} and falls by {-figures['slope']:.3f} for each unit beyond."
    )
    return Finding(detector="past_the_peak", step=looks[-1].step, level="warn", message=message, figures=figures)
