"""Kits for plugin authors: what holds for every component of a kind, checked on yours.

    check_loss(KDCE(temperature=2.0))                # AssertionError names the class and all properties that fail

    @check_loss.each(KDCE(), KDMSE(temperature=8.0)) # or: one pytest test for each property
    def test_my_loss(check):
        check()

A component is exempt from a property by its name and with a reason, in a class variable of its options
class or in the call:

    exempt: ClassVar[dict[str, str]] = {"zero_at_agreement": "a cross-entropy keeps the teacher's entropy"}
    check_loss(KDCE(t_squared=False), exempt={"temperature_scale": "parity with TextBrewer"})

Only `each` needs pytest.
"""

from hookbrew.testing.augments import check_augment
from hookbrew.testing.callbacks import check_callback
from hookbrew.testing.edits import check_edit
from hookbrew.testing.kit import Check, Kit, Property
from hookbrew.testing.losses import check_loss
from hookbrew.testing.projections import check_projection
from hookbrew.testing.schedules import check_schedule

__all__ = [
    "Check",
    "Kit",
    "Property",
    "check_augment",
    "check_callback",
    "check_edit",
    "check_loss",
    "check_projection",
    "check_schedule",
]
