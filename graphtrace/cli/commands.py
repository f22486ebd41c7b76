"""Imports every command module, which registers its commands on the application.

Command modules import what is slow (torch, pandas, pyarrow, ladybug, igraph) inside the command,
so that `graphtrace --help` stays quick.
"""

import graphtrace.cli.extract  # noqa: F401
