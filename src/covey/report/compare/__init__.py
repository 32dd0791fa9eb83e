"""The report of a comparison: what it shows and says, and as what."""
