"""Zygotes of every tier that this machine has. A tier that is missing is skipped with what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.sandbox.attacking import clean_up

from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.interpreters import interpreter
from covey.rewards.sandbox.pool import SandboxPool
from covey.rewards.sandbox.tiers import TIERS, Tier, remote_tier

QUICK = Limits(cpu_s=1, patience=1.0)


QUICK_TIERS = ("bubblewrap", "landlock")
"""In these all attempts are made whenever the tests run; in the others with `-m slow`, and `test_other_tiers.py` makes some."""
ALL_TIERS = {**TIERS, "remote": remote_tier([interpreter()])}
"""With a command: elsewhere is a process of this machine, with nothing around it but what a zygote brings along."""


@pytest.fixture(autouse=True)
def nothing_stays_outside() -> Iterator[None]:
    """Remove what the positive controls leave behind: their attempts are held by nothing."""
    yield
    clean_up()


def available(name: str) -> Tier:
    """Return the tier, or skip the test with what is missing."""
    found = ALL_TIERS[name]
    if missing := found.missing():
        pytest.skip(missing)
    return found


@pytest.fixture(
    scope="session",
    params=[name if name in QUICK_TIERS else pytest.param(name, marks=pytest.mark.slow) for name in ALL_TIERS],
)
def tier(request: pytest.FixtureRequest) -> Tier:
    return available(request.param)


@pytest.fixture(scope="session")
def pool(tier: Tier) -> Iterator[SandboxPool]:
    with SandboxPool(tier, limits=QUICK) as found:
        yield found
