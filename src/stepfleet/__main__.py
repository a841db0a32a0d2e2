"""`python -m stepfleet` is `stepfleet`."""

from stepfleet.cli.operator import main

main()
