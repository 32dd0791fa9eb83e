"""The audit of a reward: broken, strict and lenient rewards are told apart, and each figure is what its words say."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tests.builders import make_prompt, make_reward

from covey.audit import SHORT, AuditSpec, audit, model_samples
from covey.guard.findings import AuditResult, audit_lines, audit_message, audit_row
from covey.guard.measures import Scale
from covey.guard.search import SearchSpec
from covey.report.audit_page import audit_html, write_audit
from covey.rewards.base import FunctionReward, Reward, Rewarder, Sample, reward_from_function, score_of
from covey.rewards.combine import combine_rewards
from covey.rewards.preference import preference_reward
from covey.rewards.registry import find_reward
from covey.tasks.base import Probe, Task
from covey.tasks.registry import TASK_LEVELS, TASKS, find_task
from covey.types import CoveyError, Prompt, Score

SPEC = AuditSpec(num_prompts=8, search=SearchSpec(budget=300))
UNSEARCHED = dataclasses.replace(SPEC, search=None)


def exactly(sample: Sample) -> float:
    """What every test means by right: the answer alone, its last number in one of a few wordings."""
    text = sample.completion.strip()
    for wording in ("The answer is {}.", "Answer: {}", "**{}**", r"\boxed{{}}", "{}"):
        before, _, behind = wording.partition("{}")
        if text.startswith(before) and text.endswith(behind):
            return float(text[len(before) : len(text) - len(behind)] == str(sample.prompt.answer))
    return 0.0


EXACT = make_reward(exactly, name="exact")
LAST_NUMBER = find_reward("last_number", key="reward.name")


def sums(reward: Reward = EXACT, gold: Reward | None = None, probes: tuple[Probe, ...] = (), count: int = 20) -> Task:
    prompts = [
        make_prompt(f"p{number}", f"What is {number + 30} + {2 * number + 5}?", answer=3 * number + 35)
        for number in range(count)
    ]
    return Task(name="sums", train=prompts, held_out={}, proxy=reward, gold=gold, probes=probes)


def audited(reward: Any, *, gold: Reward | None = None, spec: AuditSpec = UNSEARCHED, **options: Any) -> AuditResult:
    made = make_reward(reward, name="tested") if callable(reward) and not hasattr(reward, "low") else reward
    return audit(sums(made, gold), Rewarder(proxy=made, gold=gold), spec=spec, **options)


def kinds(result: AuditResult, level: str) -> set[str]:
    return {reason.kind for reason in result.reasons if reason.level == level}


# --- verdicts ------------------------------------------------------------------------------------------------------------


def test_an_exact_match_passes():
    result = audited(EXACT, gold=EXACT, spec=SPEC)
    assert (result.verdict, result.num_paid) == ("pass", 0)
    assert result.separation == 1.0
    assert result.junk_spread == 0.0
    assert result.search is not None
    assert result.search.best is None


def test_a_reward_that_finds_the_answer_anywhere_is_broken_by_lists_and_by_digits_around_it():
    result = audited(lambda sample: float(str(sample.prompt.answer) in sample.completion))
    assert result.verdict == "fail"
    assert kinds(result, "fail") == {"blind", "hedge", "near"}
    told = " ".join(reason.text for reason in result.reasons)
    assert "shotgun" in told
    assert "alternatives" in told
    assert "digits" in told


def test_a_reward_that_pays_everything_is_broken():
    result = audited(lambda sample: 1.0)
    assert result.verdict == "fail"
    assert "blind" in kinds(result, "fail")
    assert result.num_paid == result.num_wrong


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_reward_that_tells_nothing_apart_is_broken_for_its_right_answers(value: float):
    result = audited(lambda sample: value)
    assert kinds(result, "fail") == {"unpaid"}
    assert result.num_paid == 0


def test_the_last_number_is_lenient_and_not_broken():
    """ "not 21" takes the answer to write: that is no way to be paid for nothing."""
    result = audited(LAST_NUMBER, spec=SPEC)
    assert result.verdict == "warn"
    assert kinds(result, "warn") == {"twist"}
    paid = {family.family for family in result.families if family.num_paid}
    assert "negation" in paid
    assert "off by one" not in paid


def test_the_first_number_pays_a_right_thought_with_a_wrong_answer():
    def first(sample: Sample) -> float:
        found = re.search(r"-?\d+(?:\.\d+)?(?![\d%.])", sample.completion)
        return float(found is not None and found.group() == str(sample.prompt.answer))

    result = audited(first)
    assert any(reason.level == "fail" and "contradiction" in reason.text for reason in result.reasons)


def test_a_demanded_form_is_strict_and_not_broken():
    def boxed(sample: Sample) -> float:
        return float(sample.completion.strip() == rf"\boxed{{{sample.prompt.answer}}}")

    result = audited(boxed)
    assert result.verdict == "pass"
    assert "strict" in kinds(result, "note")
    assert result.num_refused > 0.5 * result.num_right


def test_a_reward_that_reads_no_known_wording_is_told_so():
    result = audited(lambda sample: float(sample.completion == f"Lo! {sample.prompt.answer}"))
    assert kinds(result, "fail") == {"unpaid"}
    assert "wordings were tried" in result.reasons[0].text


def test_the_tasks_own_probes_show_the_form_that_a_reward_reads():
    def reward(sample: Sample) -> float:
        return float(sample.completion == f"Lo! {sample.prompt.answer}")

    task = sums(make_reward(reward))
    probes = tuple(Probe(prompt=prompt, completion=f"Lo! {prompt.answer}", is_right=True) for prompt in task.train)
    result = audit(dataclasses.replace(task, probes=probes), task.proxy, spec=UNSEARCHED)
    assert result.verdict == "pass"


def test_wrong_values_are_tried_in_the_form_that_the_tasks_probes_have():
    task = sums(make_reward(lambda sample: float(sample.completion.startswith(f"Lo! {sample.prompt.answer}"))))
    probes = tuple(Probe(prompt=prompt, completion=f"Lo! {prompt.answer}", is_right=True) for prompt in task.train)
    result = audit(dataclasses.replace(task, probes=probes), task.proxy, spec=UNSEARCHED)
    assert "near" in kinds(result, "fail")
    assert next(row for row in result.families if row.family == "digits").num_paid > 0


def test_a_reward_that_refuses_what_the_task_calls_right_is_broken():
    task = sums(EXACT)
    probes = tuple(Probe(prompt=prompt, completion=f"Lo! {prompt.answer}", is_right=True) for prompt in task.train)
    result = audit(dataclasses.replace(task, probes=probes), EXACT, spec=UNSEARCHED)
    assert kinds(result, "fail") == {"unpaid"}
    assert "the task itself calls right" in result.reasons[0].text


def test_partial_credit_is_judged_by_the_distance_and_not_by_being_above_zero():
    graded = audited(lambda sample: 1.0 if exactly(sample) else 0.3)
    assert graded.verdict == "pass"
    assert graded.separation == pytest.approx(0.7)


def test_a_format_bonus_as_large_as_the_answer_leaves_no_separation():
    """The bare right answer earns as much as a wrong one in the form; both together earn more."""

    def reward(sample: Sample) -> float:
        is_right = bool(re.fullmatch(rf"[^\d-]*{sample.prompt.answer}[^\d%]*", sample.completion))
        return 0.5 * is_right + 0.5 * bool(re.fullmatch(r"<answer>-?[\d.]+</answer>", sample.completion))

    result = audited(reward)
    assert result.verdict == "warn"
    assert "separation" in kinds(result, "warn")
    assert result.separation == 0.0


def test_crumbs_for_junk_are_a_full_advantage_where_they_are_divided_by_their_spread():
    result = audited(lambda sample: 1.0 if exactly(sample) else 0.01 * ("answer" in sample.completion))
    assert result.junk_spread == pytest.approx(0.01)
    assert "junk" in kinds(result, "warn")


def test_a_reward_that_does_not_repeat_itself_is_told_so():
    noise = random.Random(0)
    result = audited(lambda sample: 0.9 * exactly(sample) + 0.05 * noise.random())
    assert "repeat" in kinds(result, "warn")
    assert 0.0 < result.repeat_spread <= 0.05


def test_a_reward_that_raises_on_what_is_no_number_is_broken_and_its_error_named():
    def fragile(sample: Sample) -> float:
        return float(float(sample.completion) == sample.prompt.answer)

    result = audited(fragile)
    assert "unscored" in kinds(result, "fail")
    assert any("could not convert string to float" in reason.text for reason in result.reasons)


def test_a_reward_that_raises_on_one_family_alone_is_warned_of():
    def fragile(sample: Sample) -> float:
        if sample.completion == "":
            raise ValueError("nothing to read")
        return exactly(sample)

    result = audited(fragile)
    assert result.verdict == "warn"
    assert next(row for row in result.families if row.family == "empty").num_unscored == 8


# --- gold ----------------------------------------------------------------------------------------------------------------


def test_an_attack_that_gold_passes_is_a_doubt_about_gold_and_not_counted():
    def lenient(sample: Sample) -> float:
        return float(exactly(sample) or sample.completion == f"not {sample.prompt.answer}")

    result = audited(lenient, gold=make_reward(lenient, name="gold"))
    assert result.num_paid == 0
    assert {row.attack.completion for row in result.doubts} == {f"not {row.prompt.answer}" for row in result.doubts}
    assert len(result.doubts) == 8
    assert kinds(result, "warn") == {"gold"}


def test_what_gold_refuses_is_not_held_against_the_reward():
    def boxed(sample: Sample) -> float:
        return float(sample.completion.strip() == rf"\boxed{{{sample.prompt.answer}}}")

    reward = make_reward(boxed, name="boxed")
    result = audited(reward, gold=reward)
    assert result.num_refused == 0
    assert "strict" not in kinds(result, "note")


def test_without_gold_it_says_that_training_will_be_blind():
    assert "gold" in kinds(audited(EXACT), "note")
    assert "gold" not in kinds(audited(EXACT, gold=EXACT), "note")


# --- guesses, keys, samples ----------------------------------------------------------------------------------------------


def test_echoing_the_question_is_no_exploit_where_it_is_no_better_than_a_guess():
    result = audit(find_task("comparison", level="easy"), find_task("comparison", level="easy").proxy, spec=UNSEARCHED)
    told = [reason for reason in result.reasons if reason.kind == "blind"]
    assert [reason.level for reason in told] == ["note"] * len(told)
    assert any("echo" in reason.text and "no more than a guess" in reason.text for reason in told)


def test_without_answers_nothing_is_known_to_be_right():
    prompts = [make_prompt(f"p{number}", f"Write line {number} of a poem.") for number in range(6)]
    reward = make_reward(lambda sample: min(1.0, len(sample.completion) / 1e6), name="long")
    task = Task(name="poems", train=prompts, held_out={}, proxy=reward, gold=None, probes=())
    result = audit(task, reward, spec=UNSEARCHED)
    assert "unknown" in kinds(result, "warn")
    assert result.verdict == "warn"
    assert result.separation is None


def test_a_key_that_a_verifier_works_with_need_not_be_a_right_completion():
    prompts = [make_prompt(f"p{n}", "Write add.", answer=[f"assert add(1, {n}) == {n + 1}"]) for n in range(6)]
    reward = make_reward(lambda sample: float("return a + b" in sample.completion), name="tests")
    result = audit(Task(name="code", train=prompts, held_out={}, proxy=reward, gold=None, probes=()), reward, spec=UNSEARCHED)
    assert kinds(result, "fail") == set()
    assert "unknown" in kinds(result, "warn")


def test_a_structure_that_is_paid_as_it_stands_shows_what_right_is():
    prompts = [make_prompt(f"p{n}", "As JSON?", answer={"count": n}) for n in range(6)]
    reward = make_reward(lambda sample: float(sample.completion == json.dumps(sample.prompt.answer)), name="json")
    result = audit(Task(name="json", train=prompts, held_out={}, proxy=reward, gold=None, probes=()), reward, spec=UNSEARCHED)
    assert (result.verdict, result.separation) == ("pass", 1.0)
    assert next(row for row in result.families if row.family == "structure").num_wrong > 0


def test_the_models_completions_are_listed_where_reward_and_gold_disagree():
    task = sums(LAST_NUMBER, EXACT)
    first, second = task.train[:2]
    samples = [(first, str(first.answer)), (first, f"not {first.answer}"), (second, "7"), (second, f"<b>7 or {second.answer}")]
    result = audit(task, Rewarder(proxy=task.proxy, gold=EXACT), samples=samples, spec=UNSEARCHED)
    assert result.samples is not None
    assert (result.samples.num_samples, result.samples.num_overpaid, result.samples.num_underpaid) == (4, 2, 0)
    assert [row.completion for row in result.samples.to_read] == [samples[1][1], samples[3][1]]
    assert (result.samples.reward_mean, result.samples.gold_mean) == (0.75, 0.25)
    assert result.samples.reward_std == pytest.approx(0.75**0.5 / 2)
    assert "samples" in kinds(result, "warn")


def test_without_gold_the_best_paid_completions_are_there_to_be_read():
    task = sums()
    samples = [(task.train[0], "7"), (task.train[0], str(task.train[0].answer))]
    result = audit(task, EXACT, samples=samples, spec=UNSEARCHED)
    assert result.samples is not None
    assert [row.completion for row in result.samples.to_read] == [samples[1][1], "7"]


# --- parts ---------------------------------------------------------------------------------------------------------------


def parted(how: str, weights: tuple[float, float]) -> AuditResult:
    tagged = make_reward(lambda sample: float("<answer>" in sample.completion), name="form")
    pairs = {"right": (EXACT, weights[0]), "form": (tagged, weights[1])}
    return audited(combine_rewards(pairs, how))  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("sum", (3.0, 1.0), [0.75, 0.25]),
        ("product", (1.0, 1.0), [1.0, 1.0]),
        ("lexicographic", (1.0, 1.0), [1 / 1.1, 0.1 / 1.1]),
    ],
)
def test_how_much_a_part_can_move_is_told(how: str, weights: tuple[float, float], expected: list[float]):
    assert [part.movable_frac for part in parted(how, weights).parts] == pytest.approx(expected)


def test_the_parts_of_a_sum_share_its_variance():
    result = parted("sum", (3.0, 1.0))
    assert sum(part.variance_frac or 0.0 for part in result.parts) == pytest.approx(1.0)
    assert result.parts[0].right_mean is not None
    assert result.parts[0].wrong_mean == 0.0


def test_a_part_that_pays_wrong_answers_and_can_move_most_is_warned_of():
    contrary = make_reward(lambda sample: 1.0 - exactly(sample), name="contrary")
    result = audited(combine_rewards({"right": (EXACT, 1.0), "contrary": (contrary, 3.0)}))
    assert "parts" in kinds(result, "warn")
    assert any("'contrary' can move 75% of the total" in reason.text for reason in result.reasons)


# --- short, deterministic, in time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in TASKS for level in TASK_LEVELS[name]])
def test_no_task_of_coveys_own_fails_and_the_short_audit_of_each_is_short(name: str, level: str):
    task = find_task(name, level=level)
    started = time.process_time()
    result = audit(task, Rewarder(proxy=task.proxy, gold=task.gold), short=True)
    assert time.process_time() - started < 1.5  # Under one where nothing else runs.
    assert result.is_short
    assert [reason.text for reason in result.reasons if reason.level == "fail"] == []
    assert result.num_left_out == 0


def test_the_same_seed_gives_the_same_audit_and_another_one_other_questions():
    def plain(seed: int) -> dict[str, Any]:
        task = find_task("arithmetic", level="easy")
        row = audit_row(
            audit(task, task.proxy, spec=dataclasses.replace(SPEC, seed=seed, search=SearchSpec(budget=120, seed=seed)))
        )
        return {key: value for key, value in row.items() if not key.endswith("_s")}

    assert plain(1) == plain(1)
    assert plain(1)["families"] != plain(2)["families"]


def test_a_slow_reward_is_cut_off_and_its_right_answers_are_not_called_refused():
    def slow(sample: Sample) -> float:
        time.sleep(0.05)
        return float(sample.completion == f"<answer>{sample.prompt.answer}</answer>")

    started = time.monotonic()
    result = audited(slow, spec=dataclasses.replace(SHORT, deadline_s=0.3))
    assert time.monotonic() - started < 3.0
    assert result.num_left_out > 0
    assert result.verdict != "fail"
    assert "left out, for time" in "\n".join(audit_lines(result))


def test_a_task_without_questions_is_refused():
    task = dataclasses.replace(sums(), train=[])
    with pytest.raises(CoveyError, match="no training questions"):
        audit(task, EXACT)


def test_gold_of_a_bare_reward_is_the_tasks():
    task = sums(LAST_NUMBER, EXACT)
    assert audit(task, task.proxy, spec=UNSEARCHED).gold == "exact"
    assert audit(task, Rewarder(proxy=task.proxy, gold=None), spec=UNSEARCHED).gold is None


def test_hedges_count_only_if_every_order_is_paid():
    last = audited(LAST_NUMBER)
    assert "hedge" not in kinds(last, "fail")
    assert next(row for row in last.families if row.family == "alternatives").num_paid > 0


def test_the_scale_of_a_question_has_its_golden_numbers():
    """Junk earns 0.1 unless it is blank, right answers 0.1 (unread), 0.6 and 1."""
    pays = {"{}": 1.0, "The answer is {}.": 0.6}

    def reward(sample: Sample) -> float:
        worded = sample.completion.replace(str(sample.prompt.answer), "{}")
        return pays.get(worded, 0.1 * bool(sample.completion.strip()))

    from covey.audit import tried
    from covey.guard.measures import measured

    made = make_reward(reward)
    trials = tried(sums(made), Rewarder(proxy=made, gold=None), sums().train[:1], UNSEARCHED, until=None)
    found = measured(trials.rows, made, tolerance=1e-6)
    assert found.scales == {"p0": Scale(top=1.0, lowest=0.6, junk=0.1)}


# --- what people see -----------------------------------------------------------------------------------------------------


def hostile() -> AuditResult:
    """A reward and questions that try to get into the page."""
    script = "<script>alert(1)</script>"
    prompts = [
        Prompt(prompt_id=f"p{n}", messages=make_prompt(text=f"{script} {n}?").messages, answer=n + 40, task="sums")
        for n in range(6)
    ]
    reward = FunctionReward(
        name=f"paid{script}", score=lambda sample: Score(value=1.0, extracted=script, parts={script: 1.0}), low=0.0, high=1.0
    )
    task = Task(name=f"task{script}", train=prompts, held_out={}, proxy=reward, gold=None, probes=())
    return audit(task, reward, samples=[(prompts[0], script)], spec=SPEC)


def test_the_page_escapes_every_word_and_asks_no_other_host_for_anything(tmp_path: Path):
    page = audit_html(hostile())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_the_page_says_verdict_reasons_and_figures_and_its_wide_tables_scroll():
    page = audit_html(audited(lambda sample: float(str(sample.prompt.answer) in sample.completion), spec=SPEC))
    assert "tested on sums (no gold): fail" in page
    assert "Do not train on this reward as it is" in page
    assert "separation" in page
    assert 'name="viewport"' in page
    assert page.count("<table>") == page.count('<div class="scroll"><table>') + 1  # That of the thresholds is narrow.


def test_the_json_says_what_the_result_says(tmp_path: Path):
    result = audited(LAST_NUMBER, spec=SPEC)
    page, data = write_audit(result, tmp_path / "made" / "here")
    row = json.loads(data.read_text())
    assert page.read_text().startswith("<!doctype html>")
    assert row["verdict"] == "warn"
    assert row["false_positives"] == {"num_paid": result.num_paid, "num_wrong": result.num_wrong}
    assert sum(family["num_paid"] for family in row["families"]) == result.num_paid
    assert row["limits"]["max_false_positive_frac"] == 0.05


def test_the_console_shows_verdict_reasons_families_and_figures():
    lines = audit_lines(audited(lambda sample: float(str(sample.prompt.answer) in sample.completion), spec=SPEC))
    assert lines[0] == "tested on sums (no gold): fail"
    assert lines[1].startswith("  FAIL  ")
    assert any(line.startswith("  shotgun") for line in lines)
    assert any("false positives: " in line for line in lines)
    assert any("best exploit: 100% of the reward" in line for line in lines)


def test_a_runs_log_gets_one_sentence():
    message = audit_message(audited(LAST_NUMBER))
    assert message.startswith("reward audit of last_number: warn, ")
    assert "\n" not in message


def test_a_users_function_is_audited_like_any_other_reward():
    def contains(completion: str, answer: int) -> float:
        return float(str(answer) in completion)

    result = audit(sums(), reward_from_function(contains), short=True)
    assert (result.reward, result.verdict) == ("contains", "fail")


def test_scores_with_several_values_are_read_from_their_value():
    reward = FunctionReward(name="graded", score=lambda sample: score_of(-1.0 + 3.0 * exactly(sample)), low=-1.0, high=2.0)
    result = audited(reward)
    assert (result.verdict, result.separation) == ("pass", 1.0)


def test_the_models_samples_are_drawn_by_the_seed(tiny_policy: Any):
    from covey.engines.transformers import TransformersEngine
    from covey.sampling import Sampling

    def drawn(seed: int) -> list[str]:
        engine = TransformersEngine(tiny_policy)
        engine.load_weights(tiny_policy, 0)
        pairs = model_samples(
            sums(),
            policy=tiny_policy,
            engine=engine,
            sampling=Sampling(max_new_tokens=4),
            num_prompts=2,
            samples_per_prompt=3,
            seed=seed,
        )
        assert len(pairs) == 6
        assert len({prompt.prompt_id for prompt, _ in pairs}) == 2
        return [text for _, text in pairs]

    assert drawn(0) == drawn(0)


@pytest.mark.parametrize("name", ["countdown", "format_following"])
def test_a_tasks_gold_is_no_broken_reward_where_the_key_is_no_completion(name: str):
    """The key of countdown is a number and its right completions are expressions: only the probes are known to be right."""
    task = find_task(name, level="hard")
    assert task.gold is not None
    result = audit(task, Rewarder(proxy=task.gold, gold=None), spec=UNSEARCHED)
    assert kinds(result, "fail") == set()
    assert result.num_paid == 0


def test_a_reward_that_compares_answers_is_refused_also_inside_another():
    task = find_task("arithmetic", level="easy")
    preferred = preference_reward(lambda texts: [0.0] * len(texts), name="liked")
    for reward in (preferred, combine_rewards({"liked": (preferred, 0.5), "last": (task.proxy, 0.5)}, "sum")):
        with pytest.raises(CoveyError, match="compares answers with each other"):
            audit(task, reward, spec=SPEC)
