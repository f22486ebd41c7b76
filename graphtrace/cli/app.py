"""The `graphtrace` command: one Typer application, the entry point and its error boundary."""

import sys
import warnings
from typing import Annotated

import typer

app = typer.Typer(
    name="graphtrace",
    help="Turn a language model's forward pass into a graph, store it and query it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_state = {"debug": False}
_INTERRUPTED = 130


def _print_version(asked: bool) -> None:
    if asked:
        import graphtrace

        print(graphtrace.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version),
    ] = False,
) -> None:
    _state["debug"] = debug


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"graphtrace: {' '.join(str(message).split())}", file=sys.stderr)


def _say_interrupted() -> None:
    print("graphtrace: interrupted; what was committed is kept", file=sys.stderr)


def main() -> None:
    """Run the command line. Warnings and GraphtraceErrors are printed in one line each; exit code
    as the error says."""
    import graphtrace.cli.commands  # noqa: F401  registers every command
    from graphtrace.errors import GraphtraceError
    from graphtrace.files import DISK_FULL

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app()
    except GraphtraceError as error:
        if _state["debug"]:
            raise
        print(f"graphtrace: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        # The last net: a disk that fills under a library of ours.
        if _state["debug"] or error.errno not in DISK_FULL:
            raise
        print(f"graphtrace: no room left on the disk ({error.filename or error})", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(_INTERRUPTED)
    except SystemExit as done:
        # Typer turns a KeyboardInterrupt within a command into an exit without a word.
        if done.code == _INTERRUPTED:
            _say_interrupted()
        raise
