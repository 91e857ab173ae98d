"""A run folder as one page: what was asked for, how it went, and what came out. Importing it imports no torch.

Nothing of the training is needed but the files that it left; a run that is under way can be looked at as well.
"""

from __future__ import annotations

from hookbrew.report.files import beside, put, refuse
from hookbrew.report.page import page
from hookbrew.report.read import Run, read

__all__ = ["Run", "beside", "page", "put", "read", "refuse"]
