"""Names, who brought them, and the sentences about names that are not there."""

import subprocess
import sys

import pytest

from hookbrew.errors import PluginError
from hookbrew.plugin import KINDS, catalogue, hookimpl, options


@options
class Mine:
    """A loss."""

    scale: float = 1.0

    def build(self):
        return lambda student, teacher: student


class Given:
    @hookimpl
    def hookbrew_register_losses(self, register):
        register("mine", Mine)


def test_a_class_given_in_a_notebook():
    known = catalogue(discover=False, plugins=[Given()])
    assert known.names("losses") == ["mine"]
    assert known.names("schedules") == []
    assert known.load("losses", "mine") is Mine
    entry = known.entry("losses", "mine")
    assert (entry.kind, entry.name, entry.target, entry.plugin.name) == ("losses", "mine", Mine, "Given")
    assert entry.path == f"{__name__}:Mine"
    assert known.offers(entry.plugin) == {"losses": ["mine"]}


def test_two_catalogues_share_nothing():
    assert catalogue(discover=False).names("losses") == []
    assert catalogue(discover=False, plugins=[Given()]).names("losses") == ["mine"]
    assert catalogue(discover=False).names("losses") == []


def test_the_nearest_name(pack):
    assert pack.explain("losses", "kd_cee") == "no loss called 'kd_cee'; did you mean 'kd_ce'?"
    assert pack.explain("projections", "zzz") == "no projection called 'zzz'; one of: linear, relu, tanh"
    with pytest.raises(PluginError) as caught:
        pack.load("losses", "kd_cee")
    assert str(caught.value) == "no loss called 'kd_cee'; did you mean 'kd_ce'?"


def test_a_name_of_another_kind(pack):
    assert pack.explain("losses", "tensorboard") == "no loss called 'tensorboard'; 'tensorboard' is a callback"
    assert pack.explain("losses", "masking") == "no loss called 'masking'; 'masking' is an augment"


def test_a_failed_plugin_is_named_with_its_reason(site, sound):
    sound("dxd")
    site("hookbrew-broken", "0.1", "broken = hb_broken", "import not_installed_thing\n")
    assert catalogue().explain("losses", "dxdd") == (
        "no loss called 'dxdd'; did you mean 'dxd'?; plugin broken (hookbrew-broken 0.1) failed to load: "
        "ModuleNotFoundError: No module named 'not_installed_thing'"
    )


def test_two_plugins_with_one_name(sound):
    sound("alpha", loss="dxd")
    sound("beta", loss="dxd")
    known = catalogue()
    both = "loss 'dxd' is registered by both alpha (hookbrew-alpha 0.3) and beta (hookbrew-beta 0.3)"
    assert [plugin.name for plugin in known.plugins] == ["standard", "alpha"]
    assert [(f.name, f.why) for f in known.failed] == [("beta", both)]
    assert "dxd" not in known.names("losses")
    with pytest.raises(PluginError) as caught:
        known.entry("losses", "dxd")
    assert str(caught.value) == f"{both}; leave one out: HOOKBREW_BLOCK=beta"


def test_the_way_out_of_a_contested_name(sound, monkeypatch):
    sound("alpha", loss="dxd")
    sound("beta", loss="dxd")
    monkeypatch.setenv("HOOKBREW_BLOCK", "alpha")
    assert catalogue().entry("losses", "dxd").plugin.name == "beta"


def test_a_third_owner_of_a_name_is_told_too(sound):
    for name in ("alpha", "beta", "gamma"):
        sound(name, loss="dxd")
    assert catalogue().explain("losses", "dxd") == (
        "loss 'dxd' is registered by alpha (hookbrew-alpha 0.3), beta (hookbrew-beta 0.3) "
        "and gamma (hookbrew-gamma 0.3); leave all but one out: HOOKBREW_BLOCK=beta,gamma"
    )


def test_the_standard_pack_is_not_overridden(sound):
    sound("better", loss="kd_ce")
    known = catalogue()
    both = "loss 'kd_ce' is registered by both standard (hookbrew 0.1.0) and better (hookbrew-better 0.3)"
    assert [f.why for f in known.failed] == [both]
    assert known.explain("losses", "kd_ce") == f"{both}; leave one out: HOOKBREW_BLOCK=better"
    assert "hidden_mse" in known.names("losses")


def test_one_name_for_two_kinds_is_no_clash(pack):
    assert [entry.kind for entry in pack.find("linear")] == ["schedules", "projections"]


@pytest.mark.parametrize(
    ("environment", "arguments", "loaded"),
    [
        ({}, {}, ["standard", "alpha", "beta"]),
        ({"HOOKBREW_PLUGINS": "beta"}, {}, ["standard", "beta"]),
        ({"HOOKBREW_PLUGINS": " beta , alpha "}, {}, ["standard", "alpha", "beta"]),
        ({"HOOKBREW_PLUGINS": ""}, {}, ["standard"]),
        ({"HOOKBREW_PLUGINS": "beta"}, {"allow": ()}, ["standard"]),
        ({"HOOKBREW_PLUGINS": "beta"}, {"allow": ["alpha"]}, ["standard", "alpha"]),
        ({"HOOKBREW_BLOCK": "beta"}, {}, ["standard", "alpha"]),
        ({"HOOKBREW_BLOCK": "beta"}, {"block": ["alpha"]}, ["standard"]),
        ({"HOOKBREW_BLOCK": "standard"}, {}, ["alpha", "beta"]),
        ({"HOOKBREW_PLUGINS": "beta", "HOOKBREW_BLOCK": "beta"}, {}, ["standard"]),
    ],
)
def test_who_is_let_in(sound, monkeypatch, environment, arguments, loaded):
    sound("alpha")
    sound("beta")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    known = catalogue(**arguments)
    assert [plugin.name for plugin in known.plugins] == loaded
    assert known.failed == ()
    assert {plugin.name for plugin in known.blocked} == {"standard", "alpha", "beta"} - set(loaded)
    for plugin in known.blocked:
        assert plugin.target not in sys.modules or plugin.name == "standard"


def test_what_is_left_out_is_told(sound, monkeypatch):
    sound("alpha")
    sound("beta")
    monkeypatch.setenv("HOOKBREW_BLOCK", "alpha")
    monkeypatch.setenv("HOOKBREW_PLUGINS", "alpha,gone")
    assert catalogue().explain("losses", "alpha") == (
        f"no loss called 'alpha'; one of: {', '.join(catalogue().names('losses'))}; "
        "plugin gone failed to load: named in HOOKBREW_PLUGINS, but not installed; "
        "plugin alpha (hookbrew-alpha 0.3) is blocked (HOOKBREW_BLOCK); "
        "plugin beta (hookbrew-beta 0.3) is not on the allow-list (HOOKBREW_PLUGINS or --no-plugins)"
    )


def test_the_environment_plays_no_part_without_discovery(monkeypatch, pack):
    import hookbrew_plugins

    monkeypatch.setenv("HOOKBREW_PLUGINS", "gone")
    monkeypatch.setenv("HOOKBREW_BLOCK", "hookbrew_plugins")
    known = catalogue(discover=False, plugins=[hookbrew_plugins])
    assert [known.names(kind) for kind in KINDS] == [pack.names(kind) for kind in KINDS]
    assert known.failed == known.blocked == ()


def test_every_name_of_the_standard_pack_loads(pack):
    for kind in KINDS:
        assert pack.names(kind)
        for name in pack.names(kind):
            cls = pack.load(kind, name)
            assert cls.__doc__, f"{kind} {name} has no documentation"


def test_names_cost_no_torch():
    code = (
        "import sys; from hookbrew.plugin import catalogue; known = catalogue(); known.explain('losses', 'x');"
        "assert known.names('losses') and not known.failed; assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
