"""What every test stands on: no network, a cache of its own, a tiny model, and shapes that are checked as they flow."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, runtime_checkable

# Read once, when huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from covey.metrics import Metric

if TYPE_CHECKING:
    from covey.models.policy import Policy

# beartype asks for isinstance() of what annotations name, which a protocol allows only when it is marked.
runtime_checkable(Metric)
# Before any of these modules is imported: from here on every annotated shape and dtype in them is checked at run time.
SHAPE_CHECKED = [
    "covey.algos",
    "covey.batch",
    "covey.learner",
    "covey.models.distribution",
    "covey.models.scoring",
    "covey.tensors",
]
install_import_hook(SHAPE_CHECKED, "beartype.beartype")

# The same examples every time, and no limit on the time of one: this may be a busy machine.
settings.register_profile("covey", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("covey")

_COVEY_HOME_OF_THE_USER = os.environ.get("COVEY_HOME")
_COVEY_HOME_OF_THE_TESTS = TemporaryDirectory(prefix="covey-tests-")
os.environ["COVEY_HOME"] = _COVEY_HOME_OF_THE_TESTS.name


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give slow tests the user's cache, where the bundled model may lie already, and all others an empty one.

    A hook, because it must act before fixtures of any scope.
    """
    home = _COVEY_HOME_OF_THE_USER if item.get_closest_marker("slow") else _COVEY_HOME_OF_THE_TESTS.name
    if home is None:
        os.environ.pop("COVEY_HOME", None)
    else:
        os.environ["COVEY_HOME"] = home


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny model. Read only: copy it to change it."""
    from covey.models.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def shared_tiny_policy(tiny_directory: Path) -> Policy:
    """The tiny model in float32, loaded once. Do not train it: `tiny_policy` is a copy that may be."""
    from covey.models.policy import load_policy

    return load_policy(str(tiny_directory), compute_dtype="float32")


@pytest.fixture(scope="session")
def shared_tiny_policy64(shared_tiny_policy: Policy) -> Policy:
    """The tiny model in float64, loaded once. Do not train it: `tiny_policy64` is a copy that may be."""
    return in_float64(shared_tiny_policy)


@pytest.fixture
def tiny_policy(shared_tiny_policy: Policy) -> Policy:
    """A copy of the tiny model in float32, the test's own."""
    return copy_of(shared_tiny_policy)


@pytest.fixture
def tiny_policy64(shared_tiny_policy64: Policy) -> Policy:
    """A copy of the tiny model in float64, the test's own: for equalities that rounding would blur."""
    return copy_of(shared_tiny_policy64)


def copy_of(policy: Policy) -> Policy:
    return dataclasses.replace(policy, model=copy.deepcopy(policy.model))


def in_float64(policy: Policy) -> Policy:
    """Return a copy that computes in float64 throughout; its `compute_dtype` stays float32, which means no autocast."""
    import torch

    model = copy.deepcopy(policy.model).double()
    for name, module in list(model.named_modules()):
        # transformers' norms round to float32 inside, which would leave no more than seven digits.
        if type(module).__name__.endswith("RMSNorm"):
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return dataclasses.replace(policy, model=model)


@pytest.fixture(scope="module")
def no_slow_parts() -> Iterator[None]:
    """Runs of this module write no report and wait for no disk."""
    from tests.digits import leave_out_slow_parts  # Not above: it imports what is to be checked first.

    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield
