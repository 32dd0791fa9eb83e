"""`python -m covey`, which is what torchrun starts."""

from covey.cli import main

main()
