"""More than thirty kinds of malformed rows: each is named by file and line before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.commands import SMALL, covey

from covey.tasks.base import PARTS, Task
from covey.tasks.from_python import task_of_prompts
from covey.tasks.registry import find_task
from covey.types import CoveyError

NUM_GOOD = 30
MALFORMED: dict[str, bytes | dict[str, Any] | list[Any] | float | str | None] = {
    # The line
    "no JSON": b'{"q": "x?", "a": 1',
    "a brace too many": b'{"q": "x?", "a": 1}}',
    "two objects on a line": b'{"q": "x?", "a": 1} {"q": "y?", "a": 2}',
    "single quotes": b"{'q': 'x?', 'a': 1}",
    "a comma at the end": b'{"q": "x?", "a": 1,}',
    "a comment": b'// {"q": "x?", "a": 1}',
    "no UTF-8": b'{"q": "\xff?", "a": 1}',
    "UTF-16": '{"q": "x?", "a": 1}'.encode("utf-16-le"),
    "a NUL": b'{"q": "x?", "a": 1}\x00',
    "a mark of byte order in the midst": b'\xef\xbb\xbf{"q": "x?", "a": 1}',
    "a bare control character": b'{"q": "x\x01?", "a": 1}',
    "nested too deeply": b"[" * 100_000,
    "comma-separated values": b"x?,1",
    # What it holds
    "a list": ["x?", 1],
    "a number": 7.0,
    "a text": '"x?"',
    "null": b"null",
    # The columns
    "no question": {"a": 1},
    "no answer": {"q": "x?"},
    "another case": {"Q": "x?", "A": 1},
    "an empty object": {},
    "a null question": {"q": None, "a": 1},
    "an empty question": {"q": "", "a": 1},
    "a blank question": {"q": " \t\n", "a": 1},
    "an empty list of messages": {"q": [], "a": 1},
    "a null answer": {"q": "x?", "a": None},
    "an empty answer": {"q": "x?", "a": ""},
    # Their types
    "a number for a question": {"q": 7, "a": 1},
    "an object for a question": {"q": {"text": "x?"}, "a": 1},
    "messages that are texts": {"q": ["x?"], "a": 1},
    "a message without a role": {"q": [{"content": "x?"}], "a": 1},
    "a message without content": {"q": [{"role": "user"}], "a": 1},
    "content that is a number": {"q": [{"role": "user", "content": 7}], "a": 1},
    "an answer that no completion can give": {"q": "x?", "a": "about 7 %"},
    "NaN for an answer": b'{"q": "x?", "a": NaN}',
    "infinity for an answer": b'{"q": "x?", "a": Infinity}',
    "a list for an answer": {"q": "x?", "a": [1, 2]},
    "a truth value for an answer": {"q": "x?", "a": True},
    # Half of a character: no tokenizer can read it, and no log can be written with it.
    "half a character in the question": b'{"q": "x\\ud800?", "a": 1}',
    # Together with others
    "another answer to an earlier question": {"q": "How much is 3 plus one?", "a": 5},
}


def good(count: int = NUM_GOOD) -> bytes:
    return b"".join(json.dumps({"q": f"How much is {n} plus one?", "a": n + 1}).encode() + b"\n" for n in range(count))


def task_of(path: Path, **options: Any) -> Task:
    columns = {"prompt_column": "q", "answer_column": "a", "verifier": "last_number"}
    return find_task("files", level="", options={"path": str(path), **columns, **options})


def as_line(row: Any) -> bytes:
    return row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()


def test_there_are_more_than_thirty_kinds() -> None:
    assert len(MALFORMED) >= 30


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(good() + as_line(MALFORMED[kind]) + b"\n" + good(3).replace(b"How", b"Then how"))
    with pytest.raises(CoveyError) as refusal:
        task_of(path)
    places = re.findall(re.escape(str(path)) + r":(\d+): ", str(refusal.value))
    assert places[:1] == [str(NUM_GOOD + 1)]
    assert "1 of 34 rows" in str(refusal.value)


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_row_can_be_left_out(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(good() + as_line(MALFORMED[kind]) + b"\n")
    task = task_of(path, bad_rows="skip", max_bad_frac=0.05)
    assert len(task.train) + sum(len(task.held_out[part]) for part in PARTS) == NUM_GOOD


WELL_FORMED: dict[str, bytes] = {
    "as they are": good(),
    "a mark of byte order at the start": b"\xef\xbb\xbf" + good(),
    "Windows' ends of lines": good().replace(b"\n", b"\r\n"),
    "mixed ends of lines": good(15).replace(b"\n", b"\r\n") + good().split(b"\n", 15)[15],
    "blank lines": good().replace(b"\n", b"\n\n \n"),
    "no end of the last line": good().rstrip(b"\n"),
    "other columns": good().replace(b'"a":', b'"source": null, "a":'),
    "escaped letters": good().replace(b"How", b"H\\u00f6w"),
    "a row of ten megabytes": good() + json.dumps({"q": "x" * 10_000_000, "a": 1}).encode(),
}


@pytest.mark.parametrize("kind", WELL_FORMED)
def test_what_is_only_unusual_is_read(tmp_path: Path, kind: str) -> None:
    """The positive control: the same check lets these through."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(WELL_FORMED[kind])
    task = task_of(path)
    num_rows = NUM_GOOD + ("megabytes" in kind)
    assert len(task.train) + sum(len(task.held_out[part]) for part in PARTS) == num_rows


def test_tests_that_are_none_are_named(tmp_path: Path) -> None:
    row = {
        "task_id": 1,
        "text": "Double it.",
        "code": "def double(x):\n    return 2 * x",
        "test_list": ["assert double(2) == 4"],
    }
    path = tmp_path / "code.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'task_id': 2, 'text': 'Halve it.', 'test_list': []})}\n")
    with pytest.raises(CoveyError, match=r"code\.jsonl:2: .*test_list"):
        find_task("files", level="", options={"path": str(path), "preset": "mbpp"})


# Before step 0


def test_the_command_names_the_row_before_a_model_is_loaded_or_a_run_begun(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(good() + b'{"q": "", "a": 1}\n')
    options = ["task.path=data.jsonl", "task.prompt_column=q", "task.answer_column=a", "task.verifier=last_number"]
    words = ["train", "task.name=files", *options, *SMALL, "--model", "./there-is-none"]
    finished = covey(*words, directory=tmp_path)
    assert finished.code == 2
    assert f"data.jsonl:{NUM_GOOD + 1}: its column 'q' is empty" in finished.err
    assert not (tmp_path / "runs").exists()


def test_data_that_have_changed_are_refused_on_resuming(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(good())
    options = ["task.path=data.jsonl", "task.prompt_column=q", "task.answer_column=a", "task.verifier=last_number"]
    begun = covey("train", "task.name=files", *options, *SMALL, "--name", "run", directory=tmp_path)
    assert begun.code == 0, begun.err
    (tmp_path / "data.jsonl").write_bytes(good().replace(b"How much is 7 plus", b"How much is 8 minus -1, plus"))
    finished = covey("train", "--resume", "runs/run", directory=tmp_path)
    assert finished.code == 2
    assert "the questions of task 'files/data.jsonl' are not those that runs/run was started with" in finished.err
    (tmp_path / "data.jsonl").write_bytes(good())
    assert covey("train", "--resume", "runs/run", directory=tmp_path).code == 0


def test_half_a_character_in_a_prompt_of_ones_own_is_refused() -> None:
    with pytest.raises(CoveyError, match=r"prompts\[1\] holds half a character"):
        task_of_prompts(["fine \U0001f600", "half \ud83d"], None, lambda completion: 1.0, None, (0.0, 1.0))
