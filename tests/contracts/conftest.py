"""The tiny model with many end tokens, so that some completions end by themselves and some do not."""

from __future__ import annotations

import dataclasses

import pytest
from tests.generation import STOP_IDS

from covey.models.policy import Policy


@pytest.fixture(scope="module")
def shared_policy(shared_tiny_policy: Policy) -> Policy:
    """For tests that do not change it."""
    return dataclasses.replace(shared_tiny_policy, stop_ids=STOP_IDS)


@pytest.fixture
def policy(tiny_policy: Policy) -> Policy:
    """A test's own."""
    return dataclasses.replace(tiny_policy, stop_ids=STOP_IDS)
