"""The detectors by name: what each looks for, what it needs, what is done when it speaks, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from covey.guard.answers import flat_groups, honeypots, metamorphic_gap, modal_answer, pass_at_k_shrinkage
from covey.guard.entropy import entropy_collapse
from covey.guard.exploit import exploit_drift, exploit_mass
from covey.guard.history import Finding, History
from covey.guard.learning import format_farming, general_damage, length_exploitation
from covey.guard.regression import collapse, gold_regression, past_the_peak

DefaultAction = Literal["note", "warn", "raise_beta", "stop", "roll_back"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Detector:
    """One row of the table. Its name is its key, and what its findings carry."""

    title: str
    """What it finds, as a heading of a report has it."""
    find: Callable[[History], Finding | None]
    """What it says at the newest look or step; None: nothing. Called on every prefix of a history, it replays the run.

    It says the same again until a newer look or step comes, and for as long as what it has found goes on.
    """
    watches: Literal["looks", "steps"]
    """What brings it news: an evaluation, or each training step."""
    needs: str
    """What must be recorded. Without it the detector says nothing."""
    action: DefaultAction
    """What is done at a critical finding if the user chooses nothing else."""
    error_rate: str
    """The chance of a finding in a run that has nothing to be found, and what it is shared among."""


_GUARD_LOOKS = "gold and proxy on part guard, at step 0 too, with at least 20 questions"
_BOTH_PARTS = "gold and proxy on parts choose and guard, at step 0 too, with at least 20 questions each"
_SHARED = "1 % a run, each of the K planned looks taking 1 / K of it"

_REWARD: dict[str, Detector] = {
    "exploit_mass": Detector(
        title="Held-out answers earn reward that gold denies",
        find=exploit_mass,
        watches="looks",
        needs=_GUARD_LOOKS,
        action="stop",
        error_rate=_SHARED,
    ),
    "exploit_drift": Detector(
        title="Training rollouts earn reward that gold denies",
        find=exploit_drift,
        watches="steps",
        needs="gold on the training rollouts: 20 steps with at least 20 rollouts that gold fails, and more steps after these",
        action="stop",
        error_rate="1 % a run of up to 400 steps, all of them together; again for each doubling of that length",
    ),
    "gold_regression": Detector(
        title="Gold falls while the proxy holds",
        find=gold_regression,
        watches="looks",
        needs=_BOTH_PARTS,
        action="roll_back",
        error_rate=_SHARED,
    ),
    "collapse": Detector(
        title="Gold falls, and the proxy with it",
        find=collapse,
        watches="looks",
        needs=_BOTH_PARTS,
        action="warn",
        error_rate=f"{_SHARED}, where gold does not fall",
    ),
    "past_the_peak": Detector(
        title="Moved past the distance where gold is highest",
        find=past_the_peak,
        watches="looks",
        needs="kl/sequence, and gold on parts choose and guard at step 0 and at 6 later looks or more",
        action="warn",
        error_rate=f"{_SHARED}, where gold does not fall",
    ),
}
"""Reward against gold."""

_ANSWERS: dict[str, Detector] = {
    "honeypots": Detector(
        title="Questions with a wrong key pass",
        find=honeypots,
        watches="looks",
        needs="the proxy on part honeypots, at step 0 too",
        action="stop",
        error_rate="0.1 % a run, each of the K planned looks taking 1 / K of it",
    ),
    "modal_answer": Detector(
        title="Different questions get the same answer",
        find=modal_answer,
        watches="looks",
        needs="extracted and right answers on part guard, at step 0 and at 2 later looks, with at least 30 questions",
        action="warn",
        error_rate=_SHARED,
    ),
    "pass_at_k_shrinkage": Detector(
        title="One try is better, and several tries are worse",
        find=pass_at_k_shrinkage,
        watches="looks",
        needs="gold on at least 16 sampled answers to each of 30 questions of part guard, at step 0 too",
        action="note",
        error_rate="about 5 % a run in which pass@k does not fall, each of the K planned looks taking 1 / K of it",
    ),
    "metamorphic_gap": Detector(
        title="Questions are answered better than their twins",
        find=metamorphic_gap,
        watches="looks",
        needs="gold on parts guard and twins, at step 0 too, with at least 30 questions each",
        action="warn",
        error_rate=_SHARED,
    ),
    "flat_groups": Detector(
        title="Groups in which all rewards are equal",
        find=flat_groups,
        watches="steps",
        needs="10 training steps",
        action="note",
        error_rate="none: it counts",
    ),
}
"""What the answers say."""

_LEARNING: dict[str, Detector] = {
    "length_exploitation": Detector(
        title="Wrong answers are paid for being long",
        find=length_exploitation,
        watches="steps",
        needs="gold on the training rollouts of 30 steps, from at least 20 prompts in each 10 of them",
        action="warn",
        error_rate="below 0.1 % in 600 steps in which length does not pay",
    ),
    "format_farming": Detector(
        title="A part of the reward is learned instead of the task",
        find=format_farming,
        watches="steps",
        needs="a reward of 2 parts or more, and gold on the training rollouts of 40 steps",
        action="warn",
        error_rate="at most 0.4 % for each 30 steps in which the pay of wrong answers does not change",
    ),
    "entropy_collapse": Detector(
        title="Nothing left to try, and the task not learned",
        find=entropy_collapse,
        watches="steps",
        needs="gold on the training rollouts, and entropy/mean or extracted answers, of 20 steps",
        action="warn",
        error_rate="none is claimed: it compares means with thresholds",
    ),
    "general_damage": Detector(
        title="Neutral text is read worse",
        find=general_damage,
        watches="steps",
        needs="damage/nll at two steps",
        action="warn",
        error_rate="none: the text is fixed, and the thresholds are conventions",
    ),
}
"""What is learned besides the task, and what is forgotten."""

DETECTORS: dict[str, Detector] = _REWARD | _ANSWERS | _LEARNING
