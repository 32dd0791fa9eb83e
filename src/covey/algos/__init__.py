"""Pure functions on tensors: advantages, ratios, surrogates, divergences, aggregation, and the table that composes them."""
