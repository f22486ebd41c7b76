"""Every error that a user can meet, in one tree.

    GraphtraceError
    ├── OptionError             an option or argument that means nothing
    │   └── SizeError           a trace size that cannot be read or is beyond what is stored
    ├── InputError              the text or the corpus
    │   ├── EmptyTextError
    │   ├── TextTooLongError
    │   └── CorpusError         a file, a line or a column of a corpus
    ├── ModelError              the model
    │   ├── ModelNotFoundError
    │   ├── UnsupportedFamilyError
    │   ├── NonFiniteError      NaN or infinity in the weights or activations
    │   └── ModelMemoryError    a device has too little memory for an input
    ├── ArchiveError            the Parquet archive
    │   └── ArchiveDamagedError
    ├── TraceNotFoundError      no trace, or more than one, is meant by a name
    ├── StoreError              the graph store
    │   ├── StoreLockedError    another process holds it
    │   └── StoreDamagedError
    ├── QueryError              Cypher and the catalogue
    │   ├── QueryNotFoundError
    │   ├── QueryParameterError
    │   └── ReadOnlyError       a query that would write
    ├── MissingPackageError     an optional part of the installation is absent
    └── StorageFullError        the disk

A message names the thing, shows the value, and says what to do. The command line prints it
in one line and exits with `exit_code`; `--debug` shows the traceback.
"""


class GraphtraceError(Exception):
    """Base of every error that graphtrace raises on purpose."""

    exit_code = 1


class OptionError(GraphtraceError):
    """An option or argument whose value means nothing."""

    exit_code = 2


class SizeError(OptionError):
    """A trace size that cannot be read, or that keeps more edges than are stored."""


class InputError(GraphtraceError):
    """The text or corpus cannot be traced as it is."""


class EmptyTextError(InputError):
    """A text that yields no token."""


class TextTooLongError(InputError):
    """A text with more tokens than the model's context holds."""


class CorpusError(InputError):
    """A corpus file, line or column that cannot be read."""


class ModelError(GraphtraceError):
    """The model cannot be loaded or traced."""


class ModelNotFoundError(ModelError):
    """No model at the given path or hub id."""


class UnsupportedFamilyError(ModelError):
    """A model class that graphtrace does not know how to trace."""


class NonFiniteError(ModelError):
    """NaN or infinity in a model's weights or activations."""


class ModelMemoryError(ModelError):
    """A device has too little memory for an input, even one evaluation at a time."""


class ArchiveError(GraphtraceError):
    """The archive cannot be read or written."""


class ArchiveDamagedError(ArchiveError):
    """A file of the archive is damaged or missing; the message names it."""


class TraceNotFoundError(GraphtraceError):
    """No trace, or more than one, is meant by the given name."""


class StoreError(GraphtraceError):
    """The graph store cannot be opened, read or written."""


class StoreLockedError(StoreError):
    """The store is in use by another process."""


class StoreDamagedError(StoreError):
    """The store does not hold what its archive holds; it can be rebuilt."""


class QueryError(GraphtraceError):
    """A Cypher query that the store refuses."""


class QueryNotFoundError(QueryError):
    """No catalogue query of that name."""


class QueryParameterError(QueryError):
    """A query parameter that is missing, unknown or of the wrong type."""


class ReadOnlyError(QueryError):
    """A query that would change the store."""


class MissingPackageError(GraphtraceError):
    """An optional part of the installation is absent."""


class StorageFullError(GraphtraceError):
    """The disk has no room left; everything committed before is kept."""
