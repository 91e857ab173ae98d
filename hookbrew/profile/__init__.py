"""Where each millisecond of a step goes: `hookbrew run --profile`."""

from hookbrew.profile.profile import Around, Profiling
from hookbrew.profile.result import Result, Row

__all__ = ["Around", "Profiling", "Result", "Row"]
