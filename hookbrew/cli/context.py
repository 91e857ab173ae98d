"""What the options before the command say; every command is given it."""

from __future__ import annotations

import attrs

from hookbrew.plugin import Catalogue, catalogue


@attrs.define
class Context:
    """The state of one command line."""

    no_plugins: bool = False
    traceback: bool = False
    _catalogue: Catalogue | None = None

    def catalogue(self) -> Catalogue:
        """Every name that can be used; the plugins are imported at the first call."""
        if self._catalogue is None:
            self._catalogue = catalogue(allow=() if self.no_plugins else None)
        return self._catalogue
