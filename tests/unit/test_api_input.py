"""What is given to Covey from Python: prompts, held-out questions, options; what is wrong is named before a run is written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.digits import HELD_OUT, SMALL, digit_share, starts_with_digit, weights_of
from tests.short_runs import QUESTIONS, options, train

import covey
from covey.api import place_option
from covey.tasks.from_python import PromptLike, make_prompt, task_of_prompts
from covey.types import CoveyError

pytestmark = pytest.mark.usefixtures("in_model_directory")


# Prompts


def test_ids_are_stable_and_differ_by_question_and_answer() -> None:
    ids = [make_prompt(prompt, 0).prompt_id for prompt in ("a", {"prompt": "a"}, {"prompt": "a", "answer": 1}, "b")]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert make_prompt("a", 0) == make_prompt("a", 7)


@pytest.mark.parametrize("given", ["mine", 17, 0])
def test_a_given_id_is_kept(given: Any) -> None:
    assert make_prompt({"prompt": "a", "id": given}, 0).prompt_id == str(given)


def test_the_ids_are_those_of_earlier_versions() -> None:
    """A resumed run finds its prompts by them."""
    assert make_prompt("a", 0).prompt_id == "b39abaec62743c12"
    assert make_prompt({"prompt": "a", "answer": 1}, 0).prompt_id == "80a1550dd6c521ed"
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert make_prompt({"messages": turns}, 0).prompt_id == "74674c2f30d8dad2"


def test_other_keys_of_a_row_become_columns() -> None:
    prompt = make_prompt({"prompt": "a", "answer": 1, "id": "x", "solution": "s", "level": 3, "question": "a?"}, 0)
    assert dict(prompt.columns) == {"solution": "s", "level": 3, "question": "a?"}
    assert (prompt.prompt_id, prompt.answer, prompt.text) == ("x", 1, "a")


def test_a_prompt_may_be_a_text_or_messages() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert make_prompt({"prompt": turns}, 0) == make_prompt({"messages": turns}, 0)
    assert [make_prompt(given, 0).is_conversation for given in ("a", {"prompt": "a"}, {"prompt": turns})] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "a"}, r"prompts\[0\] has the keys \['promt'\]; rename 'promt' to 'prompt'"),
        ({"question": "a", "answer": 1}, r"rename 'question' to 'prompt': give a text, or a mapping with 'prompt'"),
        ({"problem": "a", "solution": "b"}, r"rename 'problem' to 'prompt'"),
        ({"prompt": "a", "anwser": 1}, r"rename 'anwser' to 'answer'"),
        ({"Prompt": "a", "Answer": 1}, r"rename 'Prompt' to 'prompt', 'Answer' to 'answer'"),
        ({"prompt": "a", "ID": 1}, r"rename 'ID' to 'id'"),
        ({"mesages": []}, r"rename 'mesages' to 'messages'"),
        ({"solution": "a"}, r"has the keys \['solution'\]; give a text, or a mapping with 'prompt' or 'messages'"),
        ({"prompt": None}, r"has None where a text is wanted"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            r"where a text is wanted; Covey trains on texts alone",
        ),
        ({"prompt": []}, r"has no messages"),
    ],
)
def test_a_row_without_a_question_or_with_a_slip_is_refused_with_the_remedy(row: dict[str, Any], message: str) -> None:
    with pytest.raises(CoveyError, match=message):
        make_prompt(row, 0)


@pytest.mark.parametrize("column", ["answers", "message", "prompt_id", "idx", "source", "prompts", "answer_type", "solution"])
def test_a_column_with_a_similar_name_is_one(column: str) -> None:
    assert dict(make_prompt({"prompt": "a", column: 1}, 0).columns) == {column: 1}


# Held-out questions


def task(prompts: Sequence[PromptLike], held_out: Sequence[PromptLike] | None = None) -> Any:
    return task_of_prompts(prompts, held_out, digit_share, None, (0.0, 1.0))


def test_without_held_out_a_fifth_is_kept_from_training() -> None:
    made = task(QUESTIONS)
    parts = {part: {prompt.text for prompt in prompts} for part, prompts in made.held_out.items()}
    trained = {prompt.text for prompt in made.train}
    assert {part: len(questions) for part, questions in parts.items()} == {"choose": 2, "guard": 2, "test": 2}
    assert len(trained) == 24
    assert set.union(trained, *parts.values()) == set(QUESTIONS)


def test_the_split_depends_on_the_questions_and_not_on_their_order() -> None:
    forwards, backwards = task(QUESTIONS), task(QUESTIONS[::-1])
    assert forwards.held_out == backwards.held_out
    assert forwards.train == backwards.train


def test_the_split_is_not_the_end_of_the_list() -> None:
    held_out = {prompt.text for part in task(QUESTIONS).held_out.values() for prompt in part}
    assert held_out not in (set(QUESTIONS[:6]), set(QUESTIONS[-6:]))


def test_given_held_out_questions_are_measured_and_all_prompts_trained_on() -> None:
    made = task(QUESTIONS, HELD_OUT)
    assert [prompt.text for prompt in made.train] == QUESTIONS
    assert [prompt.text for prompt in made.held_out["choose"]] == HELD_OUT


def test_few_prompts_are_held_out_too_or_it_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """A fifth of ten questions is two; a run that measures nothing must not look like one that does."""
    run = covey.train(model="model", prompts=QUESTIONS[:10], reward=digit_share, **options(run__name="few"))
    out, err = capfd.readouterr()
    assert run.evaluation or re.search(r"no question is held out|nothing is held out", out + err)


def test_a_held_out_question_that_is_trained_on_is_refused() -> None:
    with pytest.raises(CoveyError, match=r"twice|holds training question"):
        train(prompts=QUESTIONS, held_out=[QUESTIONS[3]], reward=digit_share)
    with pytest.raises(CoveyError, match="holds training question"):
        train(prompts=QUESTIONS, held_out=[{"prompt": QUESTIONS[3], "answer": 7}], reward=digit_share)


# Rewards


def digit_shares(prompts: list[str], completions: list[str], own_words: list[str], **kwargs: Any) -> list[float]:
    """The reward of `digit_share`, written for TRL; it fails if a column comes with another prompt's completion."""
    assert prompts == own_words
    return [digit_share(completion) for completion in completions]


def test_a_run_with_a_reward_for_trl_is_the_run_with_the_reward_for_covey() -> None:
    rows = [{"prompt": question, "own_words": question} for question in QUESTIONS]
    theirs = train(prompts=rows, reward=digit_shares, num_steps=2)
    ours = train(prompts=QUESTIONS, reward=digit_share, num_steps=2)
    assert [row["reward/error_frac"] for row in theirs.metrics] == [0.0, 0.0]
    assert weights_of(theirs.path) == weights_of(ours.path)


def test_a_run_with_a_list_of_rewards_logs_each_of_them() -> None:
    [metrics] = train(prompts=QUESTIONS, reward=[digit_share, starts_with_digit], num_steps=1).metrics
    parts = [metrics["reward/part/digit_share"], metrics["reward/part/starts_with_digit"]]
    assert metrics["reward/mean"] == pytest.approx(sum(parts))


# Options


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("num_steps", ("train", "num_steps")),
        ("train__num_steps", ("train", "num_steps")),
        ("beta", ("algorithm", "beta")),
        ("checkpoint__every", ("checkpoint", "every")),
        ("samples_per_prompt", ("evaluation", "samples_per_prompt")),
    ],
)
def test_an_option_finds_its_section(key: str, expected: tuple[str, str]) -> None:
    assert place_option(key) == expected


def test_both_spellings_of_an_override_do_the_same() -> None:
    short = train(prompts=QUESTIONS, reward=digit_share, num_steps=2)
    spelled_out = {f"{section}__{option}": value for key, value in SMALL.items() for section, option in [place_option(key)]}
    changes: dict[str, Any] = spelled_out | {"train__num_steps": 2, "model__name": "model"}
    long = covey.train(prompts=QUESTIONS, reward=digit_share, quiet=True, **changes)
    assert (len(short.metrics), len(long.metrics)) == (2, 2)
    assert weights_of(short.path) == weights_of(long.path)


# Wrong input


def runs() -> list[str]:
    return sorted(os.listdir("runs")) if Path("runs").exists() else []


def takes_text(text: str) -> float:
    return 0.0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no reward": ({"prompts": QUESTIONS}, r"prompts were given without a reward; give reward=function"),
    "no prompts": ({"reward": digit_share}, r"reward and gold functions go with prompts"),
    "held out alone": ({"held_out": QUESTIONS}, r"held_out was given without prompts"),
    "empty": ({"prompts": [], "reward": digit_share}, r"prompts is empty"),
    "duplicate": ({"prompts": [*QUESTIONS, QUESTIONS[4]], "reward": digit_share}, r"occurs twice"),
    "duplicate id": (
        {"prompts": [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "reward": digit_share},
        r"prompt id 'x' occurs twice",
    ),
    "unknown key": ({"prompts": [{"question": "a"}], "reward": digit_share}, r"prompts\[0\] has the keys \['question'\]"),
    "both": ({"prompts": ["a", {"prompt": "a", "messages": []}], "reward": digit_share}, r"prompts\[1\] has the keys"),
    "not a prompt": ({"prompts": ["a", 5], "reward": digit_share}, r"prompts\[1\]"),
    "turn without role": ({"prompts": [{"messages": [{"content": "a"}]}], "reward": digit_share}, r"prompts\[0\].*role"),
    "no turns": ({"prompts": [{"messages": []}], "reward": digit_share}, r"prompts\[0\]"),
    "parameter": (
        {"prompts": QUESTIONS, "reward": takes_text},
        r"reward 'takes_text' has a parameter 'text'.*completion, answer",
    ),
    "column of some": (
        {"prompts": [{"prompt": "a", "id": "x", "text": "b"}, {"prompt": "b", "id": "y"}], "reward": takes_text},
        r"'takes_text' has a parameter 'text', but prompt 'y' has no column of that name",
    ),
    "gold parameter": ({"prompts": QUESTIONS, "reward": digit_share, "gold": takes_text}, r"'takes_text' has a parameter"),
    "not a function": ({"prompts": QUESTIONS, "reward": "digit_share"}, r"reward"),
    "ambiguous": ({"prompts": QUESTIONS, "reward": digit_share, "name": "x"}, r"option 'name'.*run__name, model__name"),
    "ambiguous every": ({"prompts": QUESTIONS, "reward": digit_share, "every": 2}, r"evaluation__every, checkpoint__every"),
    "unknown option": ({"prompts": QUESTIONS, "reward": digit_share, "num_stps": 2}, r"option 'num_stps'.*no section"),
    "unknown section": ({"prompts": QUESTIONS, "reward": digit_share, "trian__num_steps": 2}, r"trian"),
    "unknown in section": ({"prompts": QUESTIONS, "reward": digit_share, "train__steps": 2}, r"train\.steps: there is no such"),
    "wrong value": ({"prompts": QUESTIONS, "reward": digit_share, "group_size": 1}, r"train\.group_size=1: .*at least 2"),
    "wrong type": ({"prompts": QUESTIONS, "reward": digit_share, "learning_rate": "fast"}, r"train\.learning_rate='fast'"),
    "no recipe": ({"prompts": QUESTIONS, "reward": digit_share, "recipe": "arithmetics"}, r"recipe 'arithmetics' is neither"),
    "no model": ({"prompts": QUESTIONS, "reward": digit_share, "model": "./nowhere"}, r"model\.name='\./nowhere' is neither"),
    "no tracker": ({"prompts": QUESTIONS, "reward": digit_share, "sinks": ("scribe",)}, r"scribe"),
    "too long": ({"prompts": ["word " * 3000], "held_out": [], "reward": digit_share}, r"prompt '\w+' has \d+ tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(case: str) -> None:
    arguments, message = WRONG[case]
    with pytest.raises(CoveyError, match=message):
        train(**arguments)


@pytest.mark.parametrize(
    "case", ["no prompts", "held out alone", "duplicate", "wrong value", "no model", "no tracker", "too long"]
)
def test_wrong_input_leaves_no_run_behind(case: str) -> None:
    """Else the next try would be `run-2`, or be refused because the name is taken."""
    arguments, _ = WRONG[case]
    before = runs()
    with pytest.raises(CoveyError):
        train(**arguments)
    assert runs() == before


def test_an_unusable_run_directory_is_not_written_to() -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    with pytest.raises(CoveyError, match="taken is not empty: choose another name"):
        train(prompts=QUESTIONS, reward=digit_share, run__directory=".", run__name="taken")
    assert os.listdir("taken") == ["file"]
