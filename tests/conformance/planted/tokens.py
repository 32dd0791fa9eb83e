"""Classes 1 to 14."""

from __future__ import annotations

from tests.conformance.mutation import Mutation

SUITE = "tests/conformance/test_tokens.py::"
POSITIONS = f"{SUITE}test_the_loss_reaches_the_positions_that_predict_a_completion_its_end_included_and_no_others"
TOKENS = f"{SUITE}test_the_tokens_of_a_step_are_the_completions_tokens"
BEHIND = f"{SUITE}test_what_stands_behind_the_end_changes_no_bit"
SAME_SCORE = f"{SUITE}test_a_completion_scores_the_same_alone_padded_and_behind_a_shared_prompt"
BATCH, SCORING = "src/covey/batch.py", "src/covey/models/scoring.py"
POLICY, ENGINE = "src/covey/models/policy.py", "src/covey/engines/transformers.py"
ENGINE_SCORES = "tests/contracts/test_engines.py::test_logprobs_are_those_of_the_trainer"

MUTATIONS = [
    Mutation(
        number=1,
        name="the mask leaves out the padding token's id",
        file=BATCH,
        old="completion_mask=torch.arange(width)[None] < lengths,",
        new="completion_mask=(torch.arange(width)[None] < lengths) & (completion_ids != 257),",
        tests=(POSITIONS, TOKENS),
    ),
    Mutation(
        number=1,
        name="the embedding drops the padding token's gradient",
        file=POLICY,
        old="    embeddings.padding_idx = None\n",
        new="",
        tests=("tests/unit/test_policy.py::test_the_gradient_of_the_padding_token_is_not_dropped",),
    ),
    Mutation(
        number=2,
        name="the end token is masked",
        file=BATCH,
        old="lengths = (stats.lengths * stats.scored)[",
        new="lengths = ((stats.lengths - 1) * stats.scored)[",
        tests=(POSITIONS, TOKENS),
    ),
    Mutation(
        number=2,
        name="one token behind the end is trained",
        file=BATCH,
        old="completion_mask=torch.arange(width)[None] < lengths,",
        new="completion_mask=torch.arange(width)[None] <= lengths,",
        tests=(BEHIND, TOKENS),
    ),
    Mutation(
        number=3,
        name="only the first of a list of end tokens counts",
        file=POLICY,
        old="(entry if isinstance(entry, list) else [entry])",
        new="(entry[:1] if isinstance(entry, list) else [entry])",
        tests=("tests/unit/test_policy.py::test_every_end_token_that_anything_names_ends_a_completion",),
    ),
    Mutation(
        number=3,
        name="the engine stops at one end token only",
        file=ENGINE,
        old="finished = torch.isin(tokens, self._stop_ids)",
        new="finished = tokens == self._stop_ids[0]",
        tests=("tests/contracts/test_engines.py::test_every_end_token_ends_a_completion",),
    ),
    Mutation(
        number=4,
        name="completions behind a shared prompt see each other",
        file=SCORING,
        old="allowed = (causal & same_or_prompt)[:, None]",
        new="allowed = (causal | (same_or_prompt & causal))[:, None]",
        tests=(SAME_SCORE,),
    ),
    Mutation(
        number=4,
        name="the engine attends to the padding",
        file=ENGINE,
        old="            attention_mask=mask,\n",
        new="            attention_mask=torch.ones_like(mask),\n",
        tests=(ENGINE_SCORES,),
    ),
    Mutation(
        number=5,
        name="positions count the padding on the left",
        file=ENGINE,
        old="position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]",
        new="position_ids = torch.arange(mask.shape[1]).expand_as(mask)[:, shared:]",
        tests=("tests/contracts/test_transformers_engine.py::test_left_padding_does_not_move_learned_positions",),
    ),
    Mutation(
        number=5,
        name="positions run on through the completions of a pack",
        file=SCORING,
        old="position_ids[n, start:end] = len(prompt) + torch.arange(end - start)",
        new="position_ids[n, start:end] = torch.arange(start, end)",
        tests=(SAME_SCORE,),
    ),
    Mutation(
        number=6,
        name="tokens are predicted by their own logits",
        file=SCORING,
        old="= n * width + torch.arange(start - 1, start - 1 + lengths[row])",
        new="= n * width + torch.arange(start, start + lengths[row]).clamp(max=width - 1)",
        tests=(SAME_SCORE, POSITIONS),
    ),
    Mutation(
        number=6,
        name="the entropy is shifted by one",
        file=SCORING,
        old="entropy=grid.masked_scatter(where, entropy))",
        new="entropy=grid.masked_scatter(where, entropy.roll(1)))",
        tests=(f"{SUITE}test_the_entropy_is_that_of_the_distribution_each_token_was_drawn_from",),
    ),
    Mutation(
        number=7,
        name="the loss reaches a position inside the prompt",
        file=SCORING,
        old="source[out_row, :1] = n * width + len(prompt) - 1",
        new="source[out_row, :1] = n * width + len(prompt) - 2",
        tests=(POSITIONS,),
    ),
    Mutation(
        number=7,
        name="the prompt's last token is trained as the completion's first",
        file=BATCH,
        old="completion_ids[row, :length] = torch.tensor(rollout.completion.token_ids)",
        new="completion_ids[row, :length] = torch.tensor([rollout.prompt_ids[-1], *rollout.completion.token_ids[:-1]])",
        tests=(TOKENS,),
    ),
    Mutation(
        number=8,
        name="completions are encoded again from their text",
        file="src/covey/rollout.py",
        old="rollouts.append(Rollout(prompt_ids=ids, completion=completion, text=",
        new=(
            "completion = replace(completion, token_ids=policy.tokenizer.encode(sample.completion, add_special_tokens=False))\n"
            "            rollouts.append(Rollout(prompt_ids=ids, completion=completion, text="
        ),
        tests=("tests/conformance/test_rollouts.py::test_sampled_tokens_are_trained_as_they_are_and_never_encoded_again",),
    ),
    Mutation(
        number=9,
        name="the rendered template is tokenized with special tokens",
        file=POLICY,
        old="ids: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)",
        new=(
            "ids: Any = self.tokenizer(str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, "
            'tokenize=False)))["input_ids"]'
        ),
        tests=("tests/unit/test_policy.py::test_a_tokenizer_that_adds_its_own_beginning_gives_no_second_one",),
    ),
    Mutation(
        number=10,
        name="the token of a stop text is cut off, its log-prob is not",
        file=ENGINE,
        old="                token_ids=ids,\n",
        new="                token_ids=ids[:-1] if sampling.stop and row in stopped else ids,\n",
        tests=(
            "tests/conformance/test_rollouts.py::test_a_completion_that_ends_with_a_stop_text_has_one_log_prob_for_each_token",
        ),
    ),
    Mutation(
        number=11,
        name="the assistant's turn is not opened",
        file=POLICY,
        old="add_generation_prompt=True, return_dict=False",
        new="add_generation_prompt=False, return_dict=False",
        tests=("tests/unit/test_policy.py::test_a_prompt_is_rendered_by_the_chat_template_ready_to_be_answered",),
    ),
    Mutation(
        number=11,
        name="the plain template opens the turn twice",
        file=POLICY,
        old="{% if add_generation_prompt %}Assistant:{% endif %}",
        new="{% if add_generation_prompt %}Assistant:Assistant:{% endif %}",
        tests=("tests/unit/test_policy.py::test_a_base_model_gets_a_plain_template",),
    ),
    Mutation(
        number=12,
        name="prompts are cut to their last tokens",
        file=POLICY,
        old="return [int(token) for token in ids]",
        new="return [int(token) for token in ids][-512:]",
        tests=(f"{SUITE}test_a_long_prompt_is_encoded_whole",),
    ),
    Mutation(
        number=12,
        name="a prompt that does not fit passes",
        file="src/covey/refusals.py",
        old="            if length > room:",
        new="            if length > 2 * room:",
        tests=(f"{SUITE}test_a_prompt_that_does_not_fit_is_refused_by_name",),
    ),
    Mutation(
        number=13,
        name="truncated completions count as wrong although they are masked",
        file=BATCH,
        old="    return rollout.reward.value is not None and not is_left_out",
        new="    return rollout.reward.value is not None",
        tests=(f"{SUITE}test_a_masked_truncated_completion_is_as_if_it_were_not_there",),
    ),
    Mutation(
        number=13,
        name="masked truncated completions stay in the number of completions",
        file="src/covey/algos/aggregate.py",
        old="return (self.lengths > 0).sum().clamp(min=1).to(self.lengths.dtype)",
        new="return torch.tensor(len(self.lengths)).clamp(min=1).to(self.lengths.dtype)",
        tests=(f"{SUITE}test_a_masked_truncated_completion_leaves_the_denominators",),
    ),
    Mutation(
        number=13,
        name="the length metric leaves truncated completions out",
        file="src/covey/rollout.py",
        old="lengths = [len(rollout.completion.token_ids) for rollout in rollouts]",
        new='lengths = [len(item.completion.token_ids) for item in rollouts if item.completion.finish_reason == "stop"] or [0]',
        tests=("tests/conformance/test_rollouts.py::test_length_metrics_count_every_completion_truncated_ones_too",),
    ),
]
