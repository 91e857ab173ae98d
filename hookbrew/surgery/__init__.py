"""Changes of models by module path: edits that can be undone, and a student made out of its teacher."""

from hookbrew.surgery.derive import student
from hookbrew.surgery.surgery import Surgery

__all__ = ["Surgery", "student"]
