"""The planted bugs, by subject."""
