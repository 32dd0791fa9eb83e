"""Over-optimization: detectors over the recorded numbers of a run, and what is done when one of them fires. Free of torch."""
