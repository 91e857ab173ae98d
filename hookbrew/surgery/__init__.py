"""A model is changed by module path, and changed back: edits with a journal."""

from hookbrew.surgery.surgery import Surgery

__all__ = ["Surgery"]
