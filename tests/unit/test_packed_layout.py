"""What the packed path starts from: where tokens lie and who sees whom, which models it takes, its copies of their weights."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters import adapted
from tests.unit.test_native_families import built, every_model, gpt2, with_adapter
from torch import Tensor, nn
from transformers import PreTrainedModel

from covey.models.families import plain_linear, unsupported_reason
from covey.models.packed import attention
from covey.models.packed.attention import tiles
from covey.models.packed.decoder import packed_refusal
from covey.models.packed.layout import PackedLayout, Span, pack_layout
from covey.models.packed.weights import compute_weights
from covey.models.policy import Policy

BF16 = torch.bfloat16
NOTHING = torch.empty(0, dtype=torch.long)


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)


# --- Where tokens lie ------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> PackedLayout:
    """Two groups. The second completion has one token, which predicts nothing."""
    return pack_layout([(ids(7, 8, 9), [ids(1, 2, 3), ids(4), ids(5, 6)]), (ids(10), [ids(11, 12)])])


def test_tokens_lie_one_behind_the_other_without_the_last_one_of_each_completion(small: PackedLayout):
    assert small.token_ids.tolist() == [7, 8, 9, 1, 2, 5, 10, 11]


def test_positions_start_again_behind_the_prompt(small: PackedLayout):
    assert small.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]


def test_spans_say_where_prompts_and_rows_start(small: PackedLayout):
    assert small.spans == (Span(prompt_start=0, starts=(3, 5, 5, 6)), Span(prompt_start=6, starts=(7, 8)))
    assert [span.prompt_length for span in small.spans] == [3, 1]


def test_wanted_positions_are_the_prompts_last_and_all_of_the_row(small: PackedLayout):
    assert small.wanted.tolist() == [2, 3, 4, 2, 2, 5, 6, 7]


def test_offsets_are_the_spans_as_one_list(small: PackedLayout):
    assert small.offsets().tolist() == [2, 3, 0, 3, 5, 5, 6, 1, 6, 7, 8]


def test_an_empty_completion_wants_nothing_and_takes_no_place():
    layout = pack_layout([(ids(1, 2), [NOTHING, ids(3, 4), NOTHING])])
    assert layout.token_ids.tolist() == [1, 2, 3]
    assert layout.wanted.tolist() == [1, 2]
    assert layout.spans[0].starts == (2, 2, 3, 3)


def test_without_any_token_to_score_there_is_a_prompt_and_nothing_wanted():
    layout = pack_layout([(ids(1, 2), [NOTHING, NOTHING])])
    assert layout.token_ids.tolist() == [1, 2]
    assert layout.wanted.dtype == torch.long
    assert layout.wanted.tolist() == []


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=4)), min_size=1, max_size=4)


def numbered(lengths: Sequence[tuple[int, Sequence[int]]]) -> list[tuple[Tensor, list[Tensor]]]:
    """Return groups of these lengths in which no token occurs twice."""
    sizes = [size for prompt, completions in lengths for size in (prompt, *completions)]
    pieces = iter(torch.arange(sum(sizes)).split(sizes))
    return [(next(pieces), [next(pieces) for _ in completions]) for _, completions in lengths]


@given(LENGTHS)
def test_every_completion_token_is_wanted_once_where_the_token_before_it_lies(lengths: list[tuple[int, list[int]]]):
    groups = numbered(lengths)
    layout = pack_layout(groups)
    before = [
        (token, len(prompt) + place - 1)
        for prompt, completions in groups
        for completion in completions
        for place, token in enumerate([int(prompt[-1]), *completion[:-1].tolist()][: len(completion)])
    ]
    tokens, positions = layout.token_ids[layout.wanted], layout.positions[layout.wanted]
    assert list(zip(tokens.tolist(), positions.tolist(), strict=True)) == before


@given(LENGTHS)
def test_every_token_that_predicts_something_lies_there_once(lengths: list[tuple[int, list[int]]]):
    groups = numbered(lengths)
    expected = [
        token
        for prompt, rows in groups
        for piece in (prompt, *(row[: max(len(row) - 1, 0)] for row in rows))
        for token in piece
    ]
    assert pack_layout(groups).token_ids.tolist() == [int(token) for token in expected]


# --- Who sees whom ---------------------------------------------------------------------------------------------------


def seen_in_tiles(spans: Sequence[Span], window: int) -> list[tuple[int, list[int]]]:
    """Return each query with the keys that its tile shows it."""
    found: list[tuple[int, list[int]]] = []
    for tile in tiles(spans):
        keys = [key for part in tile.keys for key in range(part.start, part.stop)]
        queries = range(tile.queries.start, tile.queries.stop)
        for query, row in zip(queries, tile.visible(window).tolist(), strict=True):
            found.append((query, [key for key, sees in zip(keys, row, strict=True) if sees]))
    return found


def seen_by_definition(spans: Sequence[Span], window: int) -> list[tuple[int, list[int]]]:
    """Its prompt, and what lies before it in its row; of these the last `window`, itself included."""
    found: list[tuple[int, list[int]]] = []
    for span in spans:
        prompt = list(range(span.prompt_start, span.starts[0]))
        rows = [list(range(start, end)) for start, end in zip(span.starts, span.starts[1:], strict=False)]
        sequences = [prompt, *([*prompt, *row] for row in rows)]
        for number, sequence in enumerate(sequences):
            first = 0 if number == 0 else len(prompt)
            for place in range(first, len(sequence)):
                found.append((sequence[place], sequence[: place + 1][-window:] if window else sequence[: place + 1]))
    return found


@pytest.mark.parametrize("window", [0, 1, 4])
@given(LENGTHS)
def test_each_query_sees_its_prompt_and_its_own_past_within_the_window(window: int, lengths: list[tuple[int, list[int]]]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_TILE", 3)
        spans = pack_layout(numbered(lengths)).spans
        assert seen_in_tiles(spans, window) == seen_by_definition(spans, window)


# --- Which models ----------------------------------------------------------------------------------------------------


def with_one_bias() -> PreTrainedModel:
    model: Any = copy.deepcopy(built("llama"))
    model.model.layers[1].self_attn.k_proj.bias = nn.Parameter(torch.zeros(24))
    return model


def with_head_bias() -> PreTrainedModel:
    model: Any = copy.deepcopy(built("llama"))
    model.lm_head.bias = nn.Parameter(torch.zeros(264))
    return model


@every_model
def test_every_family_is_packed(name: str):
    assert packed_refusal(built(name)) is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (gpt2, "gpt2 models have no row in its table"),
        (with_one_bias, "some projections of 1.qkv have a bias, and others have none"),
        (with_head_bias, "its output head has a bias"),
        (with_adapter, "a projection (0.gate_up) is no plain linear layer"),
    ],
)
def test_a_model_that_cannot_be_packed_is_refused_with_the_reason(make: Callable[[], PreTrainedModel], reason: str):
    assert reason in str(packed_refusal(make()))


def own_forward(model: Any) -> None:
    layer = model.model.layers[1]
    layer.forward = layer.forward


# What the packed path never calls.
HOOKS: dict[str, Callable[[Any], object]] = {
    "before": lambda model: model.model.layers[1].mlp.register_forward_pre_hook(lambda module, inputs: None),
    "behind": lambda model: model.model.norm.register_forward_hook(lambda module, inputs, output: None),
    "on the model": lambda model: model.register_forward_hook(lambda module, inputs, output: None),
    "backward": lambda model: model.model.layers[0].register_full_backward_hook(lambda module, inputs, output: None),
    "a forward of its own": own_forward,
    "on a weight": lambda model: model.model.norm.weight.register_hook(lambda grad: grad),
    "behind a gradient": lambda model: model.model.norm.weight.register_post_accumulate_grad_hook(lambda weight: None),
}


@pytest.mark.parametrize("add", HOOKS.values(), ids=HOOKS)
def test_a_model_with_hooks_is_refused(add: Callable[[Any], object]):
    model = copy.deepcopy(built("llama"))
    add(model)
    assert "hooks or a forward of its own, which only the ordinary path calls" in str(packed_refusal(model))


def test_a_model_whose_hooks_are_gone_is_packed_again():
    model: Any = copy.deepcopy(built("llama"))
    model.model.norm.register_forward_hook(lambda module, inputs, output: None).remove()
    assert packed_refusal(model) is None


def test_low_rank_adapters_are_allowed_where_they_are_asked_for_alone(shared_tiny_policy: Policy):
    model = adapted(shared_tiny_policy).model
    assert packed_refusal(model) is None
    assert unsupported_reason(model, allows_adapters=True) is None
    assert unsupported_reason(model) == "a projection (0.qkv) is no plain linear layer"


def test_the_plain_linear_layer_is_the_one_below_the_adapter(shared_tiny_policy: Policy):
    model: Any = adapted(shared_tiny_policy).model
    adapted_layer, head = model.model.layers[0].mlp.up_proj, model.lm_head
    assert plain_linear(adapted_layer) is adapted_layer.base_layer
    assert plain_linear(head) is head


# --- Copies of the weights -------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(built("llama, tied, with biases"))


def rounded_qkv(model: Any, kind: str, *, layer: int = 1) -> Tensor:
    parts = model.model.layers[layer].self_attn
    return torch.cat([getattr(part, kind).detach() for part in (parts.q_proj, parts.k_proj, parts.v_proj)]).to(BF16)


def assert_copies_are_of_the_present_weights(model: Any) -> None:
    found = compute_weights(model, BF16).projections
    assert torch.equal(found["1.qkv"].weight, rounded_qkv(model, "weight"))
    bias = found["1.qkv"].bias
    assert bias is not None
    assert torch.equal(bias, rounded_qkv(model, "bias"))
    assert torch.equal(found["head"].weight, model.lm_head.weight.detach().to(BF16))


def test_projections_of_one_input_are_copied_one_behind_the_other(model: Any):
    assert_copies_are_of_the_present_weights(model)


def test_copies_are_kept_while_nothing_changes(model: Any):
    first = compute_weights(model, BF16)
    model(torch.arange(5)[None]).logits.sum().backward()
    assert compute_weights(model, BF16) is first


def test_copies_of_one_model_do_not_displace_those_of_another(model: Any):
    other = copy.deepcopy(model)
    first, second = compute_weights(model, BF16), compute_weights(other, BF16)
    assert compute_weights(model, BF16) is first
    assert compute_weights(other, BF16) is second


def test_another_dtype_needs_other_copies(model: Any):
    compute_weights(model, torch.float32)
    assert compute_weights(model, BF16).projections["0.qkv"].weight.dtype == BF16


@pytest.mark.parametrize(
    "name",
    [
        *(f"model.layers.1.self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")),
        *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        "model.embed_tokens.weight",
    ],
)
def test_a_single_number_that_is_written_is_noticed(model: Any, name: str):
    first = compute_weights(model, BF16)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] += 1.0
    assert compute_weights(model, BF16) is not first
    assert_copies_are_of_the_present_weights(model)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False, "fused": False}], ids=str)
def test_a_step_of_the_optimizer_is_noticed(model: Any, options: Any):
    """The fused one writes without torch's counters of writes noticing."""
    compute_weights(model, BF16)
    model(torch.arange(9)[None]).logits.square().mean().backward()
    before = rounded_qkv(model, "weight")
    torch.optim.AdamW(model.parameters(), lr=1e-2, **options).step()
    assert not torch.equal(rounded_qkv(model, "weight"), before)
    assert_copies_are_of_the_present_weights(model)


def test_a_write_past_autograd_is_noticed(model: Any):
    compute_weights(model, BF16)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    assert_copies_are_of_the_present_weights(model)


def test_a_loaded_state_is_noticed(model: Any):
    compute_weights(model, BF16)
    state = {name: weight + 1.0 for name, weight in model.state_dict().items()}
    model.load_state_dict(state)
    assert_copies_are_of_the_present_weights(model)


def test_old_copies_are_gone_when_there_are_new_ones(model: Any):
    old = weakref.ref(compute_weights(model, BF16))
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    compute_weights(model, BF16)
    assert old() is None


def test_copies_go_with_their_model():
    model = copy.deepcopy(built("llama"))
    kept = weakref.ref(compute_weights(model, BF16))
    assert kept() is not None
    del model
    gc.collect()
    assert kept() is None
