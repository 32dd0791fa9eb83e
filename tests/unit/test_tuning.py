"""Which settings a command starts with, and that it starts with them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from covey.tuning import ALLOCATOR, THREADS, missing_settings, settings_in_force

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
CODE = (
    "import json, os, sys; from covey.tuning import start_tuned; start_tuned(); "
    "print(json.dumps([dict(os.environ), sys.argv, os.getpid()]))"
)


def started(environment: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return environment and arguments of a process after it has tuned itself."""
    command = [sys.executable, "-c", CODE, "train", "run.name=a b"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    found, words, _ = json.loads(result.stdout)
    return found, words


def plain_environment() -> dict[str, str]:
    settings = {*ALLOCATOR, *THREADS, "OMP_WAIT_POLICY", "COVEY_TUNE"}
    return {name: value for name, value in os.environ.items() if name not in settings}


@only_glibc
def test_a_plain_environment_lacks_all_of_them():
    assert missing_settings({"HOME": "/"}) == ALLOCATOR | THREADS


@only_glibc
@pytest.mark.parametrize("name", ALLOCATOR)
def test_whoever_sets_one_of_the_allocators_keeps_them_all(name: str):
    assert missing_settings({name: "other"}) == THREADS


@only_glibc
@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_whoever_says_how_threads_wait_is_heard(name: str):
    assert missing_settings({name: "other"}) == ALLOCATOR


def test_they_can_be_refused():
    assert missing_settings({"COVEY_TUNE": "0"}) == {}


def test_with_all_of_them_nothing_is_missing():
    assert missing_settings(ALLOCATOR | THREADS) == {}


@only_glibc
def test_the_command_starts_anew_with_them_and_with_its_arguments():
    found, words = started(plain_environment())
    assert settings_in_force(found) == ALLOCATOR | THREADS
    assert words == ["-c", "train", "run.name=a b"]


def test_a_refusal_leaves_the_environment_alone():
    found, _ = started(plain_environment() | {"COVEY_TUNE": "0"})
    assert settings_in_force(found) == {}
