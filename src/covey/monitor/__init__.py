"""What a run writes down and where: the run directory and the sinks that fill it. No torch here."""
