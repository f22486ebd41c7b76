"""The entry point: what ends a command is said in one line, with its own exit code."""

import errno

import pytest
from command_line import run_text

from graphtrace.errors import StoreError

ENDS = [
    (KeyboardInterrupt(), 130, "graphtrace: interrupted; what was committed is kept"),
    (StoreError("two\nlines"), StoreError.exit_code, "graphtrace: two lines"),
    (
        OSError(errno.ENOSPC, "No space left on device", "/some/file"),
        1,
        "graphtrace: no room left on the disk (/some/file)",
    ),
]


@pytest.fixture
def end(monkeypatch):
    """Make `graphtrace store info` end with an error."""

    def end(error):
        def opened(*_, **__):
            raise error

        monkeypatch.setattr("graphtrace.stores.base.open_store", opened)

    return end


@pytest.mark.parametrize(("error", "code", "line"), ENDS)
def test_one_line(end, error, code, line):
    end(error)
    assert run_text("store", "info") == (code, "", line + "\n")


@pytest.mark.parametrize("error", [StoreError("x"), OSError(errno.ENOSPC, "x")])
def test_debug_shows_the_traceback(end, error):
    end(error)
    with pytest.raises(type(error)):
        run_text("--debug", "store", "info")


def test_other_errors_are_not_hidden(end):
    end(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        run_text("store", "info")
