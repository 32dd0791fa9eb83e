"""Algorithms compared at an equal budget of generated tokens: `covey compare`, from a plan to what its report is made of."""
