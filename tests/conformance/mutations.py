"""The list of planted bugs, ordered by class."""

from __future__ import annotations

from tests.conformance.mutation import Mutation
from tests.conformance.planted import advantages, losses, normalisation, rollouts, tokens

MUTATIONS: list[Mutation] = [
    *tokens.MUTATIONS,
    *advantages.MUTATIONS,
    *losses.MUTATIONS,
    *normalisation.MUTATIONS,
    *rollouts.MUTATIONS,
]
