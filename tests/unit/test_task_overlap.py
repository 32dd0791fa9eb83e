"""Passages that held-out questions share with training questions."""

from __future__ import annotations

from covey.tasks.overlap import overlap_notes, overlaps
from covey.types import Message, Prompt

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()  # noqa: SIM905


def questions(*texts: str, name: str = "q") -> list[Prompt]:
    return [
        Prompt(prompt_id=f"{name}{number}", messages=(Message(role="user", content=text),)) for number, text in enumerate(texts)
    ]


def pairs(train: list[Prompt], held_out: list[Prompt], **options: object) -> list[tuple[str, str]]:
    return [(found.held_out.prompt_id, found.trained.prompt_id) for found in overlaps(train, held_out, **options)]  # ty: ignore


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not():
    held_out = questions(" ".join(WORDS), name="h")
    assert pairs(questions("x " + " ".join(WORDS[:13]) + " y"), held_out) == [("h0", "q0")]
    assert pairs(questions("x " + " ".join(WORDS[:12]) + " y"), held_out) == []


def test_case_punctuation_and_blanks_make_no_difference():
    text = " ".join(WORDS)
    assert pairs(questions(text.upper().replace(" ", ",  ")), questions(text, name="h")) == [("h0", "q0")]


def test_another_number_is_another_word():
    text = " ".join(WORDS[:6]) + " {} " + " ".join(WORDS[6:12])
    assert pairs(questions(text.format(7)), questions(text.format(8), name="h")) == []


def test_a_short_question_overlaps_only_as_a_whole():
    assert pairs(questions("What is 2 + 2?", "What is 2 + 3?"), questions("what is 2 + 3", name="h")) == [("h0", "q1")]


def test_a_passage_of_many_questions_is_a_template():
    passage = " ".join(WORDS)
    train = questions(*(f"{passage} {number}" for number in range(4)))
    assert pairs(train, questions(f"{passage} 9", name="h")) == []
    assert pairs(train, questions(f"{passage} 9", name="h"), max_common=4) == [("h0", "q0")]


def test_the_words_of_the_template_are_left_out():
    template = "{prompt} " + " ".join(WORDS)
    texts = [template.replace("{prompt}", own) for own in ("red", "blue")]
    assert pairs(questions(texts[0]), questions(texts[1], name="h")) == [("h0", "q0")]
    assert pairs(questions(texts[0]), questions(texts[1], name="h"), template=template) == []


def test_a_note_counts_them_and_names_one():
    text = " ".join(WORDS)
    [note] = overlap_notes(questions(text), questions(text, "other words", name="h"), part="test")
    assert note.startswith("held-out part 'test': 1 of 2 questions share 13 words in a row")
    assert "'h0' with 'q0'" in note


def test_nothing_is_noted_where_nothing_overlaps():
    assert overlap_notes(questions("one"), questions("two", name="h"), part="test") == []
