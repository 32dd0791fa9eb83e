"""Classes 51 to 64."""

from __future__ import annotations

from tests.conformance.mutation import Mutation

SUITE = "tests/conformance/test_rollouts.py::"
ENGINE, SAMPLING = "src/covey/engines/transformers.py", "src/covey/sampling.py"
FRESH = f"{SUITE}test_after_a_large_update_the_engine_answers_as_the_trainer_now_does"
RESUME = f"{SUITE}test_a_run_made_longer_ends_with_the_bits_of_one_that_was_never_stopped"
GREEDY = f"{SUITE}test_greedy_evaluation_asks_once_and_takes_the_likeliest_token"
REWARDS, ROLLOUT, PERSISTENCE = "src/covey/rewards/base.py", "src/covey/rollout.py", "src/covey/persistence.py"

MUTATIONS = [
    Mutation(
        number=51,
        name="the engine keeps its first weights",
        file=ENGINE,
        old="                served[name].copy_(parameter)\n",
        new="                served[name].copy_(parameter if version == 0 else served[name])\n",
        tests=(FRESH,),
    ),
    Mutation(
        number=51,
        name="the loop does not give the engine the new weights",
        file="src/covey/train.py",
        old="            load_and_prove_weights(session.engine, policy, progress.policy_version, ranks=session.ranks)\n",
        new="",
        tests=(f"{SUITE}test_the_engine_serves_the_present_policy_in_every_step",),
    ),
    Mutation(
        number=52,
        name="keys and values of a prompt are kept over updates",
        file=ENGINE,
        old="            self._forward(prefix, torch.ones_like(prefix), torch.arange(shared)[None])\n",
        new=(
            '            kept = model.__dict__.setdefault("_kept", {})\n'
            "            if tuple(prompts[0][:shared]) not in kept:\n"
            "                self._forward(prefix, torch.ones_like(prefix), torch.arange(shared)[None])\n"
            "                kept[tuple(prompts[0][:shared])] = copy.deepcopy(self._cache)\n"
            "            self._cache = copy.deepcopy(kept[tuple(prompts[0][:shared])])\n"
        ),
        tests=(f"{SUITE}test_what_was_computed_for_a_prompt_is_forgotten_with_the_weights",),
    ),
    Mutation(
        number=53,
        name="decoded tokens stand one position too far",
        file=ENGINE,
        old="self._mask.sum(dim=1, keepdim=True) - 1)",
        new="self._mask.sum(dim=1, keepdim=True))",
        tests=(f"{SUITE}test_log_probs_of_cached_decoding_are_those_of_a_full_forward_pass",),
    ),
    Mutation(
        number=54,
        name="the completions of a group share a stream of random numbers",
        file=SAMPLING,
        old="return [stream_key(seed, purpose, step, draw, prompt_id, sample) for sample in range(group_size)]",
        new="return [stream_key(seed, purpose, step, draw, prompt_id) for sample in range(group_size)]",
        tests=(f"{SUITE}test_the_completions_of_a_group_have_their_own_random_numbers",),
    ),
    Mutation(
        number=54,
        name="every position of a completion is drawn with the same number",
        file=ENGINE,
        old="uniform(row_keys[row], position) for row",
        new="uniform(row_keys[row], 0) for row",
        tests=(f"{SUITE}test_the_tokens_of_a_completion_have_their_own_random_numbers",),
    ),
    Mutation(
        number=55,
        name="what is recomputed does not reach the body of the model",
        file="src/covey/models/scoring.py",
        old="parts, ids = hidden.split(chunk_tokens), targets.split(chunk_tokens)",
        new="parts, ids = hidden.detach().requires_grad_().split(chunk_tokens), targets.split(chunk_tokens)",
        tests=("tests/conformance/test_losses.py::test_recomputing_logits_in_the_backward_pass_changes_no_gradient",),
    ),
    Mutation(
        number=56,
        name="a resumed run begins the prompts anew",
        file=PERSISTENCE,
        old='    state.prompts.restore(checkpoint.state["prompts"])\n',
        new="",
        tests=(RESUME,),
    ),
    Mutation(
        number=56,
        name="a resumed run has a fresh optimizer",
        file=PERSISTENCE,
        old="    learner.optimizer.load_state_dict(optimizer_state)\n",
        new="",
        tests=(RESUME,),
    ),
    Mutation(
        number=56,
        name="a resumed run warms up again",
        file=PERSISTENCE,
        old='    learner.num_updates = checkpoint.state["num_updates"]\n',
        new="",
        tests=(RESUME,),
    ),
    Mutation(
        number=56,
        name="a resumed run forgets where its controllers were",
        file=PERSISTENCE,
        old='    learner.coefficients = Coefficients(**checkpoint.state["coefficients"])\n',
        new="",
        tests=(RESUME,),
    ),
    Mutation(
        number=56,
        name="a resumed run takes its present policy for the reference",
        file=PERSISTENCE,
        old='load_parameters(state.reference, checkpoint.tensors("reference.safetensors"))',
        new='load_parameters(state.reference, checkpoint.tensors("model.safetensors"))',
        tests=(RESUME,),
    ),
    Mutation(
        number=57,
        name="greedy evaluation samples",
        file="src/covey/evaluate.py",
        old="replace(spec.sampling, temperature=0.0) if is_greedy else spec.sampling",
        new="spec.sampling",
        tests=(GREEDY,),
    ),
    Mutation(
        number=57,
        name="greedy evaluation asks the same thing several times",
        file="src/covey/evaluate.py",
        old="num_samples = 1 if is_greedy else spec.samples_per_prompt",
        new="num_samples = spec.samples_per_prompt",
        tests=(GREEDY,),
    ),
    Mutation(
        number=57,
        name="evaluation draws with training's numbers",
        file="src/covey/evaluate.py",
        old='rollout_keys(spec.seed, "evaluate",',
        new='rollout_keys(spec.seed, "rollout",',
        tests=(f"{SUITE}test_evaluation_uses_numbers_of_its_own_and_leaves_the_global_state_alone",),
    ),
    Mutation(
        number=58,
        name="verifiers are stopped by an alarm, which only the main thread can set",
        file=REWARDS,
        old="        score = with_plain_values(reward(sample))\n",
        new=(
            "        import signal\n\n"
            "        signal.signal(signal.SIGALRM, signal.SIG_DFL)\n"
            "        score = with_plain_values(reward(sample))\n"
        ),
        tests=(f"{SUITE}test_a_verifier_works_in_a_thread",),
    ),
    Mutation(
        number=58,
        name="a verifier reads texts of any length",
        file="src/covey/rewards/extract.py",
        old='unicodedata.normalize("NFKC", text[:MAX_TEXT_CHARACTERS])',
        new='unicodedata.normalize("NFKC", text)',
        tests=(f"{SUITE}test_a_verifier_reads_no_more_than_a_bounded_part_of_a_text",),
    ),
    Mutation(
        number=59,
        name="an exception in a reward is a 0",
        file=REWARDS,
        old="        return Score(value=None, error=failure_text(error), elapsed_s=",
        new="        return Score(value=reward.low, error=failure_text(error), elapsed_s=",
        tests=(f"{SUITE}test_an_error_in_a_reward_is_no_score_and_is_counted",),
    ),
    Mutation(
        number=59,
        name="a reward may fail for all but one completion",
        file=ROLLOUT,
        old="    if len(errors) > max_error_frac * len(scores):",
        new="    if len(errors) >= len(scores):",
        tests=(f"{SUITE}test_a_reward_that_fails_too_often_ends_the_run",),
    ),
    Mutation(
        number=60,
        name="rewards are told the number of characters",
        file=ROLLOUT,
        old="            num_tokens=len(completion.token_ids),\n",
        new="            num_tokens=len(policy.decode(completion.token_ids)),\n",
        tests=(f"{SUITE}test_a_reward_counts_tokens_and_not_characters",),
    ),
    Mutation(
        number=60,
        name="the penalty for length begins at the limit",
        file="src/covey/rewards/length.py",
        old="over = num_tokens - (max_tokens - buffer)",
        new="over = num_tokens - max_tokens",
        tests=(f"{SUITE}test_the_soft_penalty_for_length_is_golden",),
    ),
    Mutation(
        number=61,
        name="what is optimised is cut off at 0, what is logged is not",
        file="src/covey/batch.py",
        old="rollout.reward.value or 0.0",
        new="max(rollout.reward.value or 0.0, 0.0)",
        tests=(f"{SUITE}test_the_advantages_can_be_recomputed_from_what_is_logged",),
    ),
    Mutation(
        number=61,
        name="the logged reward has its parts added",
        file=ROLLOUT,
        old="    rewards = [rollout.reward.value for rollout in rollouts if rollout.reward.value is not None]\n",
        new=(
            "    scores = [rollout.reward for rollout in rollouts if rollout.reward.value is not None]\n"
            "    rewards = [score.value + sum(score.parts.values()) for score in scores]\n"
        ),
        tests=(f"{SUITE}test_the_advantages_can_be_recomputed_from_what_is_logged",),
    ),
    Mutation(
        number=62,
        name="values behind the end leak into the last advantage",
        file="src/covey/algos/critic.py",
        old="following = torch.where(here, values[:, t], following)",
        new="following = values[:, t]",
        tests=(f"{SUITE}test_gae_is_golden_and_reads_nothing_behind_the_end",),
    ),
    Mutation(
        number=62,
        name="the value behind the last token is taken from the token itself",
        file="src/covey/algos/critic.py",
        old="following, running = values[:, -1], torch.zeros_like(values[:, -1])",
        new="following, running = values[:, -2], torch.zeros_like(values[:, -1])",
        tests=(f"{SUITE}test_gae_is_golden_and_reads_nothing_behind_the_end",),
    ),
    Mutation(
        number=63,
        name="the reference enters the margin with the wrong sign",
        file="src/covey/algos/preference.py",
        old="return (chosen - ref_chosen) - (rejected - ref_rejected)",
        new="return (chosen - ref_chosen) - (rejected + ref_rejected)",
        tests=(f"{SUITE}test_dpo_and_ipo_are_golden_and_antisymmetric",),
    ),
    Mutation(
        number=63,
        name="the margin is averaged over the batch before the loss",
        file="src/covey/algos/preference.py",
        old="return -torch.nn.functional.logsigmoid(pair_beta * margin)",
        new="return -torch.nn.functional.logsigmoid(pair_beta * margin.mean()).expand_as(margin)",
        tests=(f"{SUITE}test_each_pair_has_its_own_loss",),
    ),
    Mutation(
        number=64,
        name="pass@k takes samples with replacement",
        file="src/covey/stats.py",
        old="return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)",
        new="return 1.0 - (1.0 - num_right / num_samples) ** k",
        tests=(f"{SUITE}test_pass_at_k_is_the_unbiased_estimate",),
    ),
]
