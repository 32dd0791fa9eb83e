"""What may end a run before its last step: a budget of generated tokens, or one of distance from the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from covey.metrics import Metric
from covey.rollout import RolloutSpec
from covey.session import Session
from covey.token_budget import TokenBudget


def token_budget(session: Session) -> TokenBudget | None:
    """Return where the run stands in its budget of generated tokens; None if it has none."""
    progress, train = session.state.progress, session.recipe.train
    if not train.max_generated_tokens:
        return None
    return TokenBudget(
        limit=train.max_generated_tokens,
        num_spent=progress.num_generated_tokens,
        tokens_per_prompt=progress.tokens_per_prompt,
        decay_tokens=train.decay_tokens,
    )


def rollouts_within_budget(session: Session) -> RolloutSpec:
    """Return how the next step samples: with fewer prompts if that is all the budget has left, which the learner is told."""
    if (budget := token_budget(session)) is None:
        return session.rollouts
    session.state.learner.budget_left_frac = budget.left_frac
    num_prompts = budget.prompts_within(session.rollouts.prompts_per_step)
    return dataclasses.replace(session.rollouts, prompts_per_step=num_prompts)


def count_tokens(session: Session, metrics: Mapping[str, Metric], *, num_prompts: int) -> None:
    """Count what a step with so many prompts has generated."""
    progress, generated = session.state.progress, metrics["tokens/generated"].value
    progress.num_generated_tokens += round(generated)
    progress.tokens_per_prompt = generated / num_prompts


def end_if_budget_is_spent(session: Session, metrics: Mapping[str, Metric]) -> None:
    """End the run after this step if its tokens are used up, or a completion's mean KL has passed its budget."""
    tokens = token_budget(session)
    if tokens is not None and tokens.is_spent:
        session.state.progress.is_over = True
        session.recorder.event(
            session.state.progress.step,
            "token_budget",
            f"{tokens.num_spent} tokens are generated, of train.max_generated_tokens={tokens.limit}: the run ends after step "
            f"{session.state.progress.step}",
        )
    budget, found = session.recipe.algorithm.kl_budget, metrics.get("kl/sequence")
    if budget and found is not None and found.value > budget:
        session.state.progress.is_over = True
        session.recorder.event(
            session.state.progress.step,
            "kl_budget",
            f"the policy is {found.value:.3g} nats a completion from the reference, more than algorithm.kl_budget={budget}: "
            f"the run ends after step {session.state.progress.step}",
        )
