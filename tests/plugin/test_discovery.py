"""One broken plugin breaks nothing else, and each mistake is told with its owner and place."""

import sys

import pluggy
import pytest

from hookbrew.errors import PluginError
from hookbrew.plugin import catalogue, hookimpl
from hookbrew.plugin.discovery import installed

HEAD = "from hookbrew.plugin import hookimpl\n"
HOOK = "def hookbrew_register_losses(register):\n    register('{}', 'json:JSONDecoder')\n"

FAULTS = {
    "wrong argument": (
        HEAD + "@hookimpl\ndef hookbrew_register_losses(regster):\n    pass\n",
        "PluginValidationError: Plugin 'bad' for hook 'hookbrew_register_losses' "
        "hookimpl definition: hookbrew_register_losses(regster) "
        "Argument(s) {'regster'} are declared in the hookimpl but can not be found in the hookspec",
        "",
    ),
    "import failure": (
        "import json\n\nimport not_installed_thing\n",
        "ModuleNotFoundError: No module named 'not_installed_thing'",
        "hb_bad.py:3",
    ),
    "syntax error": ("x = 1\ndef (\n", "SyntaxError: invalid syntax (hb_bad.py, line 2)", "hb_bad.py:2"),
    "exits": ("import sys\nsys.exit(3)\n", "SystemExit: 3", "hb_bad.py:2"),
    "raises in a function": (
        "def helper():\n    return {}['missing']\n\nhelper()\n",
        "KeyError: 'missing'",
        "hb_bad.py:2",
    ),
    "wrong use of ours": (
        "from hookbrew.plugin import positive\npositive(1, 2)\n",
        "TypeError: positive() takes from 0 to 1 positional arguments but 2 were given",
        "hb_bad.py:2",
    ),
    "implements no hook": ("x = 1\n", "implements no hook", ""),
    "lacks the marker": (HOOK.format("x"), "hookbrew_register_losses lacks @hookimpl", ""),
    "misspelt": (
        HEAD + "@hookimpl\ndef hookbrew_register_loses(register):\n    pass\n",
        "no hook is called 'hookbrew_register_loses'; did you mean 'hookbrew_register_losses'?",
        "",
    ),
    "misspelt and unmarked": (
        "def hookbrew_register_loses(register):\n    pass\n",
        "no hook is called 'hookbrew_register_loses'; did you mean 'hookbrew_register_losses'?",
        "",
    ),
    "marked under a strange name": (
        HEAD + "@hookimpl\ndef register_losses(register):\n    pass\n",
        "no hook is called 'register_losses'; did you mean 'hookbrew_register_losses'?",
        "",
    ),
    "misspelt specname": (
        HEAD + "@hookimpl(specname='hookbrew_register_schedule')\ndef mine(register):\n    pass\n",
        "no hook is called 'hookbrew_register_schedule'; did you mean 'hookbrew_register_schedules'?",
        "",
    ),
    "marker of another project": (
        "import pluggy\n@pluggy.HookimplMarker('pytest')\n" + HOOK.format("x"),
        "hookbrew_register_losses is marked for 'pytest'; use the hookimpl of hookbrew.plugin",
        "",
    ),
    "wrapper": (
        HEAD + "@hookimpl(wrapper=True)\ndef hookbrew_register_losses(register):\n    yield\n",
        "hookbrew_register_losses is a wrapper; a hook that registers names cannot be one",
        "",
    ),
    "raises in the hook": (
        HEAD + "@hookimpl\ndef hookbrew_register_losses(register):\n    1 / 0\n",
        "ZeroDivisionError: division by zero",
        "hb_bad.py:4",
    ),
    "bad name": (
        HEAD + "@hookimpl\ndef hookbrew_register_losses(register):\n    register('Bad', 'a:B')\n",
        "loss name 'Bad': a name is made of a-z, 0-9 and _, and begins with a letter",
        "hb_bad.py:4",
    ),
    "bad target": (
        HEAD + "@hookimpl\ndef hookbrew_register_augments(register):\n    register('bad', 'a.B')\n",
        "augment bad: expected a class or 'module:Class', got 'a.B'",
        "hb_bad.py:4",
    ),
    "the same name twice": (
        HEAD
        + "@hookimpl\ndef hookbrew_register_losses(register):\n    register('a', 'a:B')\n    register('a', 'a:C')\n",
        "loss a is registered twice",
        "hb_bad.py:5",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_recorded_and_nothing_else_breaks(site, sound, case):
    text, why, where = FAULTS[case]
    sound("alpha")
    sound("zeta")
    site("hookbrew-bad", "0.1", "bad = hb_bad", text)
    known = catalogue()
    assert [(f.name, f.distribution, f.version, f.why, f.where) for f in known.failed] == [
        ("bad", "hookbrew-bad", "0.1", why, where)
    ]
    assert [plugin.name for plugin in known.plugins] == ["standard", "alpha", "zeta"]
    assert {"alpha", "zeta", "kd_ce"} < set(known.names("losses"))


def test_a_class_instead_of_an_instance(site):
    text = HEAD + "class Mine:\n    @hookimpl\n    def hookbrew_register_losses(self, register):\n        pass\n"
    site("hookbrew-bad", "0.1", "bad = hb_bad:Mine", text)
    assert [f.why for f in catalogue().failed] == [
        "Mine is a class and hookbrew_register_losses a method; give an instance of the class"
    ]


def test_an_instance_and_a_class_of_static_methods_are_plugins(site):
    text = f"""\
{HEAD}
class Mine:
    @hookimpl
    def hookbrew_register_losses(self, register):
        register("mine", "hb_mine:Loss")

class Static:
    @staticmethod
    @hookimpl
    def hookbrew_register_losses(register):
        register("static", "hb_mine:Loss")

mine = Mine()
"""
    site("hookbrew-mine", "0.1", "mine = hb_mine:mine", text)
    site("hookbrew-static", "0.1", "static = hb_mine:Static")
    known = catalogue()
    assert known.failed == ()
    assert {"mine", "static"} < set(known.names("losses"))


def test_a_missing_entry_module(site):
    site("hookbrew-bad", "0.1", "bad = hb_nowhere")
    assert [(f.why, f.where) for f in catalogue().failed] == [("ModuleNotFoundError: No module named 'hb_nowhere'", "")]


def test_a_name_that_is_taken(site, sound):
    sound("alpha")
    site("hookbrew-alpha2", "0.9", "alpha = hb_other", HEAD + "@hookimpl\n" + HOOK.format("other"))
    known = catalogue()
    assert [str(f) for f in known.failed] == ["alpha (hookbrew-alpha2 0.9)"]
    assert [f.why for f in known.failed] == ["the name 'alpha' is already taken by hookbrew-alpha"]
    assert "hb_other" not in sys.modules
    assert "alpha" in known.names("losses")


def test_a_third_party_cannot_take_the_name_of_the_standard_pack(site):
    site("aaa", "1.0", "standard = hb_other", HEAD + "@hookimpl\n" + HOOK.format("other"))
    assert [f.why for f in catalogue().failed] == ["the name 'standard' is already taken by hookbrew"]


def test_one_module_under_two_names(site, sound):
    sound("alpha")
    site("hookbrew-again", "0.1", "zzz = hb_alpha")
    assert [f.why for f in catalogue().failed] == ["is the same object as plugin 'alpha'"]


def test_a_failed_plugin_leaves_no_names_behind(site):
    text = f"""\
{HEAD}
@hookimpl
def hookbrew_register_augments(register):
    register("early", "hb_bad:X")

@hookimpl
def hookbrew_register_losses(register):
    register("late", "hb_bad:X")
    raise RuntimeError("half-way")
"""
    site("hookbrew-bad", "0.1", "bad = hb_bad", text)
    known = catalogue()
    assert "early" not in known.names("augments")
    assert "late" not in known.names("losses")
    assert known.failed[0].error.__notes__ == ["raised by plugin 'bad' in hook hookbrew_register_losses (hb_bad.py:10)"]


def test_found_in_the_order_of_names_not_of_folders(sound):
    for name in ("zeta", "mid", "alpha"):
        sound(name)
    ours = [found.name for found in installed() if found.name in ("zeta", "mid", "alpha", "standard")]
    assert ours == ["standard", "alpha", "mid", "zeta"]


def test_keyboard_interrupt_is_no_failure(site):
    site("hookbrew-bad", "0.1", "bad = hb_bad", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        catalogue()


def test_a_plugin_given_as_an_object_must_be_sound():
    class Mine:
        @hookimpl
        def hookbrew_register_losses(self, regster):
            pass

    with pytest.raises(PluginError) as caught:
        catalogue(discover=False, plugins=[Mine()])
    assert str(caught.value).startswith("plugin Mine failed to load: PluginValidationError: Plugin 'Mine' for hook")
    assert isinstance(caught.value.__cause__, pluggy.PluginValidationError)


@pytest.mark.parametrize("fault", ["implements no hook", "raises in the hook"])
def test_the_name_of_a_failed_plugin_is_free(site, fault):
    site("hookbrew-first", "0.1", "same = hb_bad", FAULTS[fault][0])
    site("hookbrew-second", "0.1", "same = hb_good", HEAD + "@hookimpl\n" + HOOK.format("good"))
    known = catalogue()
    assert [str(f) for f in known.failed] == ["same (hookbrew-first 0.1)"]
    assert [str(p) for p in known.plugins][1:] == ["same (hookbrew-second 0.1)"]
    assert "good" in known.names("losses")
