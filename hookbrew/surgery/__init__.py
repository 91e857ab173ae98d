"""Changes of models by module path: a student made out of its teacher, and edits that can be undone."""

from hookbrew.surgery.derive import student

__all__ = ["student"]
