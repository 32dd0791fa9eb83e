"""Which engine `sampling.engine = "auto"` is: Covey's own where it can serve the model, else transformers' with a note."""

from __future__ import annotations

import dataclasses

import pytest
from tests.adapters import SPEC, adapted
from tests.unit.test_native_families import gpt2

from covey.engines.native.engine import NativeEngine
from covey.engines.registry import ENGINES, fastest_engine
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy
from covey.types import CoveyError

SIDE_BY_SIDE = dataclasses.replace(SPEC, is_merged=False)


def gpt2_policy(policy: Policy) -> Policy:
    return dataclasses.replace(policy, model=gpt2())


def test_a_llama_is_served_by_the_native_engine(shared_tiny_policy: Policy):
    assert isinstance(fastest_engine(shared_tiny_policy), NativeEngine)


def test_adapters_that_are_merged_are_served_by_the_native_engine(shared_tiny_policy: Policy):
    assert isinstance(fastest_engine(adapted(shared_tiny_policy)), NativeEngine)


def test_another_family_is_served_by_transformers_and_the_note_says_why(shared_tiny_policy: Policy):
    engine = fastest_engine(gpt2_policy(shared_tiny_policy))
    assert isinstance(engine, TransformersEngine)
    assert engine.note.startswith(
        "transformers engine, because the native one cannot serve this model: gpt2 models have no row"
    )
    assert engine.note.endswith("Sampling takes 2 to 3 times as long")


def test_adapters_beside_the_weights_are_served_by_transformers_and_the_note_names_the_option(shared_tiny_policy: Policy):
    engine = fastest_engine(adapted(shared_tiny_policy, spec=SIDE_BY_SIDE))
    assert isinstance(engine, TransformersEngine)
    assert "its adapters are not merged into the weights (lora.sampling='merged')" in engine.note


def test_a_transformers_engine_that_was_asked_for_has_nothing_to_say(shared_tiny_policy: Policy):
    fastest_engine(gpt2_policy(shared_tiny_policy))
    assert TransformersEngine(shared_tiny_policy).note == ""


def test_the_native_engine_by_name_refuses_what_it_cannot_serve(shared_tiny_policy: Policy):
    with pytest.raises(CoveyError, match=r"gpt2 models have no row .* Use the transformers engine"):
        ENGINES["native"](gpt2_policy(shared_tiny_policy))


def test_auto_means_the_fastest():
    assert ENGINES["auto"] is fastest_engine
