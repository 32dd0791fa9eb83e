"""What needs a value model: generalised advantage estimation and the clipped value loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T_plus_1"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Return (advantages, returns) with A_t = sum_l (gamma lam)^l delta_{t+l}: GAE (arXiv 1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t. Positions outside the mask are passed over, as if they were not there. Column T
    of `values` is what follows the last token: the value of a completion that was cut off, 0 for one that ended.
    """
    advantages = torch.zeros_like(rewards)
    following, running = values[:, -1], torch.zeros_like(values[:, -1])
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, running, 0.0)
    return advantages, torch.where(mask, advantages + values[:, :-1], 0.0)


def clipped_value_loss(
    values: Float[Tensor, "B T"], old_values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], *, value_epsilon: float = 0.2
) -> Float[Tensor, "B T"]:
    """Return 1/2 max((V - R)^2, (V_clipped - R)^2), V kept within +-value_epsilon of its old value (as in PPO's code)."""
    clipped = old_values + (values - old_values).clamp(-value_epsilon, value_epsilon)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def ppo_credit(
    rewards: Float[Tensor, "B"],
    token_penalty: Float[Tensor, "B T"] | None,
    values: Float[Tensor, "B T_plus_1"],
    mask: Bool[Tensor, "B T"],
    is_truncated: Bool[Tensor, "B"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Return (advantages, returns) of completions whose reward comes with their last token, by GAE.

    r_t = [t is the last token] reward - penalty_t (what KL costs at t; None: nothing). What follows the last token is worth 0
    where the completion ended, and V there where it was cut off: it would have gone on. `values` has that in the column behind
    the completion's last token.
    """
    lengths = mask.sum(dim=1)
    last = torch.arange(mask.shape[1])[None] == (lengths - 1)[:, None]
    token_rewards = torch.where(last, rewards[:, None].to(values.dtype), 0.0)
    if token_penalty is not None:
        token_rewards = token_rewards - torch.where(mask, token_penalty.to(values.dtype), 0.0)
    following = values.gather(1, lengths[:, None])
    following = torch.where(is_truncated[:, None], following, 0.0)
    before = torch.where(mask, values[:, :-1], 0.0)
    return gae(token_rewards, torch.cat([before, following], dim=1), mask, gamma=gamma, lam=lam)
