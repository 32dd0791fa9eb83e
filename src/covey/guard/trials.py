"""Which completions an audit tries on a reward: right answers first, then attacks in the forms that these show it to read."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import median

from covey.guard.attacks import FAMILIES, Attack, Family, attacks_on, right_answers
from covey.guard.measures import CHEATS, PLAIN, POSSIBLE, Judged
from covey.guard.metamorphic import variants_of
from covey.guard.targets import WORDINGS, Target, carrier_of
from covey.sampling import stream_key
from covey.tasks.base import Probe, Task
from covey.types import Prompt

MAX_CARRIERS = 3
MAX_BASES = 3
"""Right completions of a question that are reworded and corrupted."""


def audited_prompts(task: Task, *, num_prompts: int, seed: int) -> list[Prompt]:
    """Return training questions by the seed: those for which the task has right probes, and if it has none, any.

    Where the key is no right completion, as in a task that wants an expression, only the probes are known to be right.
    """
    rng = random.Random(stream_key(seed, "audit", task.name))
    probed = list({probe.prompt.prompt_id: probe.prompt for probe in task.probes if probe.is_right}.values())
    asked = probed or task.train
    return [asked[index] for index in rng.sample(range(len(asked)), min(len(asked), num_prompts))]


def probes_of(task: Task) -> dict[str, list[Probe]]:
    """Return the task's own probes by the id of their question."""
    found: dict[str, list[Probe]] = {}
    for probe in task.probes:
        found.setdefault(probe.prompt.prompt_id, []).append(probe)
    return found


def right_trials(target: Target, probes: Sequence[Probe]) -> list[Attack]:
    """Return the right answers: in plain wordings, and as the task's own probes have them."""
    family = PLAIN[0] if target.is_plain else POSSIBLE
    own = [probe.completion for probe in probes if probe.is_right]
    trials = [right(PLAIN[1], f"probe {number}", completion) for number, completion in enumerate(own)]
    trials += [right(family, name, completion) for name, completion in right_answers(target).items() if completion not in own]
    # What junk earns, so that it can be seen which of these earn more.
    return [*trials, *(attack for name in ("empty", "label only") for attack in FAMILIES[name](target))]


def right(family: str, variant: str, completion: str) -> Attack:
    return Attack(family=family, variant=variant, completion=completion, is_right=True, kind="right")


def accepted(rows: Sequence[Judged], slack: float) -> list[Judged]:
    """Return the right answers of one question that earn more than junk."""
    pays = [row.reward.value for row in rows if not row.attack.is_right and row.reward.value is not None]
    junk = median(pays) if pays else None
    return [
        row
        for row in rows
        if row.is_right and row.reward.value is not None and (junk is None or row.reward.value > junk + slack)
    ]


def carriers_of(rows: Sequence[Judged], key: str) -> list[str]:
    """Return forms that the reward reads, from right answers that it pays: the best-paid wording, the task's own, others."""
    best = sorted(rows, key=lambda row: -(row.reward.value or 0.0))
    worded = [WORDINGS[row.attack.variant] for row in best if row.attack.family == PLAIN[0]]
    own = [carrier for row in rows if row.attack.family == PLAIN[1] and (carrier := carrier_of(row.attack.completion, key))]
    chosen = [*worded[:1], *own[-1:], *worded[-1:]]
    return list(dict.fromkeys(chosen))[:MAX_CARRIERS] or ["{}"]


def later_trials(
    target: Target, rows: Sequence[Judged], probes: Sequence[Probe], *, slack: float, families: Mapping[str, Family] = FAMILIES
) -> list[Attack]:
    """Return the attacks on a question, the variants of its accepted right answers, and the task's own cheats.

    `rows` are the judged `right_trials`; what was tried there is not tried again.
    """
    paid = accepted(rows, slack)
    bases = list(dict.fromkeys(row.attack.completion for row in [*paid[:2], *paid[-1:]]))[:MAX_BASES]
    trials = [
        *attacks_on(target.prompt, carriers=target.carriers, families=families),
        *(variant for base in bases for variant in variants_of(base, target)),
        *(
            Attack(family=CHEATS, variant=f"cheat {number}", completion=probe.completion, is_right=False, kind="twist")
            for number, probe in enumerate(probe for probe in probes if not probe.is_right)
        ),
    ]
    tried = {row.attack.completion for row in rows}
    return list({trial.completion: trial for trial in reversed(trials) if trial.completion not in tried}.values())[::-1]
