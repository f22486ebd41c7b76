"""Imports every command module, which registers its commands on the application, in the order in
which `graphtrace --help` lists them.

Command modules import what is slow (torch, pandas, pyarrow, ladybug, igraph) inside the command,
so that `graphtrace --help` stays quick.
"""

import graphtrace.cli.demo
import graphtrace.cli.extract
import graphtrace.cli.evaluate
import graphtrace.cli.means
import graphtrace.cli.ingest
import graphtrace.cli.traces
import graphtrace.cli.query
import graphtrace.cli.analyze
import graphtrace.cli.analyze_curves
import graphtrace.cli.analyze_correlates
import graphtrace.cli.contrast
import graphtrace.cli.compare
import graphtrace.cli.report
import graphtrace.cli.design
import graphtrace.cli.export
import graphtrace.cli.archive
import graphtrace.cli.store
import graphtrace.cli.bench
from graphtrace.cli.app import app

__all__ = ["app"]
