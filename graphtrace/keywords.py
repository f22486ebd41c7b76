"""Keywords that several functions share, written down once as a TypedDict with its defaults.

A function takes them as `**keywords: Unpack[...]`; what is here makes help() and notebooks list
them, and names the closest one where a keyword is misspelt.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from graphtrace.errors import OptionError

Function = TypeVar("Function", bound=Callable[..., Any])


def shows_keywords(keywords: type, defaults: Mapping[str, Any]) -> Callable[[Function], Function]:
    """Show a TypedDict's keys and their defaults in the signature and docstring of a function that
    takes them as `**keywords`. defaults: every key, in the order in which help shows them."""

    def show(function: Function) -> Function:
        signature, types = inspect.signature(function), get_type_hints(keywords)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name]
            )
            for name, default in defaults.items()
            if name not in signature.parameters
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *shared])
        shown = inspect.getdoc(keywords) or ""
        function.__doc__ = f"{inspect.getdoc(function)}\n\n{keywords.__name__}: {shown}"
        return function

    return show


def check_keywords(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise OptionError for a keyword that there is not, naming the closest."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise OptionError(f"there is no keyword {name!r}; {hint}")
