"""vLLM's CPU build, computing on all cores or as it is installed.

As installed it keeps a core for its scheduler, which of two cores leaves one to compute on.
"""

from __future__ import annotations

import os
import sys

# vLLM reads these when it is imported. The cache's space is in GiB.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
if sys.argv[2] == "all cores":
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))

import vllm  # ty: ignore[import-not-found]

from decoders.serving import Batch, Tool, serve

MAX_ROWS = 256
MAX_SEQUENCE_TOKENS = 1024


class Vllm:
    """Samples n completions of each prompt, with the log-prob of the sampled token; prefixes are cached, as by default."""

    def __init__(self, engine: vllm.LLM):
        self.notes = {
            "version": vllm.__version__,
            "dtype": "bfloat16",
            "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "not set: vLLM's default"),
            "prefix cache": "vLLM's default, emptied before each call, as after an update of the weights",
            "max_num_seqs": MAX_ROWS,
        }
        self._engine = engine

    def prepare(self, batch: Batch) -> None:
        self._engine.reset_prefix_cache()

    def decode(self, batch: Batch) -> int:
        sampling = vllm.SamplingParams(
            n=batch.group_size, temperature=1.0, logprobs=0, ignore_eos=True, max_tokens=batch.num_new_tokens
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in batch.prompts]
        outputs = self._engine.generate(prompts, sampling, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)


def load(path: str) -> Tool:
    return Vllm(vllm.LLM(model=path, dtype="bfloat16", max_num_seqs=MAX_ROWS, max_model_len=MAX_SEQUENCE_TOKENS, seed=0))


if __name__ == "__main__":
    serve(load)
