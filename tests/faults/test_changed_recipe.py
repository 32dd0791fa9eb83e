"""What may change between a run and its resumption: a list that is written down here, and nothing else unnoticed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.commands import SMALL, covey
from tests.digits import digit_share, leave_out_slow_parts, resume_digits, train_digits
from tests.processes import Finished

from covey.api import RESUMABLE_KEYS, refuse_changes
from covey.config import ConfigError, Recipe
from covey.monitor.run_directory import read_jsonl
from covey.rewards.base import as_reward
from covey.rewards.code_mark import code_mark, is_other_code

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # Values of any type stand for changed ones.

ALLOWED = {
    *("run.accept_reward_code", "run.num_threads", "run.watchdog_s", "run.sinks", "train.num_steps", "evaluation.every"),
    *("checkpoint.every", "checkpoint.keep", "checkpoint.rollouts_every"),
    *("guard.enabled", "guard.actions", "guard.beta_factor"),
}
KEYS = sorted(f"{section}.{option}" for section, options in Recipe().model_dump().items() for option in options)


def changed(recipe: Recipe, *keys: str) -> Recipe:
    """Return the recipe with another value for the keys, whatever type it has."""
    for key in keys:
        section, option = key.split(".")
        part = getattr(recipe, section).model_copy(update={option: "another"})
        recipe = recipe.model_copy(update={section: part})
    return recipe


def test_the_keys_that_may_change_are_these() -> None:
    assert ALLOWED <= RESUMABLE_KEYS


@pytest.mark.parametrize("key", [key for key in KEYS if key not in RESUMABLE_KEYS])
def test_a_changed_key_is_refused_with_its_old_and_its_new_value(key: str) -> None:
    recipe = Recipe.model_validate({"train": {"decay": False}})
    section, option = key.split(".")
    before = repr(recipe.model_dump()[section][option])
    with pytest.raises(ConfigError, match=re.escape(f"{key}='another': the run was started with {before}")):
        refuse_changes(recipe, changed(recipe, key))


@pytest.mark.parametrize("key", sorted(ALLOWED & set(KEYS)))
def test_an_allowed_key_may_change(key: str) -> None:
    recipe = Recipe.model_validate({"train": {"decay": False}})
    refuse_changes(recipe, changed(recipe, key))


def test_all_changed_keys_are_named_at_once() -> None:
    recipe = Recipe()
    with pytest.raises(ConfigError) as refusal:
        refuse_changes(recipe, changed(recipe, "run.seed", "model.name", "train.learning_rate", "reward.name"))
    told = str(refusal.value)
    assert [key for key in ("run.seed", "model.name", "train.learning_rate", "reward.name") if f"{key}='another'" in told] == [
        *("run.seed", "model.name", "train.learning_rate", "reward.name")
    ]
    assert "\n" not in told


# On the command line

REWARD = (
    "LIMIT = 9\ndef helper(text):\n    return len(text) % LIMIT\ndef mine(completion):\n    return helper(completion) / 10\n"
)
EDITS: dict[str, tuple[str, str, bool]] = {
    "another formula": ("/ 10", "/ 20", True),
    "another helper": ("len(text)", "len(text) + 1", True),
    "another constant": ("LIMIT = 9", "LIMIT = 8", True),
    "a comment": ("LIMIT = 9", "LIMIT = 9  # letters", False),
    "a blank line": ("def mine", "\n\ndef mine", False),
    "another function, which it does not name": ("LIMIT = 9", "LIMIT = 9\ndef other():\n    return 1", False),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("changed")
    (directory / "mine.py").write_text(REWARD)
    finished = covey("train", "arithmetic", "reward.name=mine:mine", "--name", "run", *SMALL, directory=directory)
    assert finished.code == 0, finished.err
    return directory


def resumed(directory: Path, *words: str, source: str = REWARD) -> Finished:
    (directory / "mine.py").write_text(source)
    # Python takes a file of the same size and second for the one that it has compiled, and a run may end within a second.
    shutil.rmtree(directory / "__pycache__", ignore_errors=True)
    return covey("train", "--resume", "runs/run", "--quiet", *words, directory=directory)


def test_changed_keys_are_refused_with_exit_code_2(directory: Path) -> None:
    finished = resumed(directory, "train.learning_rate=1.0", "run.seed=7", "--model", "other")
    assert finished.code == 2
    for told in ("train.learning_rate=1.0: the run was started with", "run.seed=7: the run was started with 0"):
        assert told in finished.err
    assert "model.name='other': the run was started with 'tiny'" in finished.err


@pytest.mark.parametrize("edit", EDITS)
def test_changed_code_of_a_reward_is_refused_and_a_changed_comment_is_not(directory: Path, edit: str) -> None:
    before, after, is_refused = EDITS[edit]
    source = REWARD.replace(before, after)
    assert source != REWARD
    recipe = (directory / "runs/run/recipe.toml").read_text()
    finished = resumed(directory, source=source)
    assert finished.code == (2 if is_refused else 0), finished.err
    assert ("the code of the reward functions is not what runs/run was started with" in finished.err) == is_refused
    assert (directory / "runs/run/recipe.toml").read_text() == recipe


def test_the_change_that_the_refusal_names_can_be_accepted_and_no_other(directory: Path) -> None:
    source = REWARD.replace("/ 10", "/ 30")
    [accepting] = re.findall(r"run\.accept_reward_code=\S+", resumed(directory, source=source).err)
    assert resumed(directory, accepting, source=source).code == 0
    assert resumed(directory, source=source).code == 0  # It stands in the recipe from now on.
    assert resumed(directory, source=REWARD.replace("/ 10", "/ 40")).code == 2


# From Python


@pytest.fixture
def _no_slow_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


def half_share(completion: str) -> float:
    return digit_share(completion) / 2


@pytest.mark.usefixtures("_no_slow_parts")
@pytest.mark.parametrize(("change", "num_warnings"), [({}, 0), ({"reward": half_share}, 1), ({"gold": half_share}, 1)])
def test_another_function_is_warned_of_and_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], num_warnings: int
) -> None:
    train_digits(tmp_path, "run", num_steps=1)
    resume_digits(tmp_path, "run", num_steps=2, **change)
    warnings = [event["message"] for event in read_jsonl(tmp_path / "run/events.jsonl") if event["kind"] == "warning"]
    assert len(warnings) == num_warnings
    assert capfd.readouterr().err.count("the code of the reward functions is not what") == num_warnings


# The mark


def threshold(limit: int) -> Callable[[str], float]:
    def over(completion: str) -> float:
        return float(len(completion) > limit)

    return over


def test_what_a_function_closes_over_belongs_to_it() -> None:
    first, second = (code_mark(as_reward(threshold(limit))) for limit in (3, 4))
    assert is_other_code(first, second)
    assert not is_other_code(first, code_mark(as_reward(threshold(3))))


def test_each_function_of_several_belongs_to_it() -> None:
    marks = [code_mark(as_reward(rewards)) for rewards in ([digit_share, threshold(3)], [digit_share, threshold(4)])]
    assert is_other_code(*marks)


def test_rewards_that_come_with_covey_have_no_mark() -> None:
    from covey.rewards.registry import find_reward

    assert code_mark(find_reward("last_number", key="reward.name"), None) == ""


def test_marks_of_two_pythons_say_nothing() -> None:
    assert not is_other_code("py311-1", "py312-2")
    assert is_other_code("", "py312-2")
