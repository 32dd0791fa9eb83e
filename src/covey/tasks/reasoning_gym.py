"""Questions of the package reasoning-gym, judged by exact match.

Its own scores pay part of a point to long lists that contain the answer, and some to any text at all; under group-relative
advantages that is full pay for junk. Here an answer is extracted and must be the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

from covey.rewards.base import FunctionReward, Sample, score_of
from covey.rewards.extract import normalise
from covey.sampling import stream_key
from covey.tasks.base import PARTS, TRUE_ANSWER, Part, Probe, Task
from covey.tasks.wording import is_cut
from covey.types import CoveyError, Message, Prompt, Score

HELD_OUT_SHARE = 0.2
MAX_HELD_OUT = 200
NUM_HONEYPOTS = 40
NUM_PROBED = 20

TRAIN_SEED = 1_000_000_000
HELD_OUT_SEED = 0
"""Question i of a data set with seed s is drawn with the seed s + i. So two data sets share questions unless their seeds lie
further apart than they have questions: MAX_QUESTIONS keeps them apart."""
MAX_QUESTIONS = 100_000_000

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class GymOptions:
    """Which questions. The keys are those of a recipe's [task]."""

    generator: str
    """A data set of reasoning-gym, such as chain_sum."""
    generator_options: Mapping[str, Any] = field(default_factory=dict)
    """What its configuration takes, such as {"max_terms": 3}."""
    num_questions: int = 5000
    """Drawn for training; fewer remain if the data set repeats itself."""
    template: str = "{prompt}\nGive the final answer, and nothing else, between <answer> and </answer>."


def tagged_answer(sample: Sample) -> Score:
    """Return 1 if the last <answer></answer> of the completion, or the whole of one without, is the key, else 0."""
    text = normalise(sample.completion)
    found = _TAG.findall(text)
    answer = plain(found[-1] if found else text)
    return score_of(float(answer == plain(str(sample.prompt.answer))), extracted=answer[:200])


def only_tagged_answer(sample: Sample) -> Score:
    """Return 1 if the completion has exactly one <answer></answer>, and in it the key, else 0."""
    text = normalise(sample.completion)
    found = _TAG.findall(text)
    if len(found) != 1 or text.count("<answer>") != 1 or text.count("</answer>") != 1 or is_cut(sample.completion):
        return score_of(0.0)
    return score_of(float(plain(found[0]) == plain(str(sample.prompt.answer))), extracted=plain(found[0])[:200])


def plain(text: str) -> str:
    """Return the text in NFKC with single blanks between its words, by which answers are compared. Case counts."""
    return " ".join(normalise(text).split())


PROXY = FunctionReward(name="tagged_answer", score=tagged_answer, runs_inline=True)
GOLD = FunctionReward(name="only_tagged_answer", score=only_tagged_answer, runs_inline=True)


def gym_options(options: Mapping[str, Any]) -> GymOptions:
    """Return the options of a recipe's [task], checked.

    Raises:
        CoveyError: one is unknown, missing or wrong.
    """
    known = [each.name for each in fields(GymOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise CoveyError(f"task.{unknown[0]} is no option of task.name='reasoning_gym'; it has {', '.join(known)}")
    if not options.get("generator"):
        raise CoveyError("task.name='reasoning_gym' needs task.generator, such as 'chain_sum'")
    chosen = GymOptions(**options)
    if not 10 <= chosen.num_questions <= MAX_QUESTIONS:
        raise CoveyError(f"task.num_questions={chosen.num_questions}: give a number from 10 to {MAX_QUESTIONS}")
    if "{prompt}" not in chosen.template:
        raise CoveyError(f"task.template={chosen.template!r} has no {{prompt}} in it, where the question goes")
    if reserved := sorted({"seed", "size"} & set(chosen.generator_options)):
        raise CoveyError(f"task.generator_options has {reserved[0]!r}, which Covey sets: held-out and training seeds are apart")
    return chosen


def reasoning_gym_task(options: Mapping[str, Any]) -> Task:
    """Return the task of a reasoning-gym data set.

    Raises:
        CoveyError: the package is not installed, an option is wrong, or the data set has too few different questions.
    """
    chosen = gym_options(options)
    gym = imported_gym()
    label = f"reasoning_gym/{chosen.generator}"
    train = drawn(gym, chosen, seed=TRAIN_SEED, size=chosen.num_questions)
    candidates = drawn(gym, chosen, seed=HELD_OUT_SEED, size=5 * MAX_HELD_OUT)
    num_different = len({*train, *candidates})
    size = min(MAX_HELD_OUT, int(num_different * HELD_OUT_SHARE) // len(PARTS), len(candidates) // len(PARTS))
    ranked = sorted(candidates, key=lambda words: stream_key(0, "split", label, words))[: size * len(PARTS)]
    withheld = set(ranked)
    prompts = [make_prompt(label, item, chosen.template) for words, item in train.items() if words not in withheld]
    if size < 1 or not prompts:
        raise CoveyError(
            f"task.generator={chosen.generator!r} has {num_different} different questions in {chosen.num_questions}: too few "
            "to hold any out. Make it harder with task.generator_options"
        )
    held_out: dict[Part, list[Prompt]] = {
        part: [make_prompt(label, candidates[words], chosen.template) for words in ranked[index * size : (index + 1) * size]]
        for index, part in enumerate(PARTS)
    }
    num_left = len(prompts)
    few = f"{label}: {num_left} of {chosen.num_questions} drawn questions are trained on; the others repeat one or are held out"
    return Task(
        name=label,
        train=prompts,
        held_out=held_out,
        proxy=PROXY,
        gold=GOLD,
        probes=[probe for prompt in prompts[:NUM_PROBED] for probe in probes(prompt)],
        honeypots=honeypots(held_out["guard"]),
        notes=[few] if num_left < chosen.num_questions else [],
    )


def imported_gym() -> ModuleType:
    """Return the package.

    Raises:
        CoveyError: it is not installed.
    """
    try:
        import reasoning_gym  # ty: ignore[import-not-found]
    except ImportError as error:
        raise CoveyError(
            f"task.name='reasoning_gym' needs the package reasoning-gym ({error}): pip install 'covey[reasoning-gym]'"
        ) from error
    return reasoning_gym


def drawn(gym: ModuleType, options: GymOptions, *, seed: int, size: int) -> dict[str, Mapping[str, Any]]:
    """Return the different questions of one data set by their words, in the order in which they are drawn.

    Raises:
        CoveyError: there is no such data set, or it does not take these options.
    """
    try:
        dataset = gym.create_dataset(options.generator, seed=seed, size=size, **options.generator_options)
    except (ValueError, TypeError, AssertionError) as error:
        raise CoveyError(f"task.generator={options.generator!r} cannot be made: {error}") from error
    found: dict[str, Mapping[str, Any]] = {}
    for index in range(size):
        item = dataset[index]
        if str(item["answer"]).strip():
            found.setdefault(plain(item["question"]), item)
    return found


def make_prompt(label: str, item: Mapping[str, Any], template: str) -> Prompt:
    """Return a question of a data set as a prompt; its id is a hash of its words."""
    words = plain(item["question"])
    content = template.replace("{prompt}", item["question"].strip())
    return Prompt(
        prompt_id=f"{label}/{stream_key(0, 'id', words):016x}",
        messages=(Message(role="user", content=content),),
        answer=str(item["answer"]),
        task=label,
        columns={"metadata": json.dumps(item.get("metadata", {}), default=str)},
    )


def honeypots(prompts: list[Prompt]) -> list[Prompt]:
    """Return questions with the key of another one; its true answer, in tags, earns nothing."""
    found: list[Prompt] = []
    for index, prompt in enumerate(prompts[:NUM_HONEYPOTS]):
        others = [
            other.answer for other in prompts[index + 1 :] + prompts[:index] if plain(other.answer) != plain(prompt.answer)
        ]
        if others:
            found.append(
                Prompt(
                    prompt_id=f"{prompt.prompt_id}/honeypot",
                    messages=prompt.messages,
                    answer=others[0],
                    task=prompt.task,
                    tags={TRUE_ANSWER: f"<answer>{prompt.answer}</answer>"},
                )
            )
    return found


def probes(prompt: Prompt) -> list[Probe]:
    """Return the tagged key, and cheats that must earn nothing."""
    tagged = f"<answer>{prompt.answer}</answer>"
    cheats = ["", "<answer></answer>", f"{tagged} {tagged}", f"<answer>{prompt.answer} or not</answer>", f"not {prompt.answer}"]
    return [
        Probe(prompt=prompt, completion=tagged, is_right=True),
        Probe(prompt=prompt, completion=f"It is clear.\n{tagged}", is_right=True),
        *(Probe(prompt=prompt, completion=completion, is_right=False) for completion in cheats),
    ]
