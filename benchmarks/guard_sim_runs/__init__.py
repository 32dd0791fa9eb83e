"""The parts of guard_sim.py: runs made of random numbers, and the detectors over them."""
