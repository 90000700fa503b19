"""`python -m rise`."""

from rise.cli import main

main()
