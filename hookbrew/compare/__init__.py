"""Teacher and students beside each other: the table that says what was won and what it cost."""

from hookbrew.compare.entry import Entry
from hookbrew.compare.measure import How, compare, compared
from hookbrew.compare.result import Comparison, Measured

__all__ = ["Comparison", "Entry", "How", "Measured", "compare", "compared"]
