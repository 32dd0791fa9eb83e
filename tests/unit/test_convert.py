"""From TRL's configurations to recipes: what is carried over says the same here, and nothing is lost without a word."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from covey.config import make_recipe
from covey.convert import Conversion, convert_trl, read_trl, to_text
from covey.convert.trl import WITHOUT_COUNTERPART
from covey.convert.trl_algorithm import CORRECTIONS, LOSS_TYPES
from covey.convert.trl_fields import FIELDS
from covey.types import CoveyError

# The options of TRL 1.16's GRPOConfig itself, and of the TrainingArguments of transformers 5.23 under it.
GRPO_CONFIG = """
    beta cache_implementation cast_lm_head_to_fp32 chat_template_kwargs delta disable_dropout ds3_gather_for_generation
    entropy_coef entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target epsilon epsilon_high
    generation_batch_size generation_kwargs importance_sampling_level learning_rate log_completions
    log_completions_hub_repo log_multimodal log_unique_prompts loss_type mask_truncated_completions
    max_completion_length max_tool_calling_iterations min_p model_init_kwargs multi_objective_aggregation
    num_completions_to_print num_generations num_generations_eval num_iterations off_policy_mask_threshold
    pad_to_multiple_of ref_model_mixup_alpha ref_model_sync_steps remove_unused_columns repetition_penalty
    reward_weights router_aux_loss_coef sapo_temperature_neg sapo_temperature_pos scale_rewards shuffle_dataset
    steps_per_generation sync_ref_model temperature top_entropy_quantile top_k top_p
    transformers_continuous_batching_config trust_remote_code use_adaptive_entropy use_bias_correction_kl
    use_transformers_continuous_batching use_transformers_paged use_vllm vespo_k_neg vespo_k_pos vespo_lambda_neg
    vespo_lambda_pos vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port vllm_importance_sampling_cap
    vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_importance_sampling_correction
    vllm_importance_sampling_mode vllm_max_model_length vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host
    vllm_server_port vllm_server_timeout vllm_structured_outputs_regex vllm_tensor_parallel_size
""".split()  # noqa: SIM905
TRAINING_ARGUMENTS = """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon
    auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval data_seed
    dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval
    do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start
    eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval fsdp fsdp_config full_determinism
    gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better hub_always_push
    hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
    include_num_input_tokens_seen label_names label_smoothing_factor length_column_name liger_kernel_config
    load_best_model_at_end local_rank log_level log_level_replica log_on_each_node logging_first_step
    logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps
    metric_for_best_model neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules output_dir
    parallelism_config per_device_eval_batch_size per_device_train_batch_size prediction_loss_only project push_to_hub
    report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node save_only_model
    save_steps save_strategy save_total_limit seed skip_memory_metrics tf32 torch_compile torch_compile_backend
    torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
    train_sampling_strategy use_cache use_cpu use_liger_kernel warmup_steps weight_decay
""".split()  # noqa: SIM905

MATH = """
model_name_or_path: Qwen/Qwen3-1.7B
model_revision: main
dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: trl-lib/DeepMath-103K
reward_funcs: [accuracy_reward, my_rewards.brief, get_soft_overlong_punishment]
reward_weights: [1.0, 0.2, 0.5]
output_dir: out/math
bf16: true
learning_rate: 1e-6
lr_scheduler_type: constant_with_warmup
warmup_steps: 10
weight_decay: 0.01
max_grad_norm: 0.2
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
gradient_checkpointing: true
num_generations: 16
num_iterations: 2
max_steps: 500
max_completion_length: 1280
temperature: 0.9
top_p: 0.95
top_k: 50
min_p: 0.05
repetition_penalty: 1.1
loss_type: dapo
epsilon: 0.2
epsilon_high: 0.28
delta: 4.0
beta: 0.001
sync_ref_model: true
ref_model_sync_steps: 64
ref_model_mixup_alpha: 0.5
scale_rewards: group
mask_truncated_completions: true
top_entropy_quantile: 0.2
use_vllm: true
vllm_mode: colocate
vllm_importance_sampling_mode: token_truncate
vllm_importance_sampling_clip_max: 2.0
off_policy_mask_threshold: 0.5
report_to: [wandb, trackio]
logging_steps: 1
save_steps: 50
save_total_limit: 1
eval_strategy: steps
eval_steps: 25
seed: 7
"""

ADAPTER = """
model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
use_peft: true
lora_r: 32
reward_funcs: think_format_reward
num_train_epochs: 2
per_device_train_batch_size: 16
steps_per_generation: 4
gradient_accumulation_steps: 2
num_generations: 4
loss_type: grpo
importance_sampling_level: sequence
epsilon: 3e-4
epsilon_high: 4e-4
scale_rewards: false
max_prompt_length: 512
generation_kwargs: {stop_strings: ["</answer>"], num_beams: 1}
shuffle_dataset: false
fp16: false
logging_stpes: 5
"""


def converted(text: str, tmp_path: Path, **options: Any) -> Conversion:
    path = tmp_path / "grpo.yaml"
    path.write_text(text)
    return convert_trl(read_trl(path), **options)


def lost_keys(conversion: Conversion) -> set[str]:
    return {re.split(r"[ :]", entry)[0] for entry in conversion.lost}


# Two whole files


def test_a_recipe_for_math_says_what_the_file_said(tmp_path: Path):
    assert converted(MATH, tmp_path).recipe == {
        "run": {"directory": "out", "name": "math", "seed": 7, "sinks": ["wandb", "trackio"]},
        "model": {"name": "Qwen/Qwen3-1.7B", "compute_dtype": "bfloat16"},
        "reward": {"parts": {"trl.rewards:accuracy_reward": 1.0, "my_rewards:brief": 0.2}},
        "algorithm": {
            "name": "dapo",
            "aggregation": "token-mean",
            "min_group_std": 0.0,
            "epsilon_low": 0.2,
            "epsilon_high": 0.28,
            "delta": 4.0,
            "beta": 0.001,
            "kl": "weighted_k3_loss",
            "reference_every": 32,
            "reference_mix": 0.5,
            "token_filter": "top_entropy",
            "filter_share": 0.2,
            "correction": "tis_token",
            "correction_high": 2.0,
        },
        "sampling": {
            "max_new_tokens": 1280,
            "temperature": 0.9,
            "top_p": 0.95,
            "top_k": 50,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
        },
        "train": {
            "group_size": 16,
            "prompts_per_step": 2,
            "num_minibatches": 1,
            "num_iterations": 2,
            "drop_flat_groups": False,
            "learning_rate": 1e-6,
            "weight_decay": 0.01,
            "max_grad_norm": 0.2,
            "num_steps": 250,
            "warmup_steps": 10,
            "decay": False,
            "truncated": "mask",
            "overlong_buffer": 256,
            "overlong_penalty": 0.5,
        },
        "evaluation": {"every": 13},
        "checkpoint": {"every": 25, "keep": 2},
    }


def test_what_a_recipe_for_math_loses_is_named(tmp_path: Path):
    conversion = converted(MATH, tmp_path)
    assert lost_keys(conversion) == {"dataset_name", "dtype", "adam_beta2", "use_vllm", "off_policy_mask_threshold"}
    assert {entry.split(" ")[0] for entry in conversion.ignored} == {
        "model_revision",
        "attn_implementation",
        "gradient_checkpointing",
        "vllm_mode",
        "logging_steps",
        "scale_rewards",
    }


def test_a_recipe_with_an_adapter_says_what_the_file_said(tmp_path: Path):
    conversion = converted(ADAPTER, tmp_path)
    recipe = conversion.recipe
    assert recipe["algorithm"] == {
        "name": "gspo",
        "aggregation": "seq-mean-token-mean",
        "min_group_std": 0.0,
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
        "beta": 0.0,
    }
    sizes = {key: recipe["train"][key] for key in ("group_size", "prompts_per_step", "num_minibatches", "num_iterations")}
    assert sizes == {"group_size": 4, "prompts_per_step": 16, "num_minibatches": 2, "num_iterations": 1}
    assert recipe["reward"] == {"name": "trl.rewards:think_format_reward"}
    assert recipe["sampling"]["stop"] == ["</answer>"]
    assert recipe["lora"] == {"rank": 32, "alpha": 32.0, "targets": ["q_proj", "v_proj"]}
    assert "num_steps" not in recipe["train"]
    assert lost_keys(conversion) == {
        "num_train_epochs",
        "adam_beta2",
        "generation_kwargs",
        "lora_dropout",
        "scale_rewards",
        "max_prompt_length",
        "shuffle_dataset",
        "logging_stpes",
    }


@pytest.mark.parametrize("text", [MATH, ADAPTER], ids=["math", "adapter"])
def test_the_text_is_the_recipe_with_comments_on_what_is_lost(text: str, tmp_path: Path):
    conversion = converted(text, tmp_path)
    written = to_text(conversion, source="grpo.yaml")
    assert tomllib.loads(written) == conversion.recipe
    comments = re.sub(r"\n#\s+", " ", written)
    assert all(entry in comments for entry in (*conversion.lost, *conversion.ignored))
    assert max(map(len, written.splitlines())) <= 128


@pytest.mark.parametrize("text", [MATH, ADAPTER, "{}"], ids=["math", "adapter", "nothing given"])
def test_the_recipe_is_one(text: str, tmp_path: Path):
    recipe = make_recipe(converted(text, tmp_path).recipe)
    assert recipe.algorithm.min_group_std == 0.0


def test_json_is_read_too(tmp_path: Path):
    path = tmp_path / "grpo.json"
    path.write_text(json.dumps({"beta": 0.1, "use_bias_correction_kl": False}))
    assert convert_trl(read_trl(path)).recipe["algorithm"]["kl"] == "k3_loss"


@pytest.mark.parametrize("text", ["- 1", "a: [", "just words"])
def test_a_file_without_options_is_refused(text: str, tmp_path: Path):
    with pytest.raises(CoveyError, match=r"grpo\.yaml (cannot be read|holds no options)"):
        converted(text, tmp_path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match="cannot be read as YAML or JSON"):
        read_trl(tmp_path / "none.yaml")


# Adapters


def test_an_adapter_becomes_the_section_lora():
    given = {"use_peft": True, "lora_r": 8, "lora_alpha": 20, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
    conversion = convert_trl(given)
    assert conversion.recipe["lora"] == {"rank": 8, "alpha": 20.0, "targets": ["all-linear"]}
    assert not lost_keys(conversion) & given.keys()
    assert make_recipe(conversion.recipe).lora.rank == 8


def test_the_scale_of_rslora_is_the_same_number_here():
    [lora] = [convert_trl({"use_peft": True, "lora_r": 16, "lora_alpha": 10, "use_rslora": True}).recipe["lora"]]
    assert lora["alpha"] / lora["rank"] == 10 / 16**0.5


@pytest.mark.parametrize("name", WITHOUT_COUNTERPART)
def test_what_covey_adapters_cannot_do_is_lost_with_the_reason(name: str):
    value = {"lora_dropout": 0.1, "use_dora": True}.get(name, ["embed_tokens"])
    conversion = convert_trl({"use_peft": True, name: value})
    assert any(entry.startswith(f"{name} = ") and entry.endswith(WITHOUT_COUNTERPART[name]) for entry in conversion.lost)


def test_without_an_adapter_its_options_have_no_effect():
    conversion = convert_trl({"lora_r": 8, "lora_dropout": 0.1, "use_dora": True})
    assert "lora" not in conversion.recipe
    assert not lost_keys(conversion) & {"lora_r", "lora_dropout", "use_dora"}
    assert sum("without effect" in entry for entry in conversion.ignored) == 3


# Every option


@pytest.mark.parametrize("name", [*GRPO_CONFIG, *TRAINING_ARGUMENTS])
def test_every_option_of_trl_has_a_fate_and_a_reason_if_it_is_not_converted(name: str):
    field = FIELDS[name]
    assert field.fate == "converted" or field.reason


def other_than(default: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(default, bool) or default is None:
        return not default
    return default * 2 + 4 if isinstance(default, int | float) else ["another"] if isinstance(default, tuple) else "another"


UNUSUAL = {
    "reward_funcs": ["a.right"],
    "per_device_train_batch_size": 16,
    "generation_batch_size": 16,
    "steps_per_generation": 2,
    "scale_rewards": "batch",
    "epsilon_high": 0.3,
    "delta": 5.0,
    "min_p": 0.1,
    "epsilon": 0.3,
    "top_entropy_quantile": 0.5,
    "top_p": 0.9,
    "vllm_importance_sampling_clip_max": 4.0,
    "vllm_importance_sampling_clip_min": 0.5,
    "vllm_importance_sampling_cap": 4.0,
    "eval_steps": 10,
    "num_generations_eval": 2,
    "generation_kwargs": {"num_beams": 2},
    "model_init_kwargs": {"revision": "v2"},
    "reward_weights": [1.0],
    "save_total_limit": 3,
    "num_generations": 4,
    "output_dir": "out/it",
    "run_name": "it",
    "gradient_accumulation_steps": 4,
}
"""Another value than the default, where the default does not tell of what kind it is."""


@pytest.mark.parametrize("name", FIELDS)
def test_a_given_option_is_told_of_once_it_has_another_value(name: str):
    value = UNUSUAL[name] if name in UNUSUAL else other_than(FIELDS[name].default)
    conversion = convert_trl({name: value})
    told = [*conversion.carried, *conversion.ignored, *conversion.lost]
    assert any(re.search(rf"\b{name} = {re.escape(repr(value))}(?! \(the default)", entry) for entry in told)
    if FIELDS[name].fate == "lost":
        assert any(entry.startswith(f"{name} = ") and entry.endswith(FIELDS[name].reason) for entry in conversion.lost)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.fate == "lost"])
def test_an_option_at_its_default_loses_nothing(name: str):
    assert name not in lost_keys(convert_trl({name: FIELDS[name].default}))


def test_an_option_that_trl_does_not_have_is_lost():
    assert any(
        entry.startswith("learning_rat = 1.0: TRL 1.16 has no such option") for entry in convert_trl({"learning_rat": 1.0}).lost
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta": "much"}, "beta = 'much': TRL takes a number here"),
        ({"num_generations": None}, "num_generations = None: TRL takes a number here"),
        ({"max_steps": True}, "max_steps = True: TRL takes a number here"),
        ({"reward_funcs": 3}, "reward_funcs = 3: TRL takes a list of names here"),
        ({"scale_rewards": "std"}, "scale_rewards = 'std': TRL takes group, batch or none here"),
    ],
)
def test_a_value_that_trl_would_not_take_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        convert_trl(values)


# The algorithm


@pytest.mark.parametrize(
    ("values", "row", "aggregation"),
    [
        ({}, "dapo", "token-mean"),
        ({"loss_type": "grpo"}, "grpo", "seq-mean-token-mean"),
        ({"loss_type": "bnpo"}, "grpo", "token-mean"),
        ({"loss_type": "dr_grpo"}, "grpo", "seq-mean-token-sum-norm"),
        ({"loss_type": "dr_grpo", "scale_rewards": False}, "dr_grpo", "seq-mean-token-sum-norm"),
        ({"loss_type": "grpo", "scale_rewards": "none"}, "dr_grpo", "seq-mean-token-mean"),
        ({"loss_type": "dapo", "scale_rewards": "batch"}, "batch_std", "token-mean"),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, "cispo", "token-mean"),
        ({"loss_type": "sapo"}, "sapo", "seq-mean-token-mean"),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, "gspo", "seq-mean-token-sum"),
        ({"loss_type": "luspo"}, "grpo", "seq-mean-token-sum"),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "gspo", "seq-mean-token-mean"),
        ({"loss_type": "grpo", "multi_objective_aggregation": "normalize_then_sum"}, "gdpo", "seq-mean-token-mean"),
    ],
)
def test_a_loss_type_becomes_its_row_and_aggregation(values: dict[str, Any], row: str, aggregation: str):
    conversion = convert_trl(values)
    assert (conversion.recipe["algorithm"]["name"], conversion.recipe["algorithm"]["aggregation"]) == (row, aggregation)
    assert lost_keys(conversion) == {"adam_beta2", "num_train_epochs"}


def test_every_combination_of_algorithm_options_gives_a_recipe():
    levels, scales, sums = ("token", "sequence"), (True, "batch", "none"), ("sum_then_normalize", "normalize_then_sum")
    for loss, level, scale, total in itertools.product([*LOSS_TYPES, "vespo"], levels, scales, sums):
        values = {
            "loss_type": loss,
            "importance_sampling_level": level,
            "scale_rewards": scale,
            "multi_objective_aggregation": total,
        }
        make_recipe(convert_trl(values | {"epsilon_high": 5.0, "beta": 0.1}).recipe)


def test_the_cap_of_cispo_is_translated():
    """TRL clips the ratio at epsilon_high itself, Covey at 1 + epsilon_high."""
    algorithm = convert_trl({"loss_type": "cispo", "epsilon_high": 5.0}).recipe["algorithm"]
    assert (algorithm["epsilon_high"], algorithm["epsilon_low"]) == (4.0, 1.0)


def test_a_cap_of_cispo_below_1_is_lost():
    conversion = convert_trl({"loss_type": "cispo"})
    assert any(entry.startswith("epsilon = 0.2 (the default): in TRL's cispo it is the cap") for entry in conversion.lost)


def test_a_loss_that_covey_does_not_have_leaves_the_algorithm_open():
    conversion = convert_trl({"loss_type": "vespo"})
    assert "algorithm" not in conversion.recipe
    assert "loss_type" in lost_keys(conversion)


@pytest.mark.parametrize(("mode", "row"), CORRECTIONS.items())
def test_the_correction_goes_with_vllm_only(mode: str, row: str):
    values = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 4.0}
    assert "correction" not in convert_trl(values).recipe["algorithm"]
    algorithm = convert_trl(values | {"use_vllm": True}).recipe["algorithm"]
    assert (algorithm["correction"], algorithm["correction_high"]) == (row, 4.0)
    switched_off = values | {"use_vllm": True, "vllm_importance_sampling_correction": False}
    assert "correction" not in convert_trl(switched_off).recipe["algorithm"]


def test_a_clip_range_above_1_is_no_lower_bound():
    algorithm = convert_trl({"loss_type": "grpo", "epsilon": 10.0}).recipe["algorithm"]
    assert (algorithm["epsilon_low"], algorithm["epsilon_high"]) == (1.0, 10.0)


# Batches and schedule


@pytest.mark.parametrize(
    ("values", "num_processes", "expected"),
    [
        ({}, 1, (1, 1, 1)),
        ({"gradient_accumulation_steps": 4}, 1, (4, 1, 1)),
        ({"gradient_accumulation_steps": 4}, 2, (8, 1, 1)),
        ({"steps_per_generation": 4}, 1, (4, 4, 1)),
        ({"steps_per_generation": 8, "gradient_accumulation_steps": 4, "num_iterations": 3}, 1, (8, 2, 3)),
        ({"generation_batch_size": 64}, 1, (8, 8, 1)),
        ({"generation_batch_size": 64}, 4, (8, 2, 1)),
        ({"steps_per_generation": 1, "gradient_accumulation_steps": 4}, 1, (4, 1, 1)),
        ({"num_generations": 4}, 1, (2, 1, 1)),
    ],
)
def test_batch_sizes_become_prompts_minibatches_and_passes(
    values: dict[str, Any], num_processes: int, expected: tuple[int, int, int]
):
    conversion = convert_trl(values, num_processes=num_processes)
    train = conversion.recipe["train"]
    assert (train["prompts_per_step"], train["num_minibatches"], train["num_iterations"]) == expected
    assert "gradient_accumulation_steps" not in lost_keys(conversion)


def test_a_batch_that_is_no_whole_group_asks_for_the_number_of_processes():
    values = {"per_device_train_batch_size": 2, "num_generations": 8}
    with pytest.raises(
        CoveyError, match=r"2 completions a generation batch are no whole groups.*give the number that TRL ran in"
    ):
        convert_trl(values)
    assert convert_trl(values, num_processes=4).recipe["train"]["prompts_per_step"] == 1


def test_a_group_is_not_torn_apart_for_an_update():
    conversion = convert_trl({"num_generations": 16, "steps_per_generation": 4})
    train = conversion.recipe["train"]
    assert (train["prompts_per_step"], train["num_minibatches"]) == (2, 2)
    assert "gradient_accumulation_steps" in lost_keys(conversion)


def test_updates_become_steps():
    values = {"steps_per_generation": 4, "num_iterations": 2, "max_steps": 100, "save_steps": 20, "warmup_steps": 0.1}
    recipe = convert_trl(values).recipe
    assert (recipe["train"]["num_steps"], recipe["checkpoint"]["every"]) == (13, 3)
    assert recipe["train"]["warmup_steps"] == 10  # warm-up is counted in updates here, too


def test_a_number_that_yaml_takes_for_a_text_is_one(tmp_path: Path):
    assert converted("learning_rate: 1e-6", tmp_path).recipe["train"]["learning_rate"] == 1e-6


# Rewards


def test_a_weight_that_is_not_positive_is_lost_and_not_turned_round():
    conversion = convert_trl({"reward_funcs": ["a.right", "a.long"], "reward_weights": [1.0, -0.5]})
    assert conversion.recipe["reward"] == {"name": "a:right"}
    assert any("a.long has the weight -0.5" in entry for entry in conversion.lost)


def test_a_reward_model_is_lost_and_its_weight_with_it():
    values = {
        "reward_model_name_or_path": "some/model",
        "reward_funcs": ["a.right", "b.brief"],
        "reward_weights": [5.0, 1.0, 0.5],
    }
    conversion = convert_trl(values)
    assert conversion.recipe["reward"] == {"parts": {"a:right": 1.0, "b:brief": 0.5}}
    assert "reward_model_name_or_path" in lost_keys(conversion)


def test_weights_without_as_many_functions_are_lost():
    conversion = convert_trl({"reward_weights": [1.0, 0.5]})
    assert "reward" not in conversion.recipe
    assert "reward_weights" in lost_keys(conversion)


def test_the_overlong_penalty_of_another_limit_is_told():
    conversion = convert_trl({"reward_funcs": ["get_soft_overlong_punishment"], "max_completion_length": 4096})
    assert conversion.recipe["train"]["overlong_buffer"] == 256
    assert any("ends at 1280 tokens, Covey's at sampling.max_new_tokens" in entry for entry in conversion.lost)
