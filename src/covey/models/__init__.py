"""Models: the bundled ones, the policy that is trained, and the scoring of completions under it."""
