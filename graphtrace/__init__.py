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
    "Trace": "graphtrace.traces",
    "load_model": "graphtrace.models",
    "trace": "graphtrace.tracing",
    "trace_many": "graphtrace.tracing",
}

__all__ = [
    "Curve",
    "GraphtraceError",
    "Input",
    "Trace",
    "load_model",
    "trace",
    "trace_many",
]

if TYPE_CHECKING:
    from graphtrace.errors import GraphtraceError
    from graphtrace.models import load_model
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
