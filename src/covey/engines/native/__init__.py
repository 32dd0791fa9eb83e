"""Covey's own engine: a small decoder for Llama-like models, made to sample many completions at once on a CPU.

families.py   which Hugging Face models it can serve, and what their decoders look like
weights.py    the served copy of the weights, packed for matrix products, and the proof that it is current
attention.py  heads, rotary positions, attention of prompts, and the plain cache of keys and values
decoder.py    one forward pass over the layers, and the prefill of prompts
ops.py        what happens between the matrix products, in torch
kernels.*     the same in C++, compiled on first use; fused.py has the cache that goes with it
schedule.py   which completions are decoded together
engine.py     the engine
"""
