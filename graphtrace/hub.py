"""What went wrong on the model hub, in one line that says what to do."""

import difflib
from collections.abc import Iterator

from graphtrace.errors import ModelNotFoundError


def hub_error(name: str, revision: str | None, error: BaseException) -> ModelNotFoundError:
    """The error to raise where the files of a hub model cannot be had.

    name: hub id as the user wrote it; revision: as asked for; error: what transformers raised,
    with its causes.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{name}"
    for cause in _causes(error):
        if isinstance(cause, RevisionNotFoundError):
            near = difflib.get_close_matches(str(revision), revisions(name), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return ModelNotFoundError(
                f"model {name!r} has no revision {revision!r}{hint} (its branches and tags are "
                f"listed at {page}/tree/main)"
            )
        if isinstance(cause, GatedRepoError):
            return ModelNotFoundError(
                f"model {name!r} is gated: ask for access at {page}, then log in with `hf auth "
                "login` or set HF_TOKEN"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return ModelNotFoundError(
                f"model {name!r} is neither a local folder nor a model on the hub that you can "
                "see; check the spelling (org/name), or log in with `hf auth login` if it is "
                "private"
            )
        if isinstance(cause, HFValidationError):
            return ModelNotFoundError(
                f"model {name!r} is neither a local folder nor of the form org/name, as hub ids are"
            )
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            at = f" at revision {revision!r}" if revision else ""
            return ModelNotFoundError(
                f"model {name!r}{at} is neither a local folder nor in the hub's cache, and the hub "
                f"({constants.ENDPOINT}) cannot be reached"
            )
    return ModelNotFoundError(f"model {name!r} cannot be read from the hub: {error}")


def revisions(name: str) -> list[str]:
    """Branches and tags of a hub model; none where they cannot be had."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(name)
    except (OSError, ValueError):
        return []
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
