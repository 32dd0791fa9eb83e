"""What Covey's own source must not contain: ways in which a file, a model or a completion could become code that runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "covey"
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads",
    "marshal.loads",
    "torch.load", "joblib.load", "numpy.load", "np.load", "yaml.load", "os.system", "os.popen", "shelve.open", "dill.loads",
}  # fmt: skip
ALLOWED = {
    "rewards/sandbox/canaries_inside.py": {"__import__"},  # A candidate's source, which runs in the sandbox alone.
    "rewards/sandbox/inside/programs.py": {"exec", "compile"},  # What the sandbox is for.
    "rewards/worker_main.py": {"pickle.loads"},  # The trainer's own objects, on the worker's side of a pipe.
}


def name_of(node: ast.expr) -> str:
    """Return a call's function as it is written: `pickle.loads`."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls_in(text: str) -> list[tuple[str, ast.Call]]:
    return [(name_of(node.func), node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_no_file_runs_what_it_reads(name: str):
    found = {called for called, _ in calls_in((SOURCE / name).read_text()) if called in FORBIDDEN}
    assert found <= ALLOWED.get(name, set())


@pytest.mark.parametrize("name", FILES)
def test_no_process_is_started_through_a_shell(name: str):
    for called, node in calls_in((SOURCE / name).read_text()):
        shell = [keyword for keyword in node.keywords if keyword.arg == "shell"]
        assert not shell, f"{called} in line {node.lineno}"


def test_the_search_finds_what_it_is_for():
    text = "import pickle\npickle.loads(b'')\neval('1')\nmodel.eval()\n"
    assert [called for called, _ in calls_in(text) if called in FORBIDDEN] == ["pickle.loads", "eval"]
    assert {name: ALLOWED[name] for name in ALLOWED if name not in FILES} == {}


def test_unpickling_tensors_is_left_to_nobody():
    """`from_pretrained` and its like must be told to take safetensors: their default falls back on pickled files."""
    for name in FILES:
        for called, node in calls_in((SOURCE / name).read_text()):
            if called.endswith("ForCausalLM.from_pretrained"):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                chosen = given.get("use_safetensors")
                is_gguf = "gguf_file" in given
                assert is_gguf or (isinstance(chosen, ast.Constant) and chosen.value is True), f"{name}:{node.lineno}"
