"""What a plugin needs, and the catalogue of what all plugins offer. Importing it imports no torch."""

from __future__ import annotations

from hookbrew.options import KINDS, at_least, choice, fraction, options, positive
from hookbrew.plugin.blame import blame
from hookbrew.plugin.catalogue import Catalogue, catalogue
from hookbrew.plugin.component import Entry
from hookbrew.plugin.discovery import Blocked, Failed, Plugin
from hookbrew.plugin.specs import Register, hookimpl
from hookbrew.plugin.when import When, filters, when

__all__ = [
    "KINDS",
    "Blocked",
    "Catalogue",
    "Entry",
    "Failed",
    "Plugin",
    "Register",
    "When",
    "at_least",
    "blame",
    "catalogue",
    "choice",
    "filters",
    "fraction",
    "hookimpl",
    "options",
    "positive",
    "when",
]
