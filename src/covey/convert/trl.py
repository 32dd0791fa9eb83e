"""From a configuration of TRL's GRPO (version 1.16: `trl grpo --config file.yaml`) to a recipe.

A recipe with other numbers than TRL's would be no conversion, so TRL's defaults are written out where they matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covey.convert.draft import Conversion, Draft
from covey.convert.trl_algorithm import convert_algorithm
from covey.convert.trl_fields import FIELDS
from covey.types import CoveyError

SINKS = ("tensorboard", "wandb", "mlflow", "trackio")
ADAM_BETA2 = 0.95
"""Of Covey's AdamW; it is no option."""

MIN_CHECKPOINTS = 2

PEFT_TARGETS = ["q_proj", "v_proj"]
"""Layers that get an adapter if none are named."""

WITHOUT_COUNTERPART = {
    "lora_dropout": "Covey's adapters have none: completions are sampled without it",
    "lora_target_parameters": "Covey's adapters belong to linear layers; name them as lora.targets",
    "lora_modules_to_save": "Covey trains the adapters and nothing beside them",
    "use_dora": "Covey's adapters are plain LoRA",
}
"""Of an adapter."""

BUILT_IN_REWARDS = {
    "accuracy_reward": "trl.rewards:accuracy_reward",
    "reasoning_accuracy_reward": "trl.rewards:reasoning_accuracy_reward",
    "think_format_reward": "trl.rewards:think_format_reward",
}
"""TRL's names for its own reward functions, as recipes name them. TRL must be installed to use them."""

OVERLONG_REWARD, OVERLONG_TOKENS, OVERLONG_BUFFER = "get_soft_overlong_punishment", 1280, 256
"""The penalty with the token limit and the buffer that TRL gives it in scripts."""


def read_trl(path: Path) -> dict[str, Any]:
    """Return the options in a YAML or JSON file.

    Raises:
        CoveyError: the file cannot be read as one.
    """
    import yaml

    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise CoveyError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(values, dict):
        raise CoveyError(f"{path} holds no options; give the file that `trl grpo --config` takes")
    return values


def convert_trl(values: Mapping[str, Any], *, num_processes: int = 1) -> Conversion:
    """Return the recipe that trains like TRL's GRPO with these options, and what became of each of them.

    `num_processes` is how many processes TRL ran in: its batch sizes are for each of them.

    Raises:
        CoveyError: a value is none that TRL takes, or the batch sizes make no whole groups.
    """
    draft = Draft(values=values, defaults={name: field.default for name, field in FIELDS.items()})
    for key in values:
        _refuse_wrong_kind(draft, key)
    updates_per_step = _convert_batches(draft, num_processes)
    convert_algorithm(draft, updates_per_step)
    _convert_schedule(draft, updates_per_step)
    _convert_sampling(draft)
    _convert_model(draft)
    _convert_adapter(draft)
    _convert_rewards(draft)
    _convert_run(draft, updates_per_step)
    for key in values:
        _settle(draft, key)
    return draft.finished()


def _refuse_wrong_kind(draft: Draft, key: str) -> None:
    value, default = draft.get(key), draft.defaults.get(key)
    wants_number = isinstance(default, int | float) and not isinstance(default, bool)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = "a number" if wants_number and not is_number and (key, value) != ("max_completion_length", None) else ""
    if key in ("reward_funcs", "reward_weights") and not isinstance(value, str | list | tuple | None):
        wanted = "a list of names" if key == "reward_funcs" else "a list of numbers"
    if key == "scale_rewards" and value not in (True, False, "group", "batch", "none"):
        wanted = "group, batch or none"
    if wanted:
        raise CoveyError(f"{draft.told(key)}: TRL takes {wanted} here")


def _settle(draft: Draft, key: str) -> None:
    """Say what became of a key that no function above has dealt with."""
    if key in draft.settled:
        return
    if key not in FIELDS:
        draft.lose(key, "TRL 1.16 has no such option; check its spelling")
        return
    field, value = FIELDS[key], draft.get(key)
    if field.fate == "converted":
        draft.ignore(key, "without effect, given the other options")
    elif field.fate == "ignored":
        draft.ignore(key, field.reason)
    elif value == field.default or not (value or field.default):
        draft.ignore(key, "the default; nothing is lost")
    else:
        draft.lose(key, field.reason)


def _convert_batches(draft: Draft, num_processes: int) -> int:
    """Set prompts, groups and passes; return how many optimizer updates a step makes."""
    group_size, accumulated = draft.get("num_generations"), draft.get("gradient_accumulation_steps")
    per_pass = draft.get("per_device_train_batch_size") * num_processes
    parts = draft.get("steps_per_generation") or accumulated
    if total := draft.get("generation_batch_size"):
        parts = max(1, total // per_pass)
    num_iterations = draft.get("num_iterations")
    if parts < accumulated and num_iterations == 1:
        parts = accumulated  # TRL samples in between, with the weights it would have used anyway
    prompts, rest = divmod(per_pass * parts, group_size)
    if rest or not prompts:
        raise CoveyError(
            f"{per_pass * parts} completions a generation batch are no whole groups of num_generations={group_size}. TRL's "
            f"batch size is for each process, and num_processes={num_processes} here: give the number that TRL ran in"
        )
    minibatches = min(prompts, max(1, round(parts / accumulated)))
    sizes = ["per_device_train_batch_size", "gradient_accumulation_steps"]
    sizes += [key for key in ("steps_per_generation", "generation_batch_size") if draft.is_given(key)]
    draft.put("train.group_size", group_size, of=["num_generations"])
    draft.put("train.prompts_per_step", prompts, of=[*sizes, "num_generations"], note=f"num_processes = {num_processes}")
    draft.put("train.num_minibatches", minibatches, of=sizes, note="optimizer updates in a pass")
    draft.put("train.num_iterations", num_iterations, of=["num_iterations"])
    if minibatches * accumulated != parts:
        draft.lose(
            "gradient_accumulation_steps", f"{parts / accumulated} updates a pass, rounded to {minibatches} of whole groups"
        )
    draft.put("train.drop_flat_groups", False, note="TRL leaves groups without signal in its denominators")
    return minibatches * num_iterations


def _convert_schedule(draft: Draft, updates_per_step: int) -> None:
    """Set the optimizer and the length of the run. TRL counts optimizer updates, Covey counts steps."""
    for key in ("learning_rate", "weight_decay", "max_grad_norm"):
        draft.put(f"train.{key}", draft.get(key), of=[key])
    max_steps = draft.get("max_steps")
    if max_steps > 0:
        draft.put("train.num_steps", math.ceil(max_steps / updates_per_step), of=["max_steps"], note="in steps, not updates")
        draft.ignore("num_train_epochs", "max_steps overrides it")
    else:
        draft.lose("num_train_epochs", "Covey counts steps; set train.num_steps to epochs x prompts / prompts_per_step")
    key = "warmup_ratio" if draft.get("warmup_ratio") else "warmup_steps"
    warmup = draft.get(key)
    if 0 < warmup < 1 and max_steps <= 0:
        draft.lose(key, "a share of a run whose length is not known; set train.warmup_steps")
    else:
        draft.put("train.warmup_steps", math.ceil(warmup * max_steps if 0 < warmup < 1 else warmup), of=[key])
    schedule = draft.get("lr_scheduler_type")
    if schedule in ("linear", "constant", "constant_with_warmup"):
        draft.put("train.decay", schedule == "linear", of=["lr_scheduler_type"])
    else:
        draft.lose("lr_scheduler_type", "Covey's learning rate stays or falls linearly; it stays here")
    if draft.get("adam_beta2") != ADAM_BETA2:
        draft.lose("adam_beta2", f"Covey's AdamW has beta2 = {ADAM_BETA2}")


def _convert_sampling(draft: Draft) -> None:
    for key, option in (
        ("max_completion_length", "max_new_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("repetition_penalty", "repetition_penalty"),
    ):
        if draft.get(key) is None:
            draft.lose(key, f"Covey needs a number; set sampling.{option}")
        else:
            draft.put(f"sampling.{option}", max(0, draft.get(key)), of=[key])
    if draft.get("min_p"):
        draft.put("sampling.min_p", draft.get("min_p"), of=["min_p"])
    extra = dict(draft.get("generation_kwargs") or {}) if isinstance(draft.get("generation_kwargs"), Mapping) else {}
    stop = extra.pop("stop_strings", None) or extra.pop("stop", None)
    if stop:
        draft.put("sampling.stop", [stop] if isinstance(stop, str) else list(stop), of=["generation_kwargs"])
    if extra:
        draft.lose("generation_kwargs", f"Covey has no {', '.join(sorted(extra))} in its sampling")
    if draft.get("use_vllm"):
        draft.lose("use_vllm", "Covey samples with its own engine, in the training process")
    if draft.get("mask_truncated_completions"):
        draft.put(
            "train.truncated", "mask", of=["mask_truncated_completions"], note="such a completion leaves the group's mean, too"
        )


def _convert_model(draft: Draft) -> None:
    if name := draft.get("model_name_or_path"):
        draft.put("model.name", name, of=["model_name_or_path"])
    extra = dict(draft.get("model_init_kwargs") or {}) if isinstance(draft.get("model_init_kwargs"), Mapping) else {}
    revision = extra.pop("revision", None)
    if revision:
        draft.put("model.revision", revision, of=["model_init_kwargs"])
    elif draft.get("model_revision") != "main":
        draft.put("model.revision", str(draft.values["model_revision"]), of=["model_revision"])
    if draft.get("trust_remote_code"):
        draft.put("model.trust_remote_code", True, of=["trust_remote_code"])
    if draft.get("bf16") is not None:
        draft.put("model.compute_dtype", "bfloat16" if draft.get("bf16") else "float32", of=["bf16"])
    formats = {key: extra.pop(key) for key in ("dtype", "torch_dtype") if key in extra}
    if draft.get("dtype") in ("bfloat16", "float16"):
        draft.lose("dtype", "Covey holds the weights in float32; model.compute_dtype is the format of matrix products")
    if formats or extra:
        draft.lose(
            "model_init_kwargs", f"Covey does not pass {', '.join(sorted(formats | extra))} to the model; weights are float32"
        )


def _convert_adapter(draft: Draft) -> None:
    if not draft.get("use_peft"):
        return
    rank, alpha = draft.get("lora_r"), float(draft.get("lora_alpha"))
    scaled = bool(draft.get("use_rslora"))
    draft.put("lora.rank", rank, of=["use_peft", "lora_r"])
    draft.put(
        "lora.alpha",
        # rsLoRA divides by the root of the rank, Covey by the rank.
        alpha * math.sqrt(rank) if scaled else alpha,
        of=["lora_alpha", "use_rslora"] if scaled else ["lora_alpha"],
        note="rsLoRA's scale" if scaled else "",
    )
    names = draft.get("lora_target_modules") or PEFT_TARGETS
    names = [names] if isinstance(names, str) else list(names)
    note = "" if draft.get("lora_target_modules") else "peft's own for Llama, Mistral, Qwen and Gemma; of other models check it"
    draft.put("lora.targets", names, of=["lora_target_modules"], note=note)
    for key, reason in WITHOUT_COUNTERPART.items():
        if draft.get(key):
            draft.lose(key, reason)


def _convert_rewards(draft: Draft) -> None:
    names = draft.get("reward_funcs") or []
    names = [names] if isinstance(names, str) else list(names)
    weights = list(draft.get("reward_weights") or [])
    if draft.get("reward_model_name_or_path"):
        weights = weights[1:]  # TRL counts the reward model first
    weights = weights or [1.0] * len(names)
    if len(weights) != len(names):
        if names or weights:
            draft.lose(
                "reward_weights", f"{len(names)} reward functions are named here; give reward=[...], reward_weights=[...]"
            )
        weights = [1.0] * len(names)
    parts: dict[str, float] = {}
    for name, weight in zip(names, weights, strict=True):
        if not weight > 0:
            draft.lose(
                "reward_weights", f"{name} has the weight {weight}; weights are positive: return negative values instead"
            )
        elif name == OVERLONG_REWARD:
            _convert_overlong(draft, weight)
        else:
            parts[BUILT_IN_REWARDS.get(name) or ":".join(name.rsplit(".", 1))] = float(weight)
    keys = ["reward_funcs"] + ["reward_weights"] * draft.is_given("reward_weights")
    note = "their values must lie in [0, 1]"
    if list(parts.values()) == [1.0]:
        draft.put("reward.name", next(iter(parts)), of=keys, note=note)
    elif parts:
        draft.put("reward.parts", parts, of=keys, note=note)


def _convert_overlong(draft: Draft, weight: float) -> None:
    limit = draft.get("max_completion_length")
    if limit is not None and limit > OVERLONG_BUFFER:
        draft.put("train.overlong_buffer", OVERLONG_BUFFER, of=["reward_funcs"])
        draft.put("train.overlong_penalty", float(weight), of=["reward_funcs"])
    if limit != OVERLONG_TOKENS:
        told = f"TRL's penalty ends at {OVERLONG_TOKENS} tokens, Covey's at sampling.max_new_tokens"
        draft.lose(
            "reward_funcs", told if limit is not None and limit > OVERLONG_BUFFER else f"{told}, which leaves no room for it"
        )


def _convert_run(draft: Draft, updates_per_step: int) -> None:
    output, name = draft.get("output_dir"), draft.values.get("run_name")
    output = None if output is None else str(output)
    if output:
        draft.put("run.directory", str(Path(output).parent), of=["output_dir"])
    if name or output:
        key = "run_name" if name else "output_dir"
        draft.put("run.name", str(name or Path(output or "").name).replace("/", "-"), of=[key])
    draft.put("run.seed", draft.get("seed"), of=["seed"])
    sinks = draft.get("report_to")
    sinks = [sinks] if isinstance(sinks, str) else list(sinks or [])
    if known := [sink for sink in sinks if sink in SINKS]:
        draft.put("run.sinks", known, of=["report_to"])
    if unknown := [sink for sink in sinks if sink not in (*SINKS, "none")]:
        draft.lose("report_to", f"Covey sends metrics to {', '.join(SINKS)}, not to {', '.join(unknown)}")
    _convert_every(draft, "save", "checkpoint.every", updates_per_step)
    _convert_every(draft, "eval", "evaluation.every", updates_per_step)
    if limit := draft.get("save_total_limit"):
        draft.put("checkpoint.keep", max(MIN_CHECKPOINTS, limit), of=["save_total_limit"])
    if draft.get("num_generations_eval"):
        draft.put("evaluation.samples_per_prompt", draft.get("num_generations_eval"), of=["num_generations_eval"])


def _convert_every(draft: Draft, what: str, option: str, updates_per_step: int) -> None:
    strategy, every = draft.get(f"{what}_strategy"), draft.get(f"{what}_steps")
    if strategy not in ("no", "steps"):
        draft.lose(f"{what}_strategy", f"Covey counts steps; set {option}")
        return
    if every is not None and 0 < every < 1:
        max_steps = draft.get("max_steps")
        if max_steps <= 0:
            draft.lose(f"{what}_steps", f"a share of a run whose length is not known; set {option}")
            return
        every = every * max_steps
    given = [key for key in (f"{what}_strategy", f"{what}_steps") if draft.is_given(key)] or [f"{what}_strategy"]
    steps = 0 if strategy == "no" else max(1, math.ceil((every or draft.get("logging_steps")) / updates_per_step))
    draft.put(option, steps, of=given, note="in steps, not updates")
