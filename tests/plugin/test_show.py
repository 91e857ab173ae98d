"""`hookbrew plugins show`: the reference of components, ready to paste."""

import json
import tomllib

import pytest
from click.testing import CliRunner

import hookbrew_plugins
from hookbrew.cli import main
from hookbrew.config import structure_component, structure_loss
from hookbrew.plugin import KINDS, catalogue

PACK = catalogue(discover=False, plugins=[hookbrew_plugins])
COMPONENTS = [(kind, name) for kind in KINDS for name in PACK.names(kind)]

DKD = '''\
from hookbrew.plugin import hookimpl, options, choice, positive

@hookimpl
def hookbrew_register_losses(register):
    register("dxd", "hb_dxd:DKD")

@options
class DKD:
    """Decoupled KD: target and non-target knowledge
    weighed apart.

    Zhao et al. 2022, eq. 7.
    """

    classes: int
    """How many there are."""
    temperature: float = positive(4.0)
    """Softens both
    distributions."""
    metric: str = choice("l1", "l2", default="l2")
    top: int | None = None

    def build(self):
        return None
'''
TEXT = """\
loss dxd: Decoupled KD: target and non-target knowledge weighed apart.
from plugin dxd (hookbrew-dxd 0.3), hb_dxd.py:7
  Zhao et al. 2022, eq. 7.

  classes      integer                    required  How many there are.
  temperature  number > 0, or a schedule  4.0       Softens both distributions.
  metric       "l1" | "l2"                "l2"
  top          integer                    none

  [[losses]]
  type = "dxd"
  # classes =  # integer, required
  temperature = 4.0
  metric = "l2"
  # top =  # integer, optional
"""


def show(*arguments, code=0):
    done = CliRunner().invoke(main, ["plugins", "show", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def dxd(site):
    site("hookbrew-dxd", "0.3", "dxd = hb_dxd", DKD)


@pytest.mark.usefixtures("dxd")
def test_a_component():
    assert show("dxd") == TEXT


@pytest.mark.usefixtures("dxd")
def test_json():
    (described,) = json.loads(show("dxd", "--json"))
    options = described.pop("options")
    assert described == {
        "kind": "loss",
        "name": "dxd",
        "doc": "Decoupled KD: target and non-target knowledge\nweighed apart.\n\nZhao et al. 2022, eq. 7.",
        "plugin": "dxd (hookbrew-dxd 0.3)",
        "target": "hb_dxd:DKD",
        "where": "hb_dxd.py:7",
        "toml": "\n".join(line.removeprefix("  ") for line in TEXT.splitlines()[9:]),
    }
    assert options[:2] == [
        {"name": "classes", "type": "integer", "required": True, "default": None, "doc": "How many there are."},
        {
            "name": "temperature",
            "type": "number > 0, or a schedule",
            "required": False,
            "default": 4.0,
            "doc": "Softens both\ndistributions.",
        },
    ]


def test_a_name_of_two_kinds_is_shown_twice():
    lines = show("linear").splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith(("schedule ", "projection "))] == [
        "schedule linear",
        "projection linear",
    ]
    assert [one["kind"] for one in json.loads(show("linear", "--json"))] == ["schedule", "projection"]


FILLED = {"list of string": ["a"], "string": "a", "table": {"factory": "a:b"}}
"""Values of required options by their type, where 1 will not do."""
HEADERS = {"losses", "lr_schedule", "augments", "callbacks", "surgery"}


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_the_block_can_be_pasted(kind, name):
    """Each block is TOML that the strict reader takes, once its required options are filled in."""
    (described,) = [one for one in json.loads(show(name, "--json")) if one["kind"] == KINDS[kind]]
    before = "[[losses]]\n" if kind == "projections" else ""
    tree = tomllib.loads(before + described["toml"])
    (header,) = tree
    assert header in HEADERS
    table = tree[header]
    table = table[0] if isinstance(table, list) else table
    table = table["projection"] if kind == "projections" else table
    required = {option["name"]: FILLED.get(option["type"], 1) for option in described["options"] if option["required"]}
    if kind == "losses":
        options = structure_loss({**table, **required}, PACK).options
    else:
        options = structure_component(kind, {**table, **required}, PACK).options
    cls = PACK.load(kind, name)
    assert options == cls(**required)


def test_a_schedule_says_how_a_loss_uses_it():
    line = next(line for line in show("cosine").splitlines() if "# or" in line)
    weight = tomllib.loads(line.partition(": ")[2])["weight"]
    loss = structure_loss({"type": "kd_ce", "weight": weight}, PACK)
    assert loss.weight.schedule.type == "cosine"


def test_a_plugin():
    losses = ", ".join(PACK.names("losses"))
    shown = " ".join(show("standard").split())
    assert shown.startswith(f"NAME VERSION FROM OFFERS standard 0.1.0 hookbrew losses {losses} schedules ")
    assert json.loads(show("standard", "--json"))[0]["status"] == "ok"


def test_a_failed_plugin_with_its_traceback(site):
    text = """\
        def helper():
            return {}["missing"]

        helper()
    """
    folder = site("hookbrew-bad", "0.1", "bad = hb_bad", text)
    assert (
        show("bad")
        == f"""\
NAME  VERSION  FROM          OFFERS
bad   0.1      hookbrew-bad  failed: KeyError: 'missing' (hb_bad.py:2)

Traceback (most recent call last):
  File "{folder}/hb_bad.py", line 4, in <module>
    helper()
  File "{folder}/hb_bad.py", line 2, in helper
    return {{}}["missing"]
           ~~^^^^^^^^^^^
KeyError: 'missing'
(without the frames of hookbrew; `hookbrew --traceback ...` shows all of them)
"""
    )
    whole = CliRunner().invoke(main, ["--traceback", "plugins", "show", "bad"])
    assert "hookbrew/plugin/discovery.py" in whole.stdout


def test_a_plugin_that_breaks_the_contract_has_no_traceback_of_ours(site):
    site("hookbrew-bad", "0.1", "bad = hb_bad", "def hookbrew_register_loses(register): pass\n")
    why = "no hook is called 'hookbrew_register_loses'; did you mean 'hookbrew_register_losses'?"
    assert show("bad") == f"NAME  VERSION  FROM          OFFERS\nbad   0.1      hookbrew-bad  failed: {why}\n"


def test_an_unknown_name(site):
    site("hookbrew-broken", "0.1", "broken = hb_broken", "import not_installed_thing\n")
    assert show("kd_cee", code=2) == (
        "error: no component or plugin called 'kd_cee'; did you mean 'kd_ce'?; plugin broken (hookbrew-broken 0.1) "
        "failed to load: ModuleNotFoundError: No module named 'not_installed_thing'\n"
    )


def test_a_contested_name(sound):
    sound("alpha", loss="dxd")
    sound("beta", loss="dxd")
    assert show("dxd", code=2) == (
        "error: loss 'dxd' is registered by both alpha (hookbrew-alpha 0.3) and beta (hookbrew-beta 0.3); "
        "leave one out: HOOKBREW_BLOCK=beta\n"
    )


def test_a_component_that_cannot_be_imported(sound):
    sound("alpha")
    assert show("alpha", code=2) == (
        "error: loss alpha of plugin alpha (hookbrew-alpha 0.3): hb_alpha_loss:Loss cannot be imported: "
        "ModuleNotFoundError: No module named 'hb_alpha_loss'\n"
    )


def test_options_that_cannot_be_read(site):
    text = DKD.replace("from hookbrew", "from __future__ import annotations\nfrom hookbrew").replace(
        ": int\n", ": Gone\n"
    )
    site("hookbrew-dxd", "0.3", "dxd = hb_dxd", text)
    assert show("dxd", code=2) == (
        "error: loss dxd of plugin dxd (hookbrew-dxd 0.3): hb_dxd:DKD has options that cannot be read: "
        "NameError: name 'Gone' is not defined\n"
    )
