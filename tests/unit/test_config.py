"""The recipe: everything a user can get wrong is refused with key, value and remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from covey.algos.registry import ALGORITHMS
from covey.config import ConfigError, Recipe, load_recipe, make_recipe, parse_override
from covey.monitor.sinks import SINKS
from covey.pairs_recipe import load_pairs_recipe, pair_row
from covey.types import CoveyError


def message_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "remedy"),
    [
        ("train.num_stpes=3", "train.num_stpes", "did you mean 'num_steps'?"),
        ("trian.num_steps=3", "trian", "did you mean 'train'?"),
        ("sampling.temprature=1", "sampling.temprature", "did you mean 'temperature'?"),
        (
            "reward.qqqq=1",
            "reward.qqqq",
            "known here: name, parts, options, combine, tie_break, gold, gold_options, audit, max_error_frac, num_workers, "
            "timeout_s, batch_timeout_s, max_memory_mb, sandbox, sandbox_command, sandbox_cpu_s, "
            "sandbox_memory_mb",
        ),
        (
            "qqqq.num_steps=3",
            "qqqq",
            "known here: run, model, lora, engine, task, reward, algorithm, sampling, train, evaluation, guard, spikes, "
            "checkpoint",
        ),
        ("train.num.steps=3", "train.num.steps", "did you mean 'num_steps'?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(override: str, key: str, remedy: str):
    assert message_of(override) == f"{key}: there is no such option; {remedy}"


@pytest.mark.parametrize(
    ("override", "named", "remedy"),
    [
        ("train.num_steps=many", "train.num_steps='many'", "valid integer"),
        ("train.num_steps=1.5", "train.num_steps=1.5", "valid integer"),
        ("train.num_steps=[1]", "train.num_steps=[1]", "valid integer"),
        ("train.learning_rate=fast", "train.learning_rate='fast'", "valid number"),
        ("train.decay=perhaps", "train.decay='perhaps'", "valid boolean"),
        ("model.name=[1]", "model.name=[1]", "valid string"),
        ("run.sinks=tensorboard", "run.sinks='tensorboard'", "valid tuple"),
        ("model.compute_dtype=float16", "model.compute_dtype='float16'", "'auto', 'float32' or 'bfloat16'"),
        ("run.name=135", "run.name=135", "valid string"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(override: str, named: str, remedy: str):
    message = message_of(override)
    assert message.startswith(f"{named}: ")
    assert remedy in message


@pytest.mark.parametrize("key", ["train.num_steps", "train.learning_rate", "sampling.max_new_tokens"])
def test_true_is_no_number(key: str):
    assert message_of(f"{key}=true").startswith(f"{key}=True: ")


@pytest.mark.parametrize(
    ("override", "named", "remedy"),
    [
        ("train.num_steps=0", "train.num_steps=0", "greater than or equal to 1"),
        ("train.group_size=1", "train.group_size=1", "at least 2 completions a prompt"),
        ("train.group_size=0", "train.group_size=0", "greater than or equal to 1"),
        ("train.learning_rate=0", "train.learning_rate=0", "greater than 0"),
        ("train.learning_rate=-1e-5", "train.learning_rate=-1e-05", "greater than 0"),
        ("train.learning_rate=nan", "train.learning_rate=nan", "finite"),
        ("train.learning_rate=inf", "train.learning_rate=inf", "finite"),
        ("train.warmup_steps=-1", "train.warmup_steps=-1", "greater than or equal to 0"),
        ("train.weight_decay=-0.1", "train.weight_decay=-0.1", "greater than or equal to 0"),
        ("train.max_grad_norm=0", "train.max_grad_norm=0", "greater than 0"),
        ("algorithm.beta=-0.1", "algorithm.beta=-0.1", "greater than or equal to 0"),
        ("algorithm.epsilon_low=1.1", "algorithm.epsilon_low=1.1", "less than or equal to 1"),
        ("algorithm.epsilon_high=0", "algorithm.epsilon_high=0", "greater than 0"),
        ("sampling.temperature=0", "sampling.temperature=0", "greater than 0"),
        ("sampling.max_new_tokens=0", "sampling.max_new_tokens=0", "greater than or equal to 1"),
        ("reward.max_error_frac=1.1", "reward.max_error_frac=1.1", "less than or equal to 1"),
        ("checkpoint.keep=1", "checkpoint.keep=1", "greater than or equal to 2"),
        ("evaluation.samples_per_prompt=0", "evaluation.samples_per_prompt=0", "greater than or equal to 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(override: str, named: str, remedy: str):
    message = message_of(override)
    assert message.startswith(f"{named}: ")
    assert remedy in message


def test_an_unknown_algorithm_is_refused_with_the_known_ones():
    message = message_of("algorithm.name=grop")
    assert message == f"algorithm.name='grop': no such algorithm; choose one of {', '.join(ALGORITHMS)}"


def test_an_unknown_tracker_is_refused_with_the_known_ones():
    message = message_of('run.sinks=["tensorbord"]')
    assert message == f"run.sinks=['tensorbord']: no such tracker: tensorbord; choose among {', '.join(SINKS)}"


def test_redrawing_without_dropping_is_a_contradiction():
    message = message_of("train.max_draws=2", "train.drop_flat_groups=false")
    assert message.startswith("train.max_draws=2 with train.drop_flat_groups=false: ")
    assert "Set one of them back" in message


@pytest.mark.parametrize(
    ("overrides", "start", "remedy"),
    [
        (["spikes.grad_norm_factor=0.5"], "spikes.grad_norm_factor=0.5: ", "give a larger limit"),
        (["spikes.max_ratio=1", "train.num_iterations=2"], "spikes.max_ratio=1", "give a larger limit"),
        (["spikes.num_norms=3"], "spikes.num_norms=3: ", "it belongs to grad_norm_factor"),
        (["spikes.action=go_back"], "spikes.action='go_back' without a limit: ", "set grad_norm_factor, max_kl or max_ratio"),
        (["spikes.max_kl=1"], "spikes.max_kl=1.0: ", "no reference model"),
        (["spikes.max_ratio=2"], "spikes.max_ratio=2.0 with one update a step: ", "Set train.num_iterations"),
        (
            ["spikes.grad_norm_factor=10", "spikes.action=go_back", "checkpoint.every=0"],
            "spikes.action='go_back' with checkpoint.every=0: ",
            "nothing to go back to",
        ),
    ],
)
def test_limits_that_mean_nothing_are_refused(overrides: list[str], start: str, remedy: str):
    message = message_of(*overrides)
    assert message.startswith(start)
    assert remedy in message


def test_limits_that_agree_with_the_rest_are_not_refused():
    overrides = ["spikes.grad_norm_factor=10", "spikes.num_norms=3", "spikes.max_kl=1", "spikes.max_ratio=2"]
    spikes = load_recipe(
        None, [*overrides, "spikes.action=go_back", "algorithm.track_kl=true", "train.num_iterations=2"]
    ).spikes
    assert spikes.has_limits
    assert not Recipe().spikes.has_limits


def test_a_long_warm_up_without_decay_is_none():
    assert load_recipe(None, ["train.num_steps=5", "train.warmup_steps=5"]).train.warmup_steps == 5


def test_all_wrong_keys_are_named_at_once():
    assert [line.partition(":")[0] for line in message_of("train.num_stpes=3", "train.group_size=0").splitlines()] == [
        "train.group_size=0",
        "train.num_stpes",
    ]


def test_a_wrong_recipe_is_an_error_that_the_command_line_prints_plainly():
    assert issubclass(ConfigError, CoveyError)


# --- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["num_steps=20", "train.num_steps", "train", "", "=3", "--steps=3"])
def test_an_override_of_the_wrong_form_is_refused_with_the_right_one(override: str):
    message = message_of(override)
    assert message == f"override {override!r} is not of the form section.key=value, such as train.num_steps=20"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        ("-3", -3),
        ("2e-5", 2e-5),
        ("-1.5E+3", -1500.0),
        ("1_000", 1000),
        ("true", True),
        ('["tensorboard", "wandb"]', ["tensorboard", "wandb"]),
        ("[]", []),
        ('"quoted text"', "quoted text"),
        ('""', ""),
        ("", ""),
        ("smollm2-135m", "smollm2-135m"),
        ("a model with spaces", "a model with spaces"),
        ("/data/my models/one", "/data/my models/one"),
        ("module:function", "module:function"),
        ("a=b", "a=b"),
        ("it's", "it's"),
    ],
)
def test_the_value_of_an_override_is_read_as_toml_or_else_as_text(text: str, value: object):
    section, key, found = parse_override(f"section.key={text}")
    assert (section, key, found) == ("section", "key", value)
    assert type(found) is type(value)


def test_spaces_around_the_equals_sign_do_not_matter():
    assert load_recipe(None, ["train.num_steps = 20"]).train.num_steps == 20


def test_an_override_beats_the_recipe(tmp_path: Path):
    (tmp_path / "r.toml").write_text("[train]\nnum_steps = 3\ngroup_size = 4\n")
    train = load_recipe(tmp_path / "r.toml", ["train.num_steps=5"]).train
    assert (train.num_steps, train.group_size) == (5, 4)


def test_the_last_of_two_overrides_wins():
    assert load_recipe(None, ["train.num_steps=5", "train.num_steps=6"]).train.num_steps == 6


def test_an_override_below_a_plain_value_is_refused(tmp_path: Path):
    (tmp_path / "r.toml").write_text("train = 3\n")
    with pytest.raises(ConfigError, match=r"train=3 is a plain value in the recipe, but \[train\] is a section"):
        load_recipe(tmp_path / "r.toml", ["train.num_steps=5"])


@pytest.mark.parametrize("name", ["135", "true", "2026-01-02"])
def test_a_name_that_looks_like_a_number_can_be_quoted(name: str):
    assert load_recipe(None, [f'run.name="{name}"']).run.name == name


# --- files -------------------------------------------------------------------------------------------------------------


def test_a_missing_recipe_is_refused_by_its_path(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.toml does not exist\. Recipes that come with Covey lie in recipes/"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"[train\n", b"num_steps: 3\n", b"\xff\xfe", b"[train]\nnum_steps = 3\nnum_steps = 4\n"])
def test_a_file_that_is_no_toml_is_refused_by_its_path(tmp_path: Path, content: bytes):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: ."):
        load_recipe(tmp_path / "bad.toml")


def test_a_directory_is_no_recipe(tmp_path: Path):
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_recipe(tmp_path)


def test_a_section_that_is_a_plain_value_is_refused(tmp_path: Path):
    (tmp_path / "r.toml").write_text("train = 3\n")
    with pytest.raises(ConfigError, match=r"^train=3: "):
        load_recipe(tmp_path / "r.toml")


def test_no_recipe_means_the_defaults():
    assert load_recipe(None) == Recipe()


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_is_valid(path: Path):
    assert load_pairs_recipe(path) if pair_row(path) else load_recipe(path)


def test_there_are_recipes_that_come_along():
    assert RECIPES


# --- what a recipe is --------------------------------------------------------------------------------------------------


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@settings(max_examples=60, deadline=None)
@given(
    name=TEXTS.filter(lambda name: name not in (".", "..") and not set(name) & {"/", "\0"}),
    sinks=st.lists(st.sampled_from(sorted(SINKS)), max_size=3),
    rate=st.floats(1e-12, 1.0),
    steps=st.integers(10, 2**40),
    decay=st.booleans(),
)
def test_a_recipe_written_as_toml_reads_back_equal(name: str, sinks: list[str], rate: float, steps: int, decay: bool):
    recipe = make_recipe(
        {
            "run": {"name": name, "sinks": sinks},
            "train": {"learning_rate": rate, "num_steps": steps, "decay": decay},
        }
    )
    assert make_recipe(tomllib.loads(recipe.to_toml())) == recipe


def test_the_toml_of_a_recipe_names_every_option():
    """Those that the recipe's algorithm does not have are not among them."""
    written = tomllib.loads(Recipe().to_toml())
    assert {section: set(options) for section, options in written.items()} == {
        section: {option for option, value in options.items() if value is not None}
        for section, options in Recipe().model_dump().items()
    }


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError):
        Recipe().train.num_steps = 3  # ty: ignore[invalid-assignment]


def test_every_option_but_the_obvious_says_what_it_is():
    sections: dict[str, Any] = {name: field.annotation for name, field in Recipe.model_fields.items()}
    silent = {
        f"{name}.{option}"
        for name, section in sections.items()
        for option, field in section.model_fields.items()
        if not field.description
    }
    assert silent <= {"train.weight_decay"}


def test_what_follows_from_the_batch_numbers_is_said_in_words():
    recipe = load_recipe(
        None,
        [
            "train.prompts_per_step=3",
            "train.group_size=4",
            "train.num_steps=5",
            "train.max_draws=2",
            "sampling.max_new_tokens=10",
        ],
    )
    derived = recipe.derived()
    assert derived["completions a step"] == "3 prompts x 4 = 12, drawn up to 2 times"
    assert derived["completions in the run"] == "60 in 5 steps"
    assert derived["tokens a step"] == "at most 120 a draw"
