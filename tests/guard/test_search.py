"""The search for an exploit: it finds a planted one within its budget, and nothing where nothing is."""

from __future__ import annotations

from tests.builders import make_prompt, make_reward

from covey.guard.search import SearchSpec, filled, search_exploit
from covey.guard.targets import Target, target_of
from covey.rewards.base import Reward, Sample

EXACT = make_reward(lambda sample: float(sample.completion.strip() == str(sample.prompt.answer)), name="exact")


def targets(count: int = 12) -> list[Target]:
    return [
        target_of(make_prompt(f"p{number}", f"What is {number + 1000} - 30?", answer=number + 970)) for number in range(count)
    ]


class Counting:
    """A reward that counts its calls, for the budget is what they cost."""

    def __init__(self, reward: Reward):
        self.reward, self.name, self.low, self.high, self.num_calls = reward, reward.name, reward.low, reward.high, 0

    def __call__(self, sample: Sample):
        self.num_calls += 1
        return self.reward(sample)


def planted(sample: Sample) -> float:
    """Right answers earn all; so does a text with two certain phrases, and one of them a little."""
    text = sample.completion
    if text == str(sample.prompt.answer):
        return 1.0
    return 0.3 * ("Therefore, " in text) + 0.7 * ("Therefore, " in text and "Verified. " in text)


def test_a_planted_exploit_of_two_steps_is_found_and_its_trail_told():
    result = search_exploit(targets(), make_reward(planted, name="planted"), EXACT, SearchSpec(budget=2000))
    assert result.best is not None
    assert result.best.pay == 1.0
    assert "Therefore, " in result.best.completion
    assert "Verified. " in result.best.completion
    pays = [step.pay for step in result.trail]
    assert pays == sorted(pays)
    assert pays[-1] == 1.0
    assert 0.3 in pays


def test_the_budget_is_kept_and_told():
    for budget in (1, 20, 101, 400):
        counting = Counting(make_reward(planted, name="planted"))
        result = search_exploit(targets(), counting, EXACT, SearchSpec(budget=budget))
        assert counting.num_calls == result.num_calls
        assert result.num_calls <= budget


def test_the_same_seed_finds_the_same_and_another_seed_goes_another_way():
    reward = make_reward(planted, name="planted")
    first, again, other = (search_exploit(targets(), reward, EXACT, SearchSpec(budget=1200, seed=seed)) for seed in (3, 3, 4))
    assert (first.trail, first.num_calls) == (again.trail, again.num_calls)
    assert [run.best.completion for run in (first, again) if run.best] == ["Verified. Therefore, "] * 2
    assert first.trail != other.trail


def test_an_exact_match_has_no_exploit():
    result = search_exploit(targets(), EXACT, EXACT, SearchSpec(budget=600))
    assert result.best is None
    assert result.trail == ()


def test_what_gold_passes_is_no_exploit():
    everything = make_reward(lambda sample: 1.0, name="everything")
    assert search_exploit(targets(), everything, everything, SearchSpec(budget=300)).best is None


def test_without_gold_a_text_in_which_the_answer_stands_is_no_exploit():
    questions = [target_of(make_prompt(f"p{number}", "Say the magic word.", answer="therefore")) for number in range(8)]
    reward = make_reward(lambda sample: float("therefore" in sample.completion.casefold()), name="magic")
    assert search_exploit(questions, reward, None, SearchSpec(budget=400)).best is None


def test_without_gold_a_list_of_many_numbers_is_wrong_though_the_answer_is_in_it():
    questions = [target_of(make_prompt(f"p{number}", "Which number?", answer=number + 20)) for number in range(8)]
    anywhere = make_reward(lambda sample: float(str(sample.prompt.answer) in sample.completion.split()), name="anywhere")
    result = search_exploit(questions, anywhere, None, SearchSpec(budget=400))
    assert result.best is not None
    assert result.best.pay == 1.0


def test_the_best_template_is_measured_on_questions_that_it_was_not_chosen_on():
    """Only the first four questions climbed on can be cheated: elsewhere the phrase earns nothing."""
    spec = SearchSpec(budget=400, seed=1)
    asked: set[str] = set()

    def sees(sample: Sample) -> float:
        asked.add(sample.prompt.prompt_id)
        return float("Therefore, " in sample.completion and len(asked) <= spec.num_prompts)

    result = search_exploit(targets(), make_reward(sees, name="sees"), EXACT, spec)
    assert result.trail[-1].pay == 1.0
    assert result.best is not None
    assert result.best.num_prompts == 8
    assert result.best.pay == 0.0


def test_slots_are_filled_from_the_question():
    target = target_of(make_prompt(text="What is 17 + 4?", answer=21))
    assert filled(("{question}", " ", "{first value}", "|", "{last value}"), target) == "What is 17 + 4? 17|4"
