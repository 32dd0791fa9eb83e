"""Zygotes of every tier that this machine has. A tier that is missing is skipped with what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.pool import SandboxPool
from covey.rewards.sandbox.tiers import TIERS, Tier

QUICK = Limits(cpu_s=1, patience=1.0)


@pytest.fixture(scope="session", params=list(TIERS))
def tier(request: pytest.FixtureRequest) -> Tier:
    found = TIERS[request.param]
    if missing := found.missing():
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def pool(tier: Tier) -> Iterator[SandboxPool]:
    with SandboxPool(tier, limits=QUICK) as found:
        yield found
