"""`python -m mophpc`."""

from mophpc.cli import main

main()
