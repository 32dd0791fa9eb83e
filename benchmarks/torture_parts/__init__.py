"""What `benchmarks/torture.py` measures itself."""
