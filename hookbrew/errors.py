"""The errors that hookbrew raises on purpose.

HookbrewError                 anything a user can mend; the command line prints one line and no traceback
├── ConfigError               one or several mistakes in a configuration, each with its place         exit 2
├── PluginError               a component or plugin that is missing, broken or blocked                 exit 2
├── FactoryError              a `factory = "module:name"` that cannot be imported or called            exit 2
├── SelectorError             a selector that is malformed or names nothing in this model              exit 2
│   ├── NotCalledError        the named module did not run in this forward pass
│   ├── AmbiguousCallError    the named module ran several times; a call index is missing
│   └── MutatedError          the model wrote into the tensor after a tap had seen it
├── SurgeryError              an edit of a model, or a student out of a teacher, that cannot be made   exit 2
├── ObjectiveError            shapes, masks or labels that do not fit a loss; a term without gradient  exit 2
├── DataError                 a batch that cannot be made, or lacks a key that somebody needs          exit 2
├── FolderError               a run folder that exists, or cannot be written                           exit 2
│   ├── ResumeError           a run that cannot go on as it was asked to                               exit 2
│   └── CheckpointError       checkpoints that cannot be written, or of which none is whole            exit 74
├── CacheError                a teacher cache that was made by another teacher, is damaged or full     exit 2
├── CallbackError             a callback whose methods are not events                                  exit 2
├── ExportError               a student that cannot be exported as asked                               exit 2
│   └── DifferenceError       an export that does not compute what the run's student does              exit 77
├── PreemptedError            a run that a signal ended after a checkpoint: resume it                  exit 75
├── PeerError                 what stopped another process of the same training; that one tells it     its own
└── NonFiniteError            a loss or a gradient that is not finite                                  exit 76

Exit codes: 2 is wrong input, 74 a disk that takes no checkpoint, 75 a run that waits to be resumed, 76 one that was
stopped by non-finite numbers, 77 an export that computes something else; 1 is left to bugs and to the code of users and
plugins, 130 to a second Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen
class Place:
    """Where in a file something stands; lines and columns count from 1."""

    file: str
    line: int
    column: int
    text: str = ""
    """The source line, for the caret."""
    width: int = 1
    """How many characters the caret underlines."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def caret(self) -> str:
        """The source line with the place underlined, in the manner of rustc and ruff."""
        gutter = " " * len(str(self.line))
        before = "".join("\t" if sign == "\t" else " " for sign in self.text[: self.column - 1])
        marks = before + "^" * max(1, min(self.width, len(self.text) - self.column + 1))
        return f"{gutter} |\n{self.line} | {self.text}\n{gutter} | {marks}"


@attrs.frozen
class Problem:
    """One mistake: which key, what is wrong, and where it was written."""

    path: str
    """The key, as a user would write it: `losses[1].temperature`; empty for the whole file."""
    message: str
    place: Place | str | None = None
    """A place in a file, or a word for where else it came from: `-s losses[1].temperature=hot`."""

    def __str__(self) -> str:
        line = ": ".join(part for part in (str(self.place or ""), self.path, self.message) if part)
        return f"{line}\n{self.place.caret()}" if isinstance(self.place, Place) and self.place.text else line


class HookbrewError(Exception):
    """Anything a user can mend: printed as `error: ...`, without a traceback."""

    exit_code = 2
    word = "error"
    """What a message begins with."""


class ConfigError(HookbrewError):
    """All the mistakes found in one configuration."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class PluginError(HookbrewError):
    """A component or plugin that is missing, broken or blocked."""


class FactoryError(HookbrewError):
    """A `factory = "module:name"` that cannot be imported or called."""


class SelectorError(HookbrewError):
    """A selector that is malformed or names nothing in this model."""


class NotCalledError(SelectorError):
    """The named module did not run in this forward pass."""


class AmbiguousCallError(SelectorError):
    """The named module ran several times; a call index is missing."""


class MutatedError(SelectorError):
    """The model wrote into the tensor after a tap had seen it."""


class SurgeryError(HookbrewError):
    """An edit of a model that cannot be made or undone, or a student that cannot be made out of a teacher."""


class ObjectiveError(HookbrewError):
    """Shapes, masks or labels that do not fit a loss, or a term that reaches no parameter."""


class DataError(HookbrewError):
    """A batch that cannot be made, or that lacks a key somebody needs."""


class FolderError(HookbrewError):
    """A run folder that already exists, or cannot be written."""


class ResumeError(FolderError):
    """A run that cannot go on as it was asked to: no checkpoint, or one that does not match."""


class CheckpointError(FolderError):
    """Checkpoints that cannot be written, or of which none is whole."""

    exit_code = 74


class CacheError(HookbrewError):
    """Stored outputs of a teacher that are of another one, are damaged, or cannot be written or keyed."""


class PreemptedError(HookbrewError):
    """A run that a signal ended between two steps, after a checkpoint; it can be resumed."""

    exit_code = 75
    word = "stopped"


class PeerError(HookbrewError):
    """What stopped another process of the same training, which tells it; here only the exit code is the same."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class CallbackError(HookbrewError):
    """A callback whose methods are not events."""


class ExportError(HookbrewError):
    """A student that cannot be exported as asked."""


class DifferenceError(ExportError):
    """An export that was reloaded, and does not compute what the run's student computes; nothing of it is left."""

    exit_code = 77


class NonFiniteError(HookbrewError):
    """A loss or a gradient that is not finite; the student keeps the weights of the step before."""

    exit_code = 76
