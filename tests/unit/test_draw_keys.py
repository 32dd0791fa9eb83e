"""A prompt that is drawn twice in one step is sampled with other random numbers."""

from __future__ import annotations

from covey.rollout import RolloutSpec, draw_keys
from covey.sampling import Sampling, rollout_keys
from covey.types import Message, Prompt

SPEC = RolloutSpec(sampling=Sampling(), prompts_per_step=3, group_size=2, max_draws=1, keeps=bool, has_signal=bool, seed=5)


def prompt(name: str) -> Prompt:
    return Prompt(prompt_id=name, messages=(Message(role="user", content=name),))


def test_a_prompt_that_comes_again_in_a_draw_does_not_repeat_its_completions() -> None:
    first, other, again = draw_keys([prompt("a"), prompt("b"), prompt("a")], SPEC, step=1, draw=0)
    assert len({*first, *other, *again}) == 6


def test_the_first_occurrence_keeps_the_keys_it_has_alone() -> None:
    [_, keys, _] = draw_keys([prompt("b"), prompt("a"), prompt("a")], SPEC, step=3, draw=1)
    assert keys == rollout_keys(5, "rollout", step=3, draw=1, prompt_id="a", group_size=2)
