"""The error tree. Every error says what happened, where, and what to do next.

::

    DrupeError                  exit code 2, always
    ├── UsageError              the command line asks for something impossible
    ├── LocatorError            a model, file or package cannot be found
    ├── SourceError             bytes could not be had (network, permissions, disk)
    │   └── OfflineError        --offline forbids the connection that would be needed
    ├── FormatError             a file is not what its name or header says
    │   └── LimitError          ... because a value exceeds a stated limit
    ├── UnsafePathError         a path inside an artefact points outside of it
    └── UnsupportedError        well-formed, known, and not read by this version
"""

from __future__ import annotations


class DrupeError(Exception):
    """Base of all errors that a user can act on.

    ``what`` happened, ``where`` (file, tensor, URL), and the ``hint`` what to do next.
    """

    default_hint = ""

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.hint = hint or self.default_hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(DrupeError):
    """The command line asks for something impossible."""

    default_hint = "see drupe --help"


class LocatorError(DrupeError):
    """A model, file or package cannot be found."""

    default_hint = "check the path or the locator; drupe --help lists the forms"


class SourceError(DrupeError):
    """Bytes could not be had: network, permissions, disk."""

    default_hint = "check the connection and the permissions, then try again"


class OfflineError(SourceError):
    """--offline forbids the connection that would be needed."""

    default_hint = "run once without --offline, or give a local path"


class FormatError(DrupeError):
    """A file is not what its name or header says."""

    default_hint = "the file is damaged or was made to mislead; fetch it again from its origin"


class LimitError(FormatError):
    """A value of a file exceeds a limit; names both."""

    def __init__(self, what: str, *, limit: int, actual: int | str, where: str = "", hint: str = "") -> None:
        self.limit = limit
        self.actual = actual
        super().__init__(f"{what}: {actual} exceeds the limit of {limit}", where=where, hint=hint)


class UnsafePathError(DrupeError):
    """A path inside an artefact points outside of it."""

    default_hint = "the file was made to read outside of its folder; do not load it anywhere"


class UnsupportedError(DrupeError):
    """Well-formed and known, and not read by this version."""

    default_hint = "convert it to safetensors with its own library, then compare again"
