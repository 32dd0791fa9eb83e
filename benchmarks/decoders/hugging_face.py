"""transformers' own `generate`, as its users call it: a batch padded on the left, and the key-value cache."""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from decoders.serving import Batch, Tool, serve


class HuggingFaceGenerate:
    """Samples from the whole distribution at temperature 1; the model has no end token."""

    def __init__(self, model: Any, *, pad_id: int):
        self.notes = {
            "version": transformers.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
        }
        self._model = model
        self._pad_id = pad_id

    def prepare(self, batch: Batch) -> None:
        torch.manual_seed(0)

    @torch.inference_mode()
    def decode(self, batch: Batch) -> int:
        longest = max(len(prompt) for prompt in batch.prompts)
        padding = [longest - len(prompt) for prompt in batch.prompts]
        pairs = list(zip(padding, batch.prompts, strict=True))
        sequences = self._model.generate(
            input_ids=torch.tensor([[self._pad_id] * missing + prompt for missing, prompt in pairs]),
            attention_mask=torch.tensor([[0] * missing + [1] * len(prompt) for missing, prompt in pairs]),
            num_return_sequences=batch.group_size,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=batch.num_new_tokens,
            use_cache=True,
            pad_token_id=self._pad_id,
        )
        return sequences.shape[0] * (sequences.shape[1] - longest)


def load(path: str) -> Tool:
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtypes[sys.argv[2]]).eval()
    model.generation_config.eos_token_id = None  # No token ends a completion, and no check for it costs time.
    return HuggingFaceGenerate(model, pad_id=model.config.pad_token_id)


if __name__ == "__main__":
    serve(load)
