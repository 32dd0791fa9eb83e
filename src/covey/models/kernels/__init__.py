"""C++ kernels for processors with AVX512-BF16, compiled on first use. Everything works without them, more slowly."""
