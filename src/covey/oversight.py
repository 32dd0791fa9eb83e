"""The guard inside a run: the audit before it, what is measured for it and told to it, and how its actions are carried out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from covey.audit import audit, compares_answers
from covey.checkpoint import load_checkpoint, verify_checkpoint
from covey.evaluate import MODES, Mode, Row
from covey.guard.findings import audit_message
from covey.guard.replay import look_of, step_of
from covey.guard.watch import Action
from covey.metrics import Metric, metric_values
from covey.persistence import restore_weights
from covey.rewards.base import Rewarder
from covey.rollout import SampledGroups, rollout_rows
from covey.saving import settle
from covey.self_checks import load_and_prove_weights
from covey.session import Session
from covey.types import Prompt

PARTS_OF_GUARD = ("guard", "twins", "honeypots")
"""Measured for the guard alone, at the training temperature."""


def audit_reward(session: Session) -> None:
    """Attack the reward for some seconds, and record what was found. Nothing else follows from it: the user decides.

    Questions without an answer are left alone, and so are rewards that compare answers: which completions ought to be paid
    there, no attack can know.
    """
    is_asked_for = session.recipe.reward.audit and session.ranks.is_main
    has_answers = any(prompt.answer is not None for prompt in session.task.train)
    if not is_asked_for or not has_answers or compares_answers(session.rewarder.proxy):
        return
    result = audit(session.task, Rewarder(proxy=session.rewarder.proxy, gold=session.rewarder.gold), short=True)
    hint = "" if result.verdict == "pass" else ". More: covey audit"
    kind = "audit_failed" if result.verdict == "fail" else "audit"
    session.recorder.event(session.state.progress.step, kind, audit_message(result) + hint)


def parts_to_measure(session: Session) -> tuple[str, ...]:
    """Return the parts that an evaluation during training covers: what checkpoints are chosen on, and what the guard sees."""
    return ("choose", *(PARTS_OF_GUARD if session.guard is not None else ()))


def modes_of(part: str) -> Sequence[Mode]:
    """Return how a part is sampled."""
    return ("sampled",) if part in PARTS_OF_GUARD else MODES


def questions_of(session: Session, part: str) -> Sequence[Prompt]:
    """Return the questions of a part, as many as the recipe asks for.

    A twin goes by the id of its question, and so is drawn with the same random numbers.
    """
    task, most = session.task, session.recipe.evaluation.num_prompts
    if part == "honeypots":
        return task.honeypots[:most]
    if part == "twins":
        ids = [prompt.prompt_id for prompt in task.held_out.get("guard", ())[:most]]
        return [dataclasses.replace(task.twins[name], prompt_id=name) for name in ids if name in task.twins]
    return task.held_out.get(part, ())[:most]


def show_look(session: Session, *, part: str, mode: Mode, rows: Sequence[Row]) -> None:
    """Tell the guard of an evaluation."""
    if session.guard is not None:
        step = session.state.progress.step
        look = look_of(rows, step=step, part=part, mode=mode, reward_range=session.success)
        session.guard.looks.append(look)


def oversee_step(session: Session, sampled: SampledGroups, metrics: Mapping[str, Metric]) -> None:
    """Tell the guard of the training step that has just been finished, and do what it asks for.

    It sees only steps whose completions are saved: what a run that goes on, or a replay, can see as well.
    """
    step = session.state.progress.step
    if session.guard is None:
        return
    if is_due(step, session.recipe.checkpoint.rollouts_every):
        values, rows = metric_values(metrics), rollout_rows(sampled)
        session.guard.steps.append(step_of(rows, step=step, metrics=values, reward_range=session.success))
    judge(session)


def judge(session: Session) -> None:
    """Record what the guard has to say, and do what follows from it: each action once, however many detectors ask for it."""
    judgements = session.guard.judge() if session.guard is not None else []
    for judgement in judgements:
        session.recorder.guard(session.state.progress.step, judgement)
    asked = {judgement.action for judgement in judgements}
    for action, carry_out in CARRY_OUT.items():
        if action in asked:
            carry_out(session)


def raise_beta(session: Session) -> None:
    """Multiply the coefficient of the KL term by the recipe's factor, unless the run ends."""
    if session.state.progress.is_over:
        return
    learner = session.state.learner
    before, factor = learner.coefficients.beta, session.recipe.guard.beta_factor
    learner.coefficients = dataclasses.replace(learner.coefficients, beta=before * factor)
    _say(session, f"the guard raises algorithm.beta from {before:.3g} to {before * factor:.3g}")


def stop(session: Session) -> None:
    """End the run after this step, unless it ends anyway."""
    if not session.state.progress.is_over:
        session.state.progress.is_over = True
        _say(session, f"the guard ends the run after step {session.state.progress.step}")


def roll_back(session: Session) -> None:
    """End the run with the weights of the checkpoint whose held-out gold score is the highest."""
    progress, state = session.state.progress, session.state
    progress.is_over = True
    best = session.guard.best_step() if session.guard is not None else None
    if best is None or best == progress.step:
        _say(session, f"the guard ends the run after step {progress.step}: no earlier checkpoint has a higher gold score")
        return
    settle(session)
    path = session.shared.checkpoint_of(best)
    if problems := verify_checkpoint(path):
        _say(session, f"the guard ends the run; its best checkpoint, of step {best}, cannot be used: {'; '.join(problems)}")
        return
    restore_weights(load_checkpoint(path), state)
    progress.policy_version += 1
    load_and_prove_weights(session.engine, state.policy, progress.policy_version, ranks=session.ranks)
    _say(session, f"the guard ends the run after step {progress.step} with the weights of step {best}, its best by gold")


def _say(session: Session, message: str) -> None:
    session.recorder.event(session.state.progress.step, "guard_action", message)


CARRY_OUT: Mapping[Action, Callable[[Session], None]] = {"roll_back": roll_back, "stop": stop, "raise_beta": raise_beta}
"""Actions that do more than speak. Going back comes first: what another detector would merely stop goes back all the same."""


def is_due(step: int, every: int) -> bool:
    """Return whether something that happens each `every` steps happens after `step`; never for 0."""
    return every > 0 and step % every == 0


def is_best_so_far(session: Session) -> bool:
    """Return whether the present weights have the highest held-out gold score of the run, and may be gone back to."""
    guard, step = session.guard, session.state.progress.step
    return guard is not None and guard.may_roll_back and guard.best_step() == step
