"""The package is installed and listed, and each component has the properties of its kind."""

from hookbrew_gap.augment import Reverse
from hookbrew_gap.callback import Patience
from hookbrew_gap.loss import Gap
from hookbrew_gap.schedule import HalfSine

from hookbrew.plugin import catalogue
from hookbrew.testing import check_augment, check_callback, check_loss, check_schedule


def test_installed_and_listed():
    known = catalogue()
    assert "gap" in known.names("losses")
    assert known.load("callbacks", "patience") is Patience


def test_properties():
    check_loss(Gap(scale=2.0))
    check_schedule(HalfSine())
    check_augment(Reverse(probability=0.5))
    check_callback(Patience())
