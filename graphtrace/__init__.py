"""graphtrace: what did this model actually compute for this input?

Turn a causal language model's forward pass into a graph, store it, query it, analyse it. Names are
imported when they are first used, so that analysing needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Curve": "graphtrace.traces",
    "GraphtraceError": "graphtrace.errors",
    "Input": "graphtrace.traces",
    "SubGraph": "graphtrace.subgraph",
    "Trace": "graphtrace.traces",
    "agreement": "graphtrace.analysis.agreement",
    "baselines": "graphtrace.analysis.baselines",
    "centrality": "graphtrace.analysis.centrality",
    "circuit": "graphtrace.analysis.circuit",
    "compare": "graphtrace.analysis.compare",
    "contrast": "graphtrace.analysis.contrast",
    "controls": "graphtrace.analysis.controls",
    "core_stability": "graphtrace.analysis.core",
    "correlates": "graphtrace.analysis.correlates",
    "density": "graphtrace.analysis.density",
    "evaluate": "graphtrace.set_evaluation",
    "export_gephi": "graphtrace.export",
    "export_graphml": "graphtrace.export",
    "extract": "graphtrace.study",
    "forecast": "graphtrace.forecasting",
    "ingest": "graphtrace.ingestion",
    "load_model": "graphtrace.loading",
    "matched_continuations": "graphtrace.designs",
    "modularity": "graphtrace.analysis.modularity",
    "nucleus": "graphtrace.analysis.nucleus",
    "open_archive": "graphtrace.archive",
    "open_store": "graphtrace.stores.base",
    "parse_size": "graphtrace.sizes",
    "read_corpus": "graphtrace.corpus",
    "report": "graphtrace.study_report",
    "reconstruction": "graphtrace.analysis.reconstruction",
    "save_analysis": "graphtrace.stores.saved_runs",
    "structure": "graphtrace.analysis.structure",
    "trace": "graphtrace.tracing",
    "trace_many": "graphtrace.tracing",
    "write_traces": "graphtrace.archive_write",
}

__all__ = [
    "Curve",
    "GraphtraceError",
    "Input",
    "SubGraph",
    "Trace",
    "agreement",
    "baselines",
    "centrality",
    "circuit",
    "compare",
    "contrast",
    "controls",
    "core_stability",
    "correlates",
    "density",
    "evaluate",
    "export_gephi",
    "export_graphml",
    "extract",
    "forecast",
    "ingest",
    "load_model",
    "matched_continuations",
    "modularity",
    "nucleus",
    "open_archive",
    "open_store",
    "parse_size",
    "read_corpus",
    "reconstruction",
    "report",
    "save_analysis",
    "structure",
    "trace",
    "trace_many",
    "write_traces",
]

if TYPE_CHECKING:
    from graphtrace.analysis.agreement import agreement
    from graphtrace.analysis.baselines import baselines
    from graphtrace.analysis.centrality import centrality
    from graphtrace.analysis.circuit import circuit
    from graphtrace.analysis.compare import compare
    from graphtrace.analysis.contrast import contrast
    from graphtrace.analysis.controls import controls
    from graphtrace.analysis.core import core_stability
    from graphtrace.analysis.correlates import correlates
    from graphtrace.analysis.density import density
    from graphtrace.analysis.modularity import modularity
    from graphtrace.analysis.nucleus import nucleus
    from graphtrace.analysis.reconstruction import reconstruction
    from graphtrace.analysis.structure import structure
    from graphtrace.archive import open_archive
    from graphtrace.archive_write import write_traces
    from graphtrace.corpus import read_corpus
    from graphtrace.designs import matched_continuations
    from graphtrace.errors import GraphtraceError
    from graphtrace.export import export_gephi, export_graphml
    from graphtrace.forecasting import forecast
    from graphtrace.ingestion import ingest
    from graphtrace.loading import load_model
    from graphtrace.set_evaluation import evaluate
    from graphtrace.sizes import parse_size
    from graphtrace.stores.base import open_store
    from graphtrace.stores.saved_runs import save_analysis
    from graphtrace.study import extract
    from graphtrace.study_report import report
    from graphtrace.subgraph import SubGraph
    from graphtrace.traces import Curve, Input, Trace
    from graphtrace.tracing import trace, trace_many


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphtrace' has no attribute {name!r}")
    try:
        module = import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "transformers"):
            raise
        from graphtrace.errors import MissingPackageError

        raise MissingPackageError(
            f"gt.{name} runs a model and needs {error.name}, which is not installed; "
            'pip install "graphtrace-llm[models]"'
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
