"""What a name stands for is checked when it is loaded."""

import attrs
import pytest

from hookbrew.errors import PluginError
from hookbrew.plugin import catalogue, hookimpl, options


def plugin(kind, target):
    class Given:
        pass

    def hook(register):
        register("mine", target)

    given = Given()
    given.hook = hookimpl(hook, specname=f"hookbrew_register_{kind}")
    return catalogue(discover=False, plugins=[given])


def refusal(kind, target):
    with pytest.raises(PluginError) as caught:
        plugin(kind, target).load(kind, "mine")
    return str(caught.value)


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_string_is_imported_when_loaded(module):
    module(
        "hb_lazy_component",
        "import attrs\n@attrs.frozen\nclass Outer:\n    x: int = 1\n    @attrs.frozen\n    class Inner:\n"
        "        y: int = 2\n        def build(self): ...\n",
    )
    known = plugin("losses", "hb_lazy_component:Outer.Inner")
    import sys

    assert known.names("losses") == ["mine"]
    assert "hb_lazy_component" not in sys.modules
    assert known.load("losses", "mine").__qualname__ == "Outer.Inner"


def test_a_module_that_fails(module):
    module("hb_failing_component", "import json\nimport not_installed_thing\n")
    assert refusal("losses", "hb_failing_component:X") == (
        "loss mine of plugin Given: hb_failing_component:X cannot be imported: "
        "ModuleNotFoundError: No module named 'not_installed_thing' (hb_failing_component.py:2)"
    )


def test_a_module_that_is_not_there():
    assert refusal("augments", "hb_no_such:X") == (
        "augment mine of plugin Given: hb_no_such:X cannot be imported: "
        "ModuleNotFoundError: No module named 'hb_no_such'"
    )


def test_a_misspelt_class(module):
    module("hb_spelling_component", "import attrs\nfrom json import JSONDecoder\nclass DKD: ...\n")
    assert refusal("losses", "hb_spelling_component:DKDD") == (
        "loss mine of plugin Given: hb_spelling_component:DKDD does not exist; did you mean 'DKD'?"
    )


def test_no_options_class():
    assert refusal("losses", "json:dumps") == (
        "loss mine of plugin Given: json:dumps is no options class; decorate a class with @options"
    )
    assert refusal("losses", "json:JSONDecoder").endswith("is no options class; decorate a class with @options")


def test_no_build():
    @options
    class Loss:
        x: int = 1

    assert refusal("losses", Loss).endswith("Loss has no method build()")


def test_options_whose_types_cannot_be_read():
    cls = attrs.make_class("Loss", {"x": attrs.field(default=1, type="Nowhere")})
    cls.build = lambda self: None
    assert refusal("losses", cls).endswith(
        "Loss has options that cannot be read: NameError: name 'Nowhere' is not defined"
    )


@pytest.mark.parametrize(
    "name", ["base", "labels", "mask", "name", "projection", "student", "teacher", "type", "weight"]
)
def test_an_option_that_is_a_key_of_the_table_already(name):
    cls = attrs.make_class("Loss", {name: attrs.field(default=1)}, frozen=True)
    cls.build = lambda self: None
    assert refusal("losses", cls).endswith(
        f"Loss has an option {name!r}, which every such table has already; rename it"
    )


def test_an_option_name_is_free_elsewhere():
    @options
    class Augment:
        mask: str = "attention_mask"

        def build(self):
            return None

    assert plugin("augments", Augment).load("augments", "mine") is Augment


def test_placement_is_what_the_configuration_says():
    """The two tables of keys stand in parts that must not import each other."""
    from hookbrew.config.tree import PLACEMENT as READ
    from hookbrew.plugin.component import PLACEMENT as RESERVED

    assert RESERVED["losses"] == READ | {"type", "base"}
