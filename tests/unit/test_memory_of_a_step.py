"""What an update of a model of SmolLM2-135M's sizes holds, in a process of its own, on a batch of the shape of workload W."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

MOST_GB = {"bfloat16": 5.5, "float32": 6.5}
"""Weights, their gradients and AdamW's moments are 2.2 GB; most of the rest is rounded weights and a micro-batch. In the type
that Covey chooses on this processor: in the other one an update may take minutes."""

WORKER = """
import json, random, resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from tests.builders import make_completion, make_prompt
from tests.tiny_batches import SPEC, Scores, make_batch, objective_of
from covey.learner import Learner, ScoringSpec
from covey.models.policy import choose_compute_dtype
from covey.sampling import Sampling
from covey.types import Group, Rollout, Score

torch.set_num_threads(2)
torch.manual_seed(0)
sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
model = LlamaForCausalLM(LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **sizes))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def rollout(prompt, value, number):
    ids = random.Random(number).choices(range(49152), k=64)
    score = Score(value=value, parts={"content": value, "format": 1.0})
    return Rollout(prompt_ids=prompt, completion=make_completion(ids, logprob=-1.0), text="", reward=score, gold=None)

groups = []
for place in range(8):
    prompt = random.Random(-1 - place).choices(range(49152), k=70)
    rollouts = tuple(rollout(prompt, float(sample % 2), 8 * place + sample) for sample in range(8))
    groups.append(Group(prompt=make_prompt(str(place)), rollouts=rollouts))
objective = objective_of("grpo")
sampling = Sampling(temperature=1.0, max_new_tokens=64)
dtype = choose_compute_dtype("auto")
scoring = ScoringSpec(sampling=sampling, compute_dtype=dtype, max_tokens_per_micro_batch=2048, max_shared_tokens=1024)
learner = Learner(model, objective, scoring, SPEC)
batch = make_batch(groups, objective, Scores(old_logprobs=None, ref_logprobs=None))
for _ in range(2 if dtype == torch.bfloat16 else 1):  # In float32, on processors without bfloat16, each takes a minute.
    assert learner.update(batch).num_updates == 1
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
facts = {"dtype": str(dtype).removeprefix("torch.")}
print(json.dumps(facts | {"before_gb": before * 1024 / 1e9, "peak_gb": peak * 1024 / 1e9}))
"""


def test_updates_of_workload_w_stay_within_their_bound():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", WORKER], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["peak_gb"] < MOST_GB[found["dtype"]], found
