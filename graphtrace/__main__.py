"""`python -m graphtrace`."""

from graphtrace.cli.app import main

main()
