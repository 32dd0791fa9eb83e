"""Rewards made of a preference model's scores, and the file of pairs that such a model is trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import make_prompt, make_sample

from covey.rewards.base import Sample, refuse_missing_columns, score_all
from covey.rewards.preference import preference_reward, sigmoid, win_rates
from covey.rewards.preference_pairs import read_preference_pairs
from covey.types import CoveyError, Message, Score

SCORES = st.lists(st.floats(-50, 50), min_size=1, max_size=8)


class Model:
    """A preference model whose score is the number that the completion is; it notes how many texts came at once."""

    def __init__(self) -> None:
        self.sizes = list[int]()

    def __call__(self, texts: Sequence[tuple[Sequence[Message], str]]) -> list[float | None]:
        self.sizes.append(len(texts))
        return [None if completion == "unreadable" else float(completion) for _, completion in texts]


def make_group(*completions: str, prompt_id: str = "p", **columns: Any) -> list[Sample]:
    prompt = replace(make_prompt(prompt_id), columns=columns)
    return [make_sample(completion, prompt=prompt) for completion in completions]


def values_of(scores: Sequence[Score]) -> list[float | None]:
    return [score.value for score in scores]


# --- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "value"), [(0.0, 0.5), (1.0, 0.7310586), (-1.0, 0.2689414), (2.0, 0.8807971), (1e4, 1.0), (-1e4, 0.0)]
)
def test_the_sigmoid_has_its_golden_value_and_never_overflows(difference: float, value: float):
    assert sigmoid(difference) == pytest.approx(value, abs=1e-6)


def test_with_a_reference_the_reward_is_the_probability_of_beating_it():
    reward = preference_reward(Model(), reference_column="best")
    scores = score_all(reward, make_group("3", "1", best="2"))
    assert values_of(scores) == pytest.approx([0.7310586, 0.2689414], abs=1e-6)
    assert dict(scores[0].parts) == {"score": 3.0, "reference": 2.0}


def test_the_answer_can_be_the_reference():
    sample = make_sample("3", prompt=make_prompt(answer=2))
    assert preference_reward(Model(), reference_column="answer")(sample).value == pytest.approx(0.7310586, abs=1e-6)


def test_without_a_reference_the_group_mean_takes_its_place():
    scores = score_all(preference_reward(Model()), make_group("1", "3"))
    assert values_of(scores) == pytest.approx([0.2689414, 0.7310586], abs=1e-6)
    assert [dict(score.parts) for score in scores] == [{"score": 1.0}, {"score": 3.0}]


def test_the_win_rate_in_a_group_has_its_golden_values():
    scores = score_all(preference_reward(Model(), bound="win_rate"), make_group("0", "1", "3"))
    assert values_of(scores) == pytest.approx([0.1581837, 0.4251307, 0.9166856], abs=1e-6)


@given(scores=SCORES)
def test_the_win_rate_is_the_mean_over_the_others(scores: list[float]):
    slow = [
        [1 / (1 + math.exp(other - score)) for place, other in enumerate(scores) if place != index] or [0.5]
        for index, score in enumerate(scores)
    ]
    assert win_rates(scores) == pytest.approx([sum(wins) / len(wins) for wins in slow], abs=1e-9)


@given(scores=SCORES)
def test_the_win_rates_of_a_group_have_the_mean_one_half(scores: list[float]):
    assert sum(win_rates(scores)) / len(scores) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("bound", ["sigmoid", "win_rate"])
def test_adding_the_same_to_all_scores_of_a_prompt_changes_no_reward(bound: Any):
    first, second = (
        values_of(score_all(preference_reward(Model(), bound=bound), make_group(*completions)))
        for completions in (("0", "1", "4"), ("100", "101", "104"))
    )
    assert first == pytest.approx(second, abs=1e-9)


@pytest.mark.parametrize("bound", ["sigmoid", "win_rate"])
def test_a_flaw_of_the_model_is_paid_at_most_1(bound: Any):
    scores = score_all(preference_reward(Model(), bound=bound), make_group("0", "1", "1e6"))
    assert scores[2].value == 1.0
    assert all(score.error is None for score in scores)


@pytest.mark.parametrize("bound", ["sigmoid", "win_rate"])
def test_a_completion_without_a_group_gets_one_half(bound: Any):
    assert preference_reward(Model(), bound=bound)(make_group("7")[0]).value == 0.5


def test_prompts_are_groups_of_their_own_however_they_are_mixed():
    one, other = make_group("0", "1"), make_group("10", "13", prompt_id="q")
    scores = score_all(preference_reward(Model()), [one[0], other[0], one[1], other[1]])
    alone = [score_all(preference_reward(Model()), group) for group in (one, other)]
    assert values_of(scores) == [alone[0][0].value, alone[1][0].value, alone[0][1].value, alone[1][1].value]


def test_the_model_is_called_once_and_a_reference_is_scored_once():
    model = Model()
    score_all(preference_reward(model, reference_column="best"), make_group("1", "2", "3", best="2"))
    assert model.sizes == [4]


def test_without_a_bound_the_score_itself_is_the_reward_within_its_declared_range():
    reward = preference_reward(Model(), bound="none", reward_range=(-10.0, 10.0))
    scores = score_all(reward, make_group("-3", "12"))
    assert values_of(scores) == [-3.0, None]
    assert "outside its declared range [-10.0, 10.0]" in str(scores[1].error)


# --- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["unreadable", "nan", "inf"])
def test_what_the_model_cannot_score_has_no_value_and_is_left_out_of_the_group(bad: str):
    scores = score_all(preference_reward(Model(), bound="win_rate"), make_group("0", bad, "1"))
    assert values_of(scores) == [pytest.approx(0.2689414, abs=1e-6), None, pytest.approx(0.7310586, abs=1e-6)]
    assert str(scores[1].error).startswith("invalid: the model of preference cannot score this completion")


def test_a_group_that_cannot_be_scored_at_all_has_no_values():
    assert values_of(score_all(preference_reward(Model()), make_group("unreadable", "nan"))) == [None, None]


def test_a_reference_that_cannot_be_scored_leaves_its_group_without_values_and_no_other():
    samples = [*make_group("1", best="unreadable"), *make_group("2", prompt_id="q", best="2")]
    scores = score_all(preference_reward(Model(), reference_column="best"), samples)
    assert values_of(scores) == [None, 0.5]
    assert "cannot score the prompt's 'best'" in str(scores[0].error)


@pytest.mark.parametrize("count", [1, 3])
def test_a_model_that_returns_the_wrong_number_of_scores_is_an_error_of_all(count: int):
    scores = score_all(preference_reward(lambda texts: [0.0] * count), make_group("1", "2"))
    assert values_of(scores) == [None, None]
    assert f"returned {count} scores for 2 texts" in str(scores[0].error)


def test_a_missing_reference_is_refused_before_anything_is_sampled():
    reward = preference_reward(Model(), reference_column="best")
    with pytest.raises(CoveyError, match="'best', but prompt 'p' has no column"):
        refuse_missing_columns(reward, [make_prompt()])


def test_a_reference_that_is_no_text_is_an_error():
    scores = score_all(preference_reward(Model(), reference_column="best"), make_group("1", best=["2"]))
    assert "the 'best' of prompt 'p' is a list; give a text" in str(scores[0].error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bound": "tanh"}, "'tanh' of the reward 'preference' is none of sigmoid, win_rate, none"),
        ({"bound": "win_rate", "reference_column": "best"}, "goes with bound='sigmoid'"),
        ({"bound": "none"}, "reward_range goes with bound='none', and is needed there"),
        ({"bound": "sigmoid", "reward_range": (0.0, 2.0)}, "reward_range goes with bound='none'"),
        ({"bound": "none", "reward_range": (1.0, 1.0)}, "the first number must be smaller"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(CoveyError, match=said):
        preference_reward(Model(), **options)


# --- the file of pairs ---------------------------------------------------------------------------------------------------

USER, GOOD, POOR = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes"), ("assistant", "No"))
)
SYSTEM = {"role": "system", "content": "Be kind."}


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "num_turns"),
    [
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, 1),
        ({"prompt": [USER], "chosen": "Yes", "rejected": [POOR]}, 1),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [POOR]}, 1),
        ({"chosen": [USER, GOOD], "rejected": [USER, POOR]}, 1),
        ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, POOR], "source": "x"}, 1),
        ({"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, POOR]}, 2),
        ({"prompt": None, "margin": None, "chosen": [USER, GOOD], "rejected": [USER, POOR]}, 1),
    ],
)
def test_a_pair_is_read_from_texts_and_from_messages(tmp_path: Path, row: dict[str, Any], num_turns: int):
    (pair,) = read_preference_pairs(write_rows(tmp_path / "pairs.jsonl", row))
    assert len(pair.messages) == num_turns
    assert pair.messages[-1] == Message(role="user", content="Hi")
    assert (pair.chosen, pair.rejected, pair.margin) == ("Yes", "No", 0.0)


def test_a_pair_knows_its_place_and_its_margin(tmp_path: Path):
    row = {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": 2}
    file = write_rows(tmp_path / "pairs.jsonl", row, "", row | {"prompt": "Ho"})
    pairs = read_preference_pairs(str(file))
    assert [(pair.where, pair.margin) for pair in pairs] == [(f"{file}:1", 2.0), (f"{file}:3", 2.0)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it is no object with columns but"),
        ({"prompt": "Hi", "chosen": "Yes"}, "it has no 'rejected'"),
        ({"chosen": "Yes", "rejected": "No"}, "it has no 'prompt'"),
        ({"prompt": " ", "chosen": "Yes", "rejected": "No"}, "its 'prompt' is empty"),
        ({"prompt": [USER, GOOD], "chosen": "Yes", "rejected": "No"}, "ends with a turn of the assistant"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}, "are the same"),
        ({"prompt": "Hi", "chosen": " ", "rejected": "Yes"}, "its 'chosen' answer is empty"),
        ({"prompt": "Hi", "chosen": 5, "rejected": "Yes"}, "its 'chosen' is neither a text nor a list of messages"),
        ({"prompt": "Hi", "chosen": [USER], "rejected": "Yes"}, "does not end with a turn of the assistant"),
        ({"prompt": "Hi", "chosen": [{"role": "assistant"}], "rejected": "Yes"}, "no 'role' and 'content'"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, POOR]}, "before its 'chosen' and its 'rejected' answer differ"),
        ({"prompt": "Ho", "chosen": [USER, GOOD], "rejected": [USER, POOR]}, "does not contain its 'prompt'"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": -1}, "its 'margin' is '-1'"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": "big"}, "its 'margin' is 'big'"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": True}, "its 'margin' is 'True'"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": 10**400}, "its 'margin' is '1000"),
        ('{"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": NaN}', "its 'margin' is 'nan'"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Any, said: str):
    good = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    file = write_rows(tmp_path / "pairs.jsonl", good, row)
    with pytest.raises(CoveyError) as caught:
        read_preference_pairs(file)
    assert str(caught.value).startswith(f"{file}: 1 of 2 rows are no preference pair")
    assert f"{file}:2: " in str(caught.value)
    assert said in str(caught.value)


def test_what_is_not_utf_8_is_named_too(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(CoveyError, match=r"pairs\.jsonl:1: it is not UTF-8 \(byte 13 of the line\)"):
        read_preference_pairs(tmp_path / "pairs.jsonl")


def test_of_many_bad_rows_ten_are_named_and_the_rest_is_counted(tmp_path: Path):
    with pytest.raises(CoveyError) as caught:
        read_preference_pairs(write_rows(tmp_path / "pairs.jsonl", *["{"] * 13))
    assert str(caught.value).count("it is not JSON") == 10
    assert str(caught.value).endswith("and 3 more")


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match="has no rows"):
        read_preference_pairs(write_rows(tmp_path / "empty.jsonl"))
    with pytest.raises(CoveyError, match="there is no file"):
        read_preference_pairs(tmp_path / "missing.jsonl")
