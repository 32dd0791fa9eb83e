"""Candidates elsewhere: what a command leads to is believed nothing, told nothing of here, and no verdict when it fails."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path

import pytest
from tests.sandbox.conftest import QUICK, available
from tests.sandbox.test_judge import DOUBLE, ECHO

from covey.config import ConfigError, make_recipe
from covey.rewards.code import SandboxSpec, tier_chosen
from covey.rewards.sandbox.canaries import attempt, bait
from covey.rewards.sandbox.carried import FAR_MODULES, INSIDE
from covey.rewards.sandbox.inside import landlock, pieces
from covey.rewards.sandbox.interpreters import interpreter
from covey.rewards.sandbox.judge import ProgramJob
from covey.rewards.sandbox.pool import NoSandboxError, SandboxPool, choose_tier, tried
from covey.rewards.sandbox.pump import Pump, report_of
from covey.rewards.sandbox.tiers import TIERS, Tier, remote_tier
from covey.rewards.sandbox.zygotes import SandboxError

GOOD = "def f(x): return 2 * x"
HERE = remote_tier([interpreter()])
BARE = dataclasses.replace(HERE, has_landlock=False, has_filter=False)


def test_a_place_without_walls_is_found_out():
    """The positive control of the canaries: a provider's word that is empty."""
    reason, _ = tried(BARE)
    for canary in ("reads_file", "writes_file", "connects", "forks", "runs_program", "kills"):
        assert canary in reason


@pytest.mark.skipif(not landlock.interface(), reason="the kernel has no Landlock")
def test_a_bare_interpreter_is_held_by_what_the_zygote_brings_along():
    reason, facts = tried(HERE)
    assert reason == ""
    assert facts["landlock"] == landlock.interface()
    assert facts["system"].startswith(os.uname().sysname)


def test_without_landlock_there_the_command_must_hold_files():
    without = dataclasses.replace(HERE, has_landlock=False)
    assert set(tried(without)[0].split("; ")) == {
        "reads_file: a file that everybody may read, the users of the machine, a directory's names",
        "reads_processes: the list of processes",
    }
    walled = remote_tier([*available("bubblewrap").wrapper(), interpreter()])
    assert tried(dataclasses.replace(walled, has_landlock=False))[0] == ""


def test_a_line_for_a_shell_says_where_the_interpreter_begins():
    tier = remote_tier(["/bin/sh", "-c", f"exec {interpreter()} -c {{boot}}"])
    with SandboxPool(tier, num_zygotes=1, limits=QUICK) as pool:
        assert pool.grade(DOUBLE, GOOD).has_passed


def test_nothing_of_covey_is_needed_there():
    names = {path.stem for path in INSIDE.glob("*.py")} - {"__init__", "guest"}
    assert set(FAR_MODULES) == names
    for name in FAR_MODULES:
        assert "covey." not in (INSIDE / f"{name}.py").read_text()


def test_no_secret_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "a secret")
    with pytest.raises(SandboxError) as caught:
        remote_tier(["/bin/sh", "-c", "env >&2; exit 3"]).start()
    assert "PATH=" in str(caught.value)
    assert "HF_TOKEN" not in str(caught.value)


def test_the_environment_of_the_command_does_not_reach_candidates():
    zygote = remote_tier(["/usr/bin/env", "HF_TOKEN=secret", interpreter()]).start()
    try:
        with bait() as laid:
            assert attempt(zygote, "sees_environment", laid) == ""
    finally:
        zygote.close()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("echo no route to host >&2; exit 255", "no route to host"),
        ("exit 1", "it said nothing"),
        ("echo Welcome to the machine; cat >/dev/null", "no message: b'Welcome"),
        ("printf '\\0\\0\\0\\0\\0\\0\\0\\0\\2{}'; cat >/dev/null", "no report"),
        ("head -c 100000000 /dev/zero; cat >/dev/null", "no report|no message"),
    ],
)
def test_what_is_no_zygote_is_a_reason_and_no_crash(line: str, message: str):
    with pytest.raises(SandboxError, match=message):
        remote_tier(["/bin/sh", "-c", line, "sh"]).start()


def test_a_program_that_cannot_be_run_is_a_reason():
    assert "/no/such/ssh cannot be run" in tried(remote_tier(["/no/such/ssh", "host"]))[0]


def test_a_connection_that_breaks_is_made_anew():
    with SandboxPool(HERE, num_zygotes=1, limits=QUICK) as pool:
        first = pool._zygote(0)
        subprocess.run(["kill", "-9", str(first.process_id)], check=True)
        assert pool.grade(DOUBLE, GOOD).has_passed
        assert pool._zygote(0) is not first


def test_a_place_that_never_answers_is_no_statement_about_the_candidate():
    with SandboxPool(remote_tier(["/bin/false"]), num_zygotes=1, limits=QUICK) as pool:
        outcome = pool.grade(DOUBLE, GOOD)
    assert (outcome.kind, outcome.is_about_candidate) == ("infra_error", False)


def test_input_and_output_of_a_megabyte_go_there_and_back():
    text = "x" * 79 + "\n"
    job = ProgramJob(runs=[(text * 12_000, text * 12_000)])
    with SandboxPool(HERE, num_zygotes=1) as pool:
        assert pool.grade(job, "import sys\nsys.stdout.write(sys.stdin.read())").has_passed
        assert pool.grade(ECHO, "import sys\nfor _ in range(100): sys.stdout.write('x' * 100_000)").kind == "output_limit"


def test_a_flood_that_nobody_asked_for_ends_the_execution_and_not_the_trainers_memory():
    flood = (
        "import gc, socket\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, socket.socket):\n"
        "            while True:\n                o.sendall(b'\\0\\0\\0\\1x' * 100_000)\n"
    )
    with SandboxPool(HERE, num_zygotes=1, limits=QUICK) as pool:
        assert pool.grade(DOUBLE, flood).kind in ("protocol_violation", "crashed")
        assert pool.grade(DOUBLE, GOOD).has_passed


def test_bytes_for_executions_that_are_not_are_dropped():
    reading, saying = os.pipe()
    hearing, writing = os.pipe()
    pump = Pump(reading, writing)
    try:
        os.write(saying, pieces.pack(pieces.CHANNEL, 7, b"x" * 100) + pieces.pack_control({"ready": True}))
        assert pump.report(time.monotonic() + 5) == {"ready": True}
        os.write(saying, pieces.pack_control({"ready": True}) * 200)
        time.sleep(0.2)
        with pytest.raises(SandboxError, match="more reports"):
            [pump.report(time.monotonic() + 5) for _ in range(200)]
    finally:
        pump.close()
        os.close(saying)
        os.close(hearing)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"run": 1}', b'{"run": "1", "exit": 0, "cpu_s": 0}', b"[" * 60_000])
def test_what_is_no_report_is_refused(content: bytes):
    with pytest.raises((ValueError, RecursionError)):
        report_of(content)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_arrive_however_they_are_cut(size: int):
    sent = [(pieces.CHANNEL, 1, b"x" * 70_000), (pieces.STANDARD, 2, b""), (pieces.CHANNEL, 3, b"end")]
    data = b"".join(pieces.pack(*piece) for piece in sent)
    unpacker = pieces.Unpacker()
    found = [piece for start in range(0, len(data), size) for piece in unpacker.feed(data[start : start + size])]
    assert [(kind, run) for kind, run, _ in found] == [(1, 1), (1, 1), (2, 2), (1, 3)]
    assert b"".join(content for _, run, content in found if run == 1) == b"x" * 70_000


def test_where_it_is_and_what_leads_there_go_together():
    command = ["ssh", "grader@host", "python3 -c {boot}"]
    recipe = make_recipe({"reward": {"sandbox": "remote", "sandbox_command": command}})
    assert recipe.reward.sandbox_command == tuple(command)
    with pytest.raises(ConfigError, match="needs sandbox_command"):
        make_recipe({"reward": {"sandbox": "remote"}})
    with pytest.raises(ConfigError, match="one or the other"):
        make_recipe({"reward": {"sandbox_command": command}})


def test_it_is_never_chosen_unasked_and_never_replaced():
    assert not TIERS["remote"].is_automatic
    with pytest.raises(NoSandboxError, match="there is no command"):
        choose_tier("remote")
    with pytest.raises(NoSandboxError, match="remote: it does not start"):
        tier_chosen("remote", ("/bin/false",))


def test_a_spec_with_a_command_leads_there(tmp_path: Path):
    spec = SandboxSpec(tier="remote", command=(interpreter(),))
    tier: Tier = tier_chosen(spec.tier, spec.command).tier
    assert tier.wrapper()[0] == interpreter()
