"""The edits of the standard pack: what `[[surgery]]` can do to a model when it is built."""

from hookbrew_plugins.edits.structure import Insert, Remove, Swap, Wrap
from hookbrew_plugins.edits.weights import Freeze, Reset, Unfreeze

__all__ = ["Freeze", "Insert", "Remove", "Reset", "Swap", "Unfreeze", "Wrap"]
