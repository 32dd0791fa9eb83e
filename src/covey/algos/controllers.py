"""Coefficients that follow a target during the run: pure functions from the present value to the next."""

from __future__ import annotations


def adaptive_beta(beta: float, kl: float, *, target: float, horizon: float, num_samples: int, max_error: float = 0.2) -> float:
    """Return beta (1 + clip(kl/target - 1, +-0.2) n/horizon): the KL controller of arXiv 1909.08593, section 2.2.

    `kl` is the mean KL of a completion in nats, n the completions since the last call, `horizon` how many completions a
    full correction takes. n/horizon counts as 1 at most: a short horizon must not turn the sign of beta.
    """
    error = min(max(kl / target - 1, -max_error), max_error)
    return beta * (1 + error * min(1.0, num_samples / horizon))


def entropy_coefficient(
    coefficient: float, entropy: float, *, target: float, change: float = 0.005, highest: float = 1.0
) -> float:
    """Return the next weight of the entropy bonus: up by `change` while entropy is below its target, down while above.

    Between 0 and `highest`: a bonus never becomes a penalty. (Skywork-OR1, arXiv 2505.22312, section 4.3.)
    """
    moved = coefficient + change if entropy < target else coefficient - change
    return min(max(moved, 0.0), highest)
