"""Twenty-five secrets, planted wherever a run could pick one up: none of them is in what it writes or says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.commands import SMALL, covey
from tests.processes import Finished

SECRETS = {
    "HF_TOKEN": "hf_" + "qWeRtY" * 6,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "aSdFgH" * 6,
    "WANDB_API_KEY": "c0ffee1234" * 4,
    "MLFLOW_TRACKING_PASSWORD": "mlflow-pass-canary",
    "OPENAI_API_KEY": "sk-proj-" + "Zz9" * 15,
    "ANTHROPIC_API_KEY": "sk-ant-" + "Yy8" * 15,
    "AWS_ACCESS_KEY_ID": "AKIA" + "CANARY" * 3,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYcanary",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzcanarycanary//////////",
    "GOOGLE_API_KEY": "AIza" + "Canary" * 6,
    "AZURE_CLIENT_SECRET": "8Q~canary~canary~canary~canary",
    "GITHUB_TOKEN": "ghp_" + "wW7" * 12,
    "GITLAB_TOKEN": "glpat-" + "canary1234567890",
    "SLACK_BOT_TOKEN": "xoxb-canary-1234-canary",
    "STRIPE_API_KEY": "sk_live_" + "canary" * 4,
    "NPM_TOKEN": "npm_" + "canary" * 6,
    "PIP_INDEX_URL": "https://pip-user:pip-pass-canary@index.example/simple",
    "HTTPS_PROXY": "http://proxy-user:proxy-pass-canary@localhost:9",
    "DATABASE_URL": "postgres://db-user:hunter2canary@host/db",
    "REDIS_URL": "redis://:redis-pass-canary@host:6379/0",
    "BEARER": "Bearer eyJhbGciOiJIUzI1NiJ9.canary.canary",
    "CALLBACK_URL": "https://host/hook?access_token=url-token-canary",
    "SSH_KEY": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEcanary\n-----END OPENSSH PRIVATE KEY-----",
    "PASSWORD": "correct-horse-battery-canary",
    "COVEY_JUDGE_KEY": "judge-key-canary-0123456789",
}
PARTS = {name: max(re.split(r"[\s]|://|@", value), key=len) for name, value in SECRETS.items()}
"""What of each would give it away: its longest part."""
REWARDS = """
def fine(completion):
    return float(len(completion) % 2)

def failing(completion):
    token = "not a secret"
    raise RuntimeError(f"no luck with {len(completion)} letters")

def printing(completion):
    import os
    print(os.environ["PASSWORD"])
    return float(len(completion) % 2)
"""


def leaks_in(text: bytes) -> list[str]:
    return [name for name, part in PARTS.items() if part.encode() in text]


def leaks_of(finished: Finished, directory: Path) -> dict[str, list[str]]:
    """Return what is told of the secrets, by file and stream."""
    places = {"stdout": finished.out.encode(), "stderr": finished.err.encode()}
    files = [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("mine.")]
    places |= {str(path): path.read_bytes() for path in files}
    return {place: found for place, text in places.items() if (found := leaks_in(text))}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(REWARDS)
    return tmp_path


def test_there_are_twenty_five_of_them() -> None:
    assert len(PARTS) == len({*PARTS.values()}) == 25
    assert min(map(len, PARTS.values())) >= 15


COMMANDS: dict[str, tuple[list[str], int]] = {
    "a run that ends": (["train", "arithmetic", "reward.name=mine:fine", "--name", "run", *SMALL], 0),
    "a run that fails": (["train", "arithmetic", "reward.name=mine:failing", "--name", "run", *SMALL], 2),
    "a plan": (["plan", "arithmetic", *SMALL], 0),
    "a wrong option": (["train", "arithmetic", "train.num_stps=2"], 2),
    "a tracker": (["train", "arithmetic", "reward.name=mine:fine", "run.sinks=['tensorboard']", "--name", "run", *SMALL], 0),
    "a judge that is not there": (
        [
            *("train", "arithmetic", "reward.name=judge", "reward.options.base_url='http://127.0.0.1:9/v1'", "--name", "run"),
            *("reward.options.model=judge", "reward.options.key_variable=COVEY_JUDGE_KEY", "reward.options.max_attempts=1"),
            *("reward.options.deadline_s=2", *SMALL),
        ],
        2,
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_secret_is_written_or_said(directory: Path, command: str) -> None:
    words, code = COMMANDS[command]
    finished = covey(*words, directory=directory, environment=SECRETS)
    assert finished.code == code, finished
    assert leaks_of(finished, directory) == {}


def test_what_a_reward_prints_is_found_where_it_is_kept(directory: Path) -> None:
    """The positive control: a reward that tells its own secret is heard, and the search sees it."""
    words = ["train", "arithmetic", "reward.name=mine:printing", "--name", "run", *SMALL]
    finished = covey(*words, directory=directory, environment=SECRETS)
    assert finished.code == 0, finished
    found = leaks_of(finished, directory)
    assert {Path(place).name: names for place, names in found.items()} == {"reward-output.log": ["PASSWORD"]}


@pytest.mark.parametrize(
    "address", ["http://user:address-pass-canary@localhost:9/v1", "http://localhost:9/v1?key=address-canary"]
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(directory: Path, address: str) -> None:
    words = ["train", "arithmetic", "reward.name=judge", f"reward.options.base_url='{address}'", "--name", "run", *SMALL]
    finished = covey(*words, "reward.options.model=judge", directory=directory)
    assert finished.code == 2
    assert "canary" not in finished.out + finished.err
    assert not (directory / "runs").exists()


def test_processes_of_a_run_have_no_secret_among_their_arguments() -> None:
    """Arguments of processes are for everyone on a machine to read."""
    script = (
        "import os, pathlib\nfrom covey.rewards.workers import RewardWorkers, WorkerSpec\n"
        "from covey.rewards.base import as_reward\n"
        "with RewardWorkers(WorkerSpec(num_workers=1)) as workers:\n"
        "    workers.isolated(as_reward(lambda completion: 1.0))\n    workers.start()\n"
        "    for number in workers.process_ids:\n"
        "        print(pathlib.Path(f'/proc/{number}/cmdline').read_text().replace(chr(0), ' '))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env={**os.environ, **SECRETS, "HTTPS_PROXY": ""}
    )
    assert b"python" in done.stdout
    assert leaks_in(done.stdout) == []


def test_words_that_only_sound_like_secrets_stay_readable(directory: Path) -> None:
    """Nothing is blacked out by its name: what is not to be seen is not written in the first place."""
    covey("train", "arithmetic", "--name", "run", *SMALL, "train.num_steps=1", directory=directory)
    kept = b"".join(path.read_bytes() for path in (directory / "runs/run/checkpoints").rglob("*.json"))
    assert [word for word in ("pad_token", "eos_token_id") if word.encode() not in kept] == []
