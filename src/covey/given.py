"""Groups of completions that a task brings along, in the form that sampled ones have."""

from __future__ import annotations

from collections.abc import Sequence

from covey.models.policy import Policy
from covey.types import Completion, CoveyError, Group, Prompt, Rollout, Score


def given_groups(prompts: Sequence[Prompt], *, policy: Policy) -> list[Group]:
    """Return a group for each prompt: its completions with their rewards, each closed by the model's end token."""
    return [
        Group(prompt=prompt, rollouts=tuple(_rollout(prompt, text, reward, policy=policy) for text, reward in prompt.given))
        for prompt in prompts
    ]


def refuse_unfit_completions(prompts: Sequence[Prompt], *, policy: Policy, group_size: int, max_new_tokens: int) -> None:
    """Raise if a given completion is too long, or a prompt has not as many of them as a group.

    Raises:
        CoveyError: naming the prompt and what to set.
    """
    for prompt in prompts:
        if len(prompt.given) != group_size:
            raise CoveyError(
                f"train.group_size={group_size}, and prompt {prompt.prompt_id!r} brings {len(prompt.given)} completions: set "
                f"train.group_size={len(prompt.given)}"
            )
    longest, prompt_id = max(
        (len(completion_ids(text, policy)), prompt.prompt_id) for prompt in prompts for text, _ in prompt.given
    )
    if longest > max_new_tokens:
        raise CoveyError(
            f"a completion given for prompt {prompt_id!r} has {longest} tokens, and none is cut: set "
            f"sampling.max_new_tokens={longest}, or leave it out of the data"
        )


def completion_ids(text: str, policy: Policy) -> list[int]:
    """Return the tokens of a completion, its end token included."""
    ids = [int(token) for token in policy.tokenizer.encode(text, add_special_tokens=False)]
    own = policy.tokenizer.eos_token_id
    return [*ids, own if own in policy.stop_ids else min(policy.stop_ids)]


def _rollout(prompt: Prompt, text: str, reward: float, *, policy: Policy) -> Rollout:
    ids = completion_ids(text, policy)
    return Rollout(
        prompt_ids=policy.encode(prompt.messages),
        # Nobody has sampled it: its log-probs stand for nothing, and no one reads them.
        completion=Completion(token_ids=ids, logprobs=[0.0] * len(ids), finish_reason="stop", policy_version=0),
        text=text,
        reward=Score(value=reward),
        gold=None,
    )
