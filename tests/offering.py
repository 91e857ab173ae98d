"""A loss of somebody else's, as a plugin brings it."""

import hookbrew_plugins
from hookbrew.plugin import catalogue, hookimpl, options


def offering(make, **more):
    """A catalogue with the pack and one loss, `mine`; make: its function, given `scale`; more: class variables."""

    @options
    class Mine:
        scale: float = 1.0

        def build(self):
            return make(self.scale)

    for name, value in more.items():
        setattr(Mine, name, value)

    class Plugin:
        @hookimpl
        def hookbrew_register_losses(self, register):
            register("mine", Mine)

    return catalogue(discover=False, plugins=[Plugin(), hookbrew_plugins])
