"""The options of TRL 1.16's GRPO: defaults, and the reason for each that has no counterpart here.

GRPOConfig with the TrainingArguments (transformers 5.23) under it, and the model, script and data set options of `trl grpo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Field:
    """One option."""

    default: Any
    fate: Literal["converted", "ignored", "lost"] = "converted"
    reason: str = ""
    """Why it is ignored; or what is lost, where it has another value than the default."""


def _ignored(reason: str, **defaults: Any) -> dict[str, Field]:
    return {name: Field(default, "ignored", reason) for name, default in defaults.items()}


def _lost(reason: str, **defaults: Any) -> dict[str, Field]:
    return {name: Field(default, "lost", reason) for name, default in defaults.items()}


def _converted(**defaults: Any) -> dict[str, Field]:
    return {name: Field(default) for name, default in defaults.items()}


_ALGORITHM = (
    _converted(
        loss_type="dapo",
        importance_sampling_level="token",
        scale_rewards="group",
        multi_objective_aggregation="sum_then_normalize",
        epsilon=0.2,
        epsilon_high=None,
        delta=None,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        beta=0.0,
        use_bias_correction_kl=True,
        sync_ref_model=False,
        ref_model_mixup_alpha=0.6,
        ref_model_sync_steps=512,
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        use_adaptive_entropy=False,
        entropy_target=0.2,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="sequence_mask",
        vllm_importance_sampling_clip_max=3.0,
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_cap=None,
        mask_truncated_completions=False,
    )
    | _lost("Covey has no VESPO", vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0)
    | _lost(
        "the steered entropy bonus lies between 0 and 1 and moves by 0.005 an update",
        entropy_coef_min=0.0,
        entropy_coef_max=1.0,
        entropy_coef_delta=0.005,
    )
    | _lost("Covey does not drop completions for their distance from the sampling policy", off_policy_mask_threshold=None)
    | _lost("Covey trains no mixture of experts with a balancing loss", router_aux_loss_coef=None)
    | _lost("Covey computes logits in the number format of the model", cast_lm_head_to_fp32=False)
    | _ignored("Covey trains with the model in evaluation mode, so that log-probs can be compared", disable_dropout=False)
)

_BATCHES = _converted(
    num_generations=8,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    generation_batch_size=None,
    steps_per_generation=None,
    num_iterations=1,
    max_steps=-1,
    num_train_epochs=3.0,
) | _lost("Covey draws prompts in its own order, by run.seed", shuffle_dataset=True, train_sampling_strategy="random")

_OPTIMIZER = (
    _converted(
        learning_rate=1e-6,
        lr_scheduler_type="linear",
        warmup_steps=0,
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        adam_beta2=0.999,
    )
    | _lost("Covey's AdamW has beta1 = 0.9", adam_beta1=0.9)
    | _lost("Covey's AdamW has epsilon = 1e-8", adam_epsilon=1e-8)
    | _lost("Covey trains with AdamW", optim="adamw_torch_fused", optim_args=None, optim_target_modules=None)
    | _lost("a decay has no options here", lr_scheduler_kwargs=None)
    | _lost("Covey adds no noise and smooths no labels", neftune_noise_alpha=None, label_smoothing_factor=0.0)
)

_SAMPLING = (
    _converted(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        max_completion_length=512,
        generation_kwargs=None,
        use_vllm=False,
    )
    | _lost("Covey renders prompts with the model's chat template as it is", chat_template_kwargs=None)
    | _lost("Covey does not constrain what is sampled", vllm_structured_outputs_regex=None)
    | _lost("Covey has no tools; a completion is one answer", max_tool_calling_iterations=None)
    | _lost("Covey never cuts a prompt: one that does not fit is refused", max_prompt_length=None)
    | _ignored(
        "Covey samples with its own engine, in the training process",
        vllm_mode="colocate",
        vllm_model_impl="vllm",
        vllm_enable_sleep_mode=False,
        vllm_server_base_url=None,
        vllm_server_host="0.0.0.0",
        vllm_server_port=8000,
        vllm_server_timeout=240.0,
        vllm_group_port=51216,
        vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=None,
        vllm_tensor_parallel_size=1,
        cache_implementation=None,
        use_transformers_continuous_batching=False,
        transformers_continuous_batching_config=None,
        use_transformers_paged=False,
        use_cache=False,
    )
)

_MODEL = (
    _converted(
        model_name_or_path=None,
        model_revision="main",
        trust_remote_code=False,
        model_init_kwargs=None,
        bf16=None,
        dtype="float32",
    )
    | _lost("Covey computes in float32 or bfloat16", fp16=False)
    | _converted(
        use_peft=False,
        lora_r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        lora_target_modules=None,
        lora_target_parameters=None,
        lora_modules_to_save=None,
        use_rslora=False,
        use_dora=False,
    )
    | _lost("Covey loads no quantised weights", load_in_8bit=False, load_in_4bit=False)
    | _ignored(
        "it says how weights are quantised, which Covey does not",
        bnb_4bit_quant_type="nf4",
        use_bnb_nested_quant=False,
        bnb_4bit_quant_storage=None,
    )
    | _ignored("Covey trains causal language models", lora_task_type="CAUSAL_LM")
    | _ignored("Covey chooses the attention", attn_implementation=None)
)

_REWARDS = _converted(reward_funcs=None, reward_weights=None) | _lost(
    "a reward model is a reward of its own kind here, with bounded scores: reward.name = 'preference' with its options",
    reward_model_name_or_path=None,
)

_DATA = _lost(
    "Covey reads no data sets by name; load it and give its rows: covey.train(..., prompts=rows)",
    dataset_name=None,
    dataset_config=None,
    dataset_train_split="train",
    dataset_test_split="test",
    datasets=(),
    test_split_size=None,
) | _ignored(
    "prompts are held in memory, and every column stays with its prompt",
    dataset_streaming=False,
    streaming=False,
    remove_unused_columns=False,
    label_names=None,
    length_column_name="length",
    ignore_bias_buffers=False,
)

_RUN = (
    _converted(
        output_dir=None,
        run_name=None,
        seed=42,
        report_to="none",
        save_strategy="steps",
        save_steps=500,
        save_total_limit=None,
        eval_strategy="no",
        eval_steps=None,
        num_generations_eval=None,
    )
    | _lost("Covey keeps the newest checkpoints, not the best", load_best_model_at_end=False)
    | _ignored("it chooses the best checkpoint", metric_for_best_model=None, greater_is_better=None)
    | _ignored("the same seed gives the same run", data_seed=None, full_determinism=False)
    | _ignored("an unfinished run goes on with `covey train --resume RUN`", resume_from_checkpoint=None, ignore_data_skip=False)
    | _ignored("it says what a script does", do_train=False, do_eval=False, do_predict=False)
    | _ignored("a checkpoint of Covey is always complete", save_only_model=False, restore_callback_states_from_checkpoint=False)
    | _ignored("a signal saves a checkpoint without asking", enable_jit_checkpoint=False)
    | _ignored(
        "held-out questions are always answered before and after training",
        eval_delay=0,
        eval_on_start=False,
        prediction_loss_only=False,
    )
    | _ignored(
        "Covey writes metrics and completions of every step",
        logging_strategy="steps",
        logging_steps=10,
        logging_first_step=False,
        logging_dir=None,
        logging_nan_inf_filter=True,
        log_level="passive",
        log_level_replica="warning",
        log_on_each_node=True,
        disable_tqdm=None,
        include_num_input_tokens_seen="no",
        include_for_metrics=(),
        log_completions=False,
        log_multimodal=True,
        num_completions_to_print=None,
        log_unique_prompts=False,
        log_completions_hub_repo=None,
        project="huggingface",
        trackio_space_id=None,
        trackio_bucket_id=None,
        trackio_static_space_id=None,
        overwrite_output_dir=False,
        env=None,
    )
    | _ignored(
        "Covey publishes nothing",
        push_to_hub=False,
        hub_token=None,
        hub_private_repo=None,
        hub_model_id=None,
        hub_strategy="every_save",
        hub_always_push=False,
        hub_revision=None,
    )
)

_MACHINE = _ignored(
    "it is about memory, speed or machines, and changes no gradient",
    per_device_eval_batch_size=8,
    eval_accumulation_steps=None,
    eval_do_concat_batches=True,
    eval_use_gather_object=False,
    batch_eval_metrics=False,
    bf16_full_eval=False,
    fp16_full_eval=False,
    tf32=None,
    average_tokens_across_devices=True,
    activation_checkpointing=None,
    activation_checkpointing_kwargs=None,
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs=None,
    torch_compile=False,
    torch_compile_backend=None,
    torch_compile_mode=None,
    use_liger_kernel=False,
    liger_kernel_config=None,
    torch_empty_cache_steps=None,
    auto_find_batch_size=False,
    pad_to_multiple_of="auto",
    ds3_gather_for_generation=True,
    use_cpu=False,
    accelerator_config=None,
    parallelism_config=None,
    dataloader_drop_last=False,
    dataloader_num_workers=0,
    dataloader_pin_memory=True,
    dataloader_persistent_workers=False,
    dataloader_prefetch_factor=None,
    dataloader_multiprocessing_context=None,
    dataloader_in_order=True,
    ddp_find_unused_parameters=None,
    ddp_bucket_cap_mb=None,
    ddp_broadcast_buffers=None,
    ddp_static_graph=None,
    ddp_backend=None,
    ddp_timeout=1800,
    fsdp=None,
    fsdp_config=None,
    deepspeed=None,
    save_on_each_node=False,
    local_rank=-1,
    debug="",
    skip_memory_metrics=True,
)

FIELDS: dict[str, Field] = _ALGORITHM | _BATCHES | _OPTIMIZER | _SAMPLING | _MODEL | _REWARDS | _DATA | _RUN | _MACHINE
