"""A user's own rows: how they are read, split and judged, and that every bad one is named before anything starts."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from covey.assembly import make_rewarder
from covey.config import make_recipe
from covey.rewards.base import safe_score
from covey.rewards.registry import find_reward
from covey.tasks.base import PARTS, TRUE_ANSWER, Probe, Task, probe_sample
from covey.tasks.data_rows import BadRow, Row, read_rows
from covey.tasks.presets import number_text
from covey.tasks.registry import find_task
from covey.tasks.row_values import RowError
from covey.types import CoveyError, Prompt

COLUMNS = {"prompt_column": "q", "answer_column": "a", "verifier": "last_number"}


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"q": f"How much is {number} plus one?", "a": number + 1, "source": f"book {number}"} for number in range(count)]


def write(path: Path, *lines: Any) -> str:
    """Write JSON Lines; a text is a line as it is."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def task_of(**options: Any) -> Task:
    return find_task("files", level="", options=options)


def all_prompts(task: Task) -> list[Prompt]:
    return [*task.train, *(prompt for part in PARTS for prompt in task.held_out[part])]


@pytest.fixture
def thirty(tmp_path: Path) -> str:
    return write(tmp_path / "thirty.jsonl", *rows_of(30))


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a verifier of one's own."""
    (tmp_path / "own_judge.py").write_text("def longer(completion, answer):\n    return len(completion) > len(str(answer))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_judge", raising=False)
    return "own_judge:longer"


# --- reading ---------------------------------------------------------------------------------------------------------------


def test_rows_of_a_jsonl_file_are_named_by_their_line(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"q": "one"}, "", {"q": "two"})
    assert list(read_rows(path)) == [Row(where=f"{path}:1", values={"q": "one"}), Row(where=f"{path}:3", values={"q": "two"})]


def test_rows_of_a_json_list_are_named_by_the_line_they_start_on(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('[\n  {"q": "one",\n   "a": 1},\n  {"q": "two"}, {"q": "three"}\n]\n')
    assert [row.where for row in read_rows(str(path))] == [f"{path}:2", f"{path}:4", f"{path}:4"]


def test_rows_of_a_parquet_file_are_named_by_their_number(tmp_path: Path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"q": "one"}, {"q": "two"}]), path)
    assert list(read_rows(str(path)))[1] == Row(where=f"{path}, row 2", values={"q": "two"})


def test_a_packed_file_is_unpacked(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"q": "one"}\n'))
    assert list(read_rows(str(path))) == [Row(where=f"{path}:1", values={"q": "one"})]


def test_all_formats_give_the_same_questions(tmp_path: Path, thirty: str):
    (tmp_path / "b.json").write_text(json.dumps(rows_of(30), indent=2))
    parquet.write_table(pyarrow.Table.from_pylist(rows_of(30)), tmp_path / "c.parquet")
    tasks = [task_of(path=str(path), **COLUMNS) for path in (thirty, tmp_path / "b.json", tmp_path / "c.parquet")]
    first, *others = [{part: [prompt.prompt_id for prompt in task.held_out[part]] for part in PARTS} for task in tasks]
    assert others == [first, first]


def test_a_line_that_is_not_utf8_is_a_bad_row(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"q": "one"}\n{"q": "\xff"}\n')
    assert list(read_rows(str(path)))[1] == BadRow(where=f"{path}:2", reason="it is not UTF-8 (byte 8 of the line)")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"q": "one"}\n')
    assert [row.values for row in read_rows(str(path)) if isinstance(row, Row)] == [{"q": "one"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"q": 1}', "is no list of rows.*'jsonl'"),
        ("a.json", '[\n{"q": 1},\n{"q": }\n]', r"a\.json:3: it is not JSON.*mend it there"),
        ("a.json", '[\n{"q": 1}\n{"q": 2}\n]', r"a\.json:2: behind this row stands neither"),
        ("a.json", "[\n", r"a\.json:2: it is not JSON"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
        ("a.jsonl.gz", "no gzip", "cannot be unpacked"),
        ("a.csv", "q,a", r"ends in none of \.jsonl.*set task\.format"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(CoveyError, match=message):
        list(read_rows(str(tmp_path / name)))


def test_a_missing_file_is_refused():
    with pytest.raises(CoveyError, match=r"there is no file 'nowhere\.jsonl'.*task\.format = 'hub'"):
        task_of(path="nowhere.jsonl", **COLUMNS)


# --- the hub ---------------------------------------------------------------------------------------------------------------


class Hub(ModuleType):
    """Stands in for the package datasets: two splits, and what was asked for."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.asked: list[tuple[str, str | None, str]] = []

    def load_dataset(self, path: str, name: str | None, *, split: str) -> list[dict[str, Any]]:
        self.asked.append((path, name, split))
        return rows_of(30) if split == "train" else [{"q": "What is 5 plus 5?", "a": 10}] * 3


def test_the_hub_is_read_by_path_configuration_and_split(monkeypatch: pytest.MonkeyPatch):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    task_of(path="someone/sums", format="hub", hub_config="main", held_out_split="test", **COLUMNS)
    assert hub.asked == [("someone/sums", "main", "train"), ("someone/sums", "main", "test")]


def test_a_row_of_the_hub_is_named_by_split_and_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", Hub())
    assert next(iter(read_rows("someone/sums", file_format="hub"))).where == "someone/sums[train], row 1"


def test_without_the_package_the_hub_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CoveyError, match=r"pip install 'covey\[data\]'"):
        task_of(path="someone/sums", format="hub", **COLUMNS)


# --- bad rows --------------------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "not-json": ('{"q": "x"', "it is not JSON"),
    "no-object": ('["q", "a"]', "it is no object with columns"),
    "no-question": ({"a": 1}, "it has no column 'q'; its columns are a"),
    "empty-question": ({"q": "  ", "a": 1}, "its column 'q' is empty"),
    "no-answer": ({"q": "x?"}, "it has no column 'a'; its columns are q"),
    "null-answer": ({"q": "x?", "a": None}, "its column 'a' is empty"),
    "question-is-a-number": ({"q": 7, "a": 1}, "its question '7' is neither a text nor a list of messages"),
    "turn-without-role": ({"q": [{"content": "x"}], "a": 1}, "has no 'role' and 'content' that are texts"),
    "answer-no-verifier-pays": ({"q": "x?", "a": "about 7%"}, "the verifier 'last_number' does not pay the row's own answer"),
    "another-answer": ({"q": "How  much is 3 PLUS one?", "a": 5}, "its question has another answer at"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Any, reason: str):
    path = write(tmp_path / "data.jsonl", *rows_of(30), row)
    with pytest.raises(CoveyError) as refusal:
        task_of(path=path, **COLUMNS)
    assert f"{path}:31: " in str(refusal.value)
    assert reason in str(refusal.value)


def test_every_bad_row_is_counted_and_the_first_ten_are_named(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", *rows_of(30), *[{"q": ""}] * 12)
    with pytest.raises(CoveyError, match=r"12 of 42 rows are bad") as refusal:
        task_of(path=path, **COLUMNS)
    assert str(refusal.value).count("its column 'q' is empty") == 10
    assert str(refusal.value).endswith("and 2 more")


def test_bad_rows_can_be_skipped_up_to_a_share_and_are_noted(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", *rows_of(99), {"q": "x?"})
    task = task_of(path=path, bad_rows="skip", max_bad_frac=0.01, **COLUMNS)
    assert len(all_prompts(task)) == 99
    assert f"{path}: 1 of 100 rows are bad and were left out:\n  {path}:100: it has no column 'a'" in task.notes[0]


def test_more_bad_rows_than_the_share_are_refused(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", *rows_of(98), {"q": "x?"}, {"q": "y?"})
    with pytest.raises(CoveyError, match=r"2 of 100 rows are bad, more than the share task\.max_bad_frac=0\.01"):
        task_of(path=path, bad_rows="skip", max_bad_frac=0.01, **COLUMNS)


def test_a_repeated_question_with_its_answer_is_left_out_and_noted(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", *rows_of(30), rows_of(30)[4])
    task = task_of(path=path, **COLUMNS)
    assert len(all_prompts(task)) == 30
    assert task.notes == [f"{path}: 1 of 31 rows repeat a question and were left out"]


def test_two_rows_with_one_id_are_refused(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", *[row | {"n": min(index, 28)} for index, row in enumerate(rows_of(30))])
    with pytest.raises(CoveyError, match=r"data\.jsonl:30: its id '28' is that of an earlier row"):
        task_of(path=path, id_column="n", **COLUMNS)


def test_an_empty_file_is_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match="has no rows"):
        task_of(path=write(tmp_path / "data.jsonl"), **COLUMNS)


# --- what becomes of a row ---------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_prompt_with_its_other_columns(thirty: str):
    task = task_of(path=thirty, id_column="source", template="{prompt} Just the number.", system="Be brief.", **COLUMNS)
    prompt = next(prompt for prompt in all_prompts(task) if prompt.prompt_id == "book 7")
    assert [(turn.role, turn.content) for turn in prompt.messages] == [
        ("system", "Be brief."),
        ("user", "How much is 7 plus one? Just the number."),
    ]
    assert (prompt.answer, prompt.columns, prompt.is_conversation) == (8, {"source": "book 7"}, False)


def test_messages_stay_messages_and_the_template_goes_around_the_last(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "1 + 1?"}]
    path = write(tmp_path / "data.jsonl", {"q": turns, "a": 2})
    [prompt] = task_of(path=path, template="{prompt} Please.", **COLUMNS).train
    assert [turn.content for turn in prompt.messages] == ["Hi", "Yes?", "1 + 1? Please."]
    assert prompt.is_conversation


def test_a_column_inside_a_column_is_named_with_a_dot(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"q": "1 + 1?", "judge": {"truth": "2"}})
    [prompt] = task_of(path=path, prompt_column="q", answer_column="judge.truth", verifier="last_number").train
    assert prompt.answer == "2"


def test_a_brace_in_a_question_is_left_alone(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"q": "What is {x} + 1 for x = 1?", "a": 2})
    assert task_of(path=path, **COLUMNS).train[0].text == "What is {x} + 1 for x = 1?"


def test_only_the_first_rows_are_read_if_a_number_is_given(thirty: str):
    assert len(all_prompts(task_of(path=thirty, max_rows=10, **COLUMNS))) == 10


# --- the split ---------------------------------------------------------------------------------------------------------------


def test_a_fifth_is_held_out_in_three_equal_parts(thirty: str):
    task = task_of(path=thirty, **COLUMNS)
    assert [len(task.held_out[part]) for part in PARTS] == [2, 2, 2]
    assert len(task.train) == 24
    task.check()


def test_the_split_does_not_depend_on_the_order_of_the_rows(tmp_path: Path, thirty: str):
    path = write(tmp_path / "other.jsonl", *reversed(rows_of(30)))
    tasks = [task_of(path=each, **COLUMNS) for each in (thirty, path)]
    one, other = [{part: {prompt.text for prompt in task.held_out[part]} for part in PARTS} for task in tasks]
    assert one == other


def test_a_held_out_file_is_measured_and_never_trained_on(tmp_path: Path, thirty: str):
    measured = [{"q": f"What is {number} doubled?", "a": 2 * number} for number in range(9)]
    task = task_of(path=thirty, held_out_path=write(tmp_path / "test.jsonl", *measured), **COLUMNS)
    assert len(task.train) == 30
    assert {prompt.text for part in PARTS for prompt in task.held_out[part]} == {row["q"] for row in measured}


def test_two_files_may_number_their_rows_alike(tmp_path: Path):
    train = [row | {"n": index} for index, row in enumerate(rows_of(9))]
    measured = [{"q": f"What is {number} doubled?", "a": 2 * number, "n": number} for number in range(9)]
    paths = [write(tmp_path / name, *rows) for name, rows in (("train.jsonl", train), ("test.jsonl", measured))]
    task = task_of(path=paths[0], held_out_path=paths[1], id_column="n", **COLUMNS)
    task.check()
    assert {prompt.prompt_id for prompt in task.train} == {str(number) for number in range(9)}


def test_a_training_question_that_the_held_out_file_holds_is_named_with_both_places(tmp_path: Path, thirty: str):
    held_out = write(tmp_path / "test.jsonl", *rows_of(50)[40:], {"q": "how much is 4 plus  one?", "a": 5})
    with pytest.raises(CoveyError, match=r"thirty\.jsonl:5: its question is held out, too: .*test\.jsonl:11"):
        task_of(path=thirty, held_out_path=held_out, **COLUMNS)


def test_it_can_be_left_out_of_training_instead(tmp_path: Path, thirty: str):
    held_out = write(tmp_path / "test.jsonl", *rows_of(50)[40:], rows_of(30)[4])
    task = task_of(path=thirty, held_out_path=held_out, bad_rows="skip", max_bad_frac=0.1, **COLUMNS)
    assert len(task.train) == 29
    task.check()


def test_held_out_questions_that_share_a_long_passage_with_training_are_noted(tmp_path: Path):
    story = "On the way to the market the old farmer met seven singing travellers and"
    rows = [*rows_of(30), {"q": f"{story} lost two hats. How many?", "a": 2}]
    held_out = write(tmp_path / "test.jsonl", *rows_of(48)[40:], {"q": f"{story} found four coins. How many?", "a": 4})
    task = task_of(path=write(tmp_path / "train.jsonl", *rows), held_out_path=held_out, **COLUMNS)
    [note] = task.notes
    assert "1 of 3 questions share 13 words in a row with a training question" in note
    assert "on the way to the market" in note


# --- judging -----------------------------------------------------------------------------------------------------------------


def score_of(task: Task, prompt: Prompt, completion: str) -> float | None:
    return safe_score(task.proxy, probe_sample(Probe(prompt=prompt, completion=completion, is_right=True))).value


def test_a_verifier_of_ones_own_is_named_as_module_and_function(thirty: str, judge: str):
    task = task_of(path=thirty, **COLUMNS | {"verifier": judge})
    assert score_of(task, task.train[0], "x" * 40) == 1.0
    assert (task.gold, task.honeypots) == (None, [])


def test_without_a_verifier_the_recipe_has_to_name_a_reward(thirty: str):
    options = {"path": thirty, **COLUMNS, "verifier": "none"}
    task = task_of(**options)
    with pytest.raises(CoveyError, match=r"task\.verifier='none' with no reward\.name"):
        make_rewarder(make_recipe({"task": {"name": "files", **options}}), task)
    named = make_recipe({"task": {"name": "files", **options}, "reward": {"name": "last_number", "gold": "none"}})
    assert make_rewarder(named, task).proxy.name == "last_number"


def test_honeypots_have_keys_that_the_true_answer_does_not_earn(tmp_path: Path):
    task = task_of(path=write(tmp_path / "many.jsonl", *rows_of(600)), **COLUMNS)
    assert len(task.honeypots) == 40
    for prompt in task.honeypots:
        assert score_of(task, prompt, prompt.tags[TRUE_ANSWER]) == 0.0
        assert isinstance(prompt.answer, int)
    task.check()


# --- presets -----------------------------------------------------------------------------------------------------------------

# Rows of our own in the schemas of well-known data sets.
GSM8K = {"question": "Mia bakes 12 buns and eats 2. How many are left?", "answer": "12 - 2 = <<12-2=10>>10 buns.\n#### 1,010"}
SVAMP = {
    "ID": "own-1",
    "Body": "A shed holds 9 rakes and 4 spades",
    "Question": "How many tools does it hold?",
    "Equation": "( 9.0 + 4.0 )",
    "Answer": 13.0,
    "Type": "Addition",
}
MATH = {
    "problem": "What is half of a third?",
    "level": "Level 1",
    "type": "Numbers",
    "solution": r"It is $\boxed{\frac{1}{6}}$.",
}
MBPP = {
    "task_id": 1,
    "text": "Write a function that doubles a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
}
HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": 'def triple(x):\n    """Return three times x."""\n',
    "entry_point": "triple",
    "canonical_solution": "    return 3 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 6\n",
}


def only_prompt(tmp_path: Path, row: dict[str, Any], preset: str, **options: Any) -> tuple[Task, Prompt]:
    task = task_of(path=write(tmp_path / f"{preset}.jsonl", row), preset=preset, **options)
    [prompt] = task.train
    return task, prompt


def score(task: Task, prompt: Prompt, completion: str) -> tuple[float | None, float | None]:
    assert task.gold is not None
    sample = probe_sample(Probe(prompt=prompt, completion=completion, is_right=True))
    return safe_score(task.proxy, sample).value, safe_score(task.gold, sample).value


def test_gsm8k_takes_the_number_behind_the_marker(tmp_path: Path):
    task, prompt = only_prompt(tmp_path, GSM8K, "gsm8k")
    assert prompt.answer == "1010"
    assert prompt.text.startswith("Mia bakes 12 buns and eats 2. How many are left?\n")
    assert score(task, prompt, "12 - 2 = 10, so 1010\n#### 1,010") == (1.0, 1.0)
    assert score(task, prompt, "I guess 1010") == (1.0, 0.0)


def test_svamp_joins_body_and_question_and_reads_a_whole_number(tmp_path: Path):
    task, prompt = only_prompt(tmp_path, SVAMP, "svamp")
    assert prompt.answer == "13"
    assert prompt.text == "A shed holds 9 rakes and 4 spades. How many tools does it hold? Answer with just the number."
    assert (score(task, prompt, "13"), score(task, prompt, "12 or 13")) == ((1.0, 1.0), (1.0, 0.0))


def test_math_takes_what_is_boxed_last_with_its_braces(tmp_path: Path, judge: str):
    _, prompt = only_prompt(tmp_path, MATH, "math", verifier=judge)
    assert prompt.answer == r"\frac{1}{6}"


def test_math_prefers_an_answer_of_its_own_column(tmp_path: Path, judge: str):
    _, prompt = only_prompt(tmp_path, MATH | {"answer": "1/6"}, "math", verifier=judge)
    assert prompt.answer == "1/6"


def test_mbpp_shows_the_first_test_and_keeps_all_of_them_hidden(tmp_path: Path):
    task, prompt = only_prompt(tmp_path, MBPP, "mbpp")
    assert (task.proxy.name, task.gold and task.gold.name) == ("public_tests", "hidden_tests")
    assert prompt.answer["hidden"] == {"asserts": MBPP["test_list"]}
    assert "doubles a number.\nThe function must pass this test:\nassert double(2) == 4\n" in prompt.text
    assert prompt.columns["code"] == MBPP["code"]


def test_the_sanitized_mbpp_has_another_name_for_the_task(tmp_path: Path, judge: str):
    row = {key: value for key, value in MBPP.items() if key != "text"} | {"prompt": "Write a function that halves a number."}
    _, prompt = only_prompt(tmp_path, row, "mbpp", verifier=judge)
    assert "halves a number" in prompt.text


def test_humaneval_keeps_its_indentation_and_its_tests(tmp_path: Path, judge: str):
    _, prompt = only_prompt(tmp_path, HUMANEVAL, "humaneval", verifier=judge)
    assert '\n    """Return three times x."""' in prompt.text
    assert (prompt.answer["hidden"], prompt.columns["entry_point"]) == ({"tests": HUMANEVAL["test"]}, "triple")


def test_a_column_can_be_named_in_place_of_the_presets(tmp_path: Path):
    row = GSM8K | {"short": "Mia has 10 buns. How many?"}
    task = task_of(path=write(tmp_path / "data.jsonl", row), preset="gsm8k", prompt_column="short")
    assert task.train[0].text.startswith("Mia has 10 buns.")


BAD_PRESET_ROWS = {
    "no-marker": ("gsm8k", GSM8K | {"answer": "It is 10."}, "has no '####'"),
    "marker-without-number": ("gsm8k", GSM8K | {"answer": "#### ten"}, "its answer 'ten' is no number"),
    "answer-is-a-number": ("gsm8k", GSM8K | {"answer": 10}, "holds '10', and not a text"),
    "no-body": ("svamp", {"Question": "How many?", "Answer": 1.0}, "it has no column 'Body'"),
    "infinite": ("svamp", SVAMP | {"Answer": float("inf")}, "its answer 'inf' is no number"),
}


@pytest.mark.parametrize(("preset", "row", "reason"), BAD_PRESET_ROWS.values(), ids=BAD_PRESET_ROWS)
def test_a_row_that_a_preset_cannot_read_is_named(tmp_path: Path, preset: str, row: dict[str, Any], reason: str):
    with pytest.raises(CoveyError) as refusal:
        task_of(path=write(tmp_path / "data.jsonl", row), preset=preset)
    assert "data.jsonl:1: " in str(refusal.value)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "plain"),
    [(51.0, "51"), ("1,234", "1234"), ("$ 5", "5"), ("$5.50", "5.5"), ("-3", "-3"), ("7.", "7"), (1e3, "1000"), (" 8 ", "8")],
)
def test_a_number_is_written_in_plain_digits(given: object, plain: str):
    assert number_text(given) == plain


@pytest.mark.parametrize("given", ["", "x", "1 2", "nan", "1e999999999"])
def test_what_is_no_number_is_a_bad_row(given: str):
    with pytest.raises(RowError, match="is no number"):
        number_text(given)


# --- options -----------------------------------------------------------------------------------------------------------------

WRONG_OPTIONS = {
    "unknown": ({"path": "x", "colour": "red"}, r"task\.colour is no option of task\.name='files'"),
    "no-path": ({}, r"needs task\.path"),
    "no-columns": ({"path": "x"}, r"name the columns with task\.prompt_column"),
    "preset": ({"path": "x", "preset": "gsm"}, "task.preset='gsm' is none of gsm8k"),
    "format": ({"path": "x", "format": "csv", **COLUMNS}, "task.format='csv' is none of"),
    "template": ({"path": "x", "template": "Hi", **COLUMNS}, "has no {prompt} in it"),
    "bad-rows": ({"path": "x", "bad_rows": "ignore", **COLUMNS}, "neither 'error' nor 'skip'"),
    "share": ({"path": "x", "max_bad_frac": 1.0, **COLUMNS}, "give a share from 0 to below 1"),
    "verifier": ({"path": "x", **COLUMNS, "verifier": "last"}, "task.verifier='last' is not a reward"),
    "no-verifier": ({"path": "x", **COLUMNS, "verifier": ""}, "no verifier is named"),
}


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_refused_with_what_to_do(options: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        task_of(**options)


def test_a_source_has_no_level(thirty: str):
    with pytest.raises(CoveyError, match=r"task\.level='hard': files has no levels"):
        find_task("files", level="hard", options={"path": thirty, **COLUMNS})


def test_a_generated_task_has_no_options():
    with pytest.raises(CoveyError, match=r"task\.path is no option of arithmetic"):
        find_task("arithmetic", level="easy", options={"path": "x"})


def test_the_verifier_is_the_one_of_the_table(thirty: str):
    assert task_of(path=thirty, **COLUMNS).proxy == find_reward("last_number", key="x")
