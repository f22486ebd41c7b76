"""Imports every command module, which registers its commands on the application, in the order in
which `graphtrace --help` lists them.

Command modules import what is slow (torch, pandas, pyarrow, ladybug, igraph) inside the command,
so that `graphtrace --help` stays quick.
"""

# isort: off
import graphtrace.cli.demo  # noqa: F401
import graphtrace.cli.extract  # noqa: F401
