"""`hookbrew plugins list --events`: when events come, and what each callback does at them."""

import json
from typing import ClassVar

import attrs
import pytest
from click.testing import CliRunner

import hookbrew_plugins
from hookbrew.cli import main
from hookbrew.cli.events import described, tables
from hookbrew.loop import EVENTS
from hookbrew.plugin import catalogue, hookimpl, options, when


class Watch:
    priority = 7

    @when(every=100)
    @when(main=True)
    def step_end(self, state): ...

    def close(self, state): ...


class Quiet:
    priority = 7
    optional = True

    def log(self, state): ...


@attrs.define(eq=False)
class Moved:
    priority: int = 0
    optional: ClassVar[bool] = True

    def log(self, state): ...


@options
class Named:
    """Says what it builds."""

    needed: int

    def build(self) -> Watch | Quiet:
        """Never called here."""
        raise AssertionError


@options
class Given:
    """Its priority is an option."""

    priority: int = 3

    def build(self) -> Moved:
        """A callback."""
        return Moved(self.priority)


@options
class Silent:
    """Does not say what it builds, and can be asked."""

    def build(self):
        """A callback."""
        return Moved(5)


@options
class Hidden:
    """Does not say what it builds, and cannot be asked."""

    needed: int

    def build(self):
        """A callback."""
        return Moved(5)


class Plugin:
    @staticmethod
    @hookimpl
    def hookbrew_register_callbacks(register):
        for kind in (Named, Given, Silent, Hidden):
            register(kind.__name__.lower(), kind)
        register("lost", "hookbrew_no_such_module:Lost")


@pytest.fixture(scope="module")
def facts():
    return described(catalogue(discover=False, plugins=[Plugin()]))


def test_callbacks(facts):
    found = {about.pop("name"): about for about in map(dict, facts["callbacks"])}
    assert {about.pop("plugin") for about in found.values()} == {"Plugin"}
    lost = found.pop("lost")["why"]
    assert found == {
        "given": {"priority": None, "optional": True, "events": {"log": []}},
        "hidden": {"why": "its options are required, and build() does not say which class it returns"},
        "named": {
            "priority": 7,
            "optional": None,
            "events": {"step_end": [{"main": True}, {"every": 100}], "log": [], "close": []},
        },
        "silent": {"priority": 5, "optional": True, "events": {"log": []}},
    }
    assert "hookbrew_no_such_module" in lost


def test_table(facts):
    events, callbacks = tables(facts).split("\n\n")
    assert events.splitlines()[1] == "run_start          Everything is attached and checked; no step was made"
    assert callbacks.splitlines()[:3] == [
        "CALLBACK  PLUGIN   PRIORITY  OPTIONAL   EVENT     ONLY",
        "given     Plugin  an option  yes        log",
        "hidden    Plugin          ?  ?          ?         its options are required, "
        "and build() does not say which class it returns",
    ]
    assert callbacks.splitlines()[4:7] == [
        "named     Plugin          7  an option  step_end  main=True, every=100",
        "                                        log",
        "                                        close",
    ]


def test_the_order_of_the_pack():
    known = described(catalogue(discover=False, plugins=[hookbrew_plugins]))["callbacks"]
    order = sorted((about["priority"], about["name"]) for about in known if about["priority"])
    assert order == [
        *((-100, "evaluate"), (50, "metrics"), (80, "maps"), (80, "tensorboard")),
        *((90, "progress"), (100, "checkpoint")),
    ]
    assert not [about for about in known if "why" in about]


def test_what_of_the_pack_only_watches():
    known = described(catalogue(discover=False, plugins=[hookbrew_plugins]))["callbacks"]
    assert [about["name"] for about in known if about["optional"]] == ["maps", "progress", "tensorboard"]


def test_json():
    done = CliRunner().invoke(main, ["plugins", "list", "--events", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert [event["name"] for event in facts["events"]] == list(EVENTS)
    assert all(event["comes"] for event in facts["events"])
    assert "checkpoint" in [about["name"] for about in facts["callbacks"]]
