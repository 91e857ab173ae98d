"""`hookbrew plugins list`: who brings what; a broken plugin is a row and no error."""

import json
import os
import subprocess
import sys
from textwrap import wrap

import pytest
from click.testing import CliRunner

import hookbrew_plugins
from hookbrew.cli import main
from hookbrew.plugin import catalogue

HEAD = "from hookbrew.plugin import hookimpl\n"
HOOK = "def hookbrew_register_losses(register):\n    register('{}', 'hb_nothing:X')\n"
PACK = catalogue(discover=False, plugins=[hookbrew_plugins])
KINDS = ("losses", "schedules", "projections", "augments", "callbacks", "edits")
OFFERS = [line for kind in KINDS for line in wrap(f"{kind} {', '.join(PACK.names(kind))}", 72, subsequent_indent="  ")]
STANDARD = "standard  0.1.0    hookbrew           " + ("\n" + 38 * " ").join(OFFERS) + "\n"
EIGHT = f"""\
NAME      VERSION  FROM               OFFERS
{STANDARD}\
alpha     0.3      hookbrew-alpha     losses alpha
zeta      0.3      hookbrew-zeta      losses zeta
alpha     0.9      hookbrew-alpha2    failed: the name 'alpha' is already taken by hookbrew-alpha
args      0.2      hookbrew-args      failed: PluginValidationError: Plugin 'args' for hook 'hookbrew_register_losses' \
hookimpl definition: hookbrew_register_losses(regster) Argument(s) {{'regster'}} are declared in the hookimpl but can \
not be found in the hookspec
broken    0.1      hookbrew-broken    failed: ModuleNotFoundError: No module named 'not_installed_thing' \
(hb_broken.py:3)
empty     0.2      hookbrew-empty     failed: implements no hook
kind      0.1      hookbrew-kind      failed: Kind is a class and hookbrew_register_losses a method; give an instance \
of the class
naked     0.1      hookbrew-naked     failed: hookbrew_register_losses lacks @hookimpl
stranger  0.1      hookbrew-stranger  failed: hookbrew_register_losses is marked for 'tox'; use the hookimpl of \
hookbrew.plugin
typo      0.1      hookbrew-typo      failed: no hook is called 'hookbrew_register_loses'; did you mean \
'hookbrew_register_losses'?
"""


def plugins(*arguments, code=0):
    done = CliRunner().invoke(main, ["plugins", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def eight(site, sound):
    """Two sound plugins and one of each fault."""
    sound("alpha")
    sound("zeta")
    site("hookbrew-alpha2", "0.9", "alpha = hb_alpha2", HEAD + "@hookimpl\n" + HOOK.format("x"))
    args = "@hookimpl\ndef hookbrew_register_losses(regster):\n    pass\n"
    site("hookbrew-args", "0.2", "args = hb_args", HEAD + args)
    site("hookbrew-broken", "0.1", "broken = hb_broken", HEAD + "\nimport not_installed_thing\n")
    site("hookbrew-empty", "0.2", "empty = hb_empty", HEAD)
    kind = "class Kind:\n    @hookimpl\n    def hookbrew_register_losses(self, register):\n        pass\n"
    site("hookbrew-kind", "0.1", "kind = hb_kind:Kind", HEAD + kind)
    site("hookbrew-naked", "0.1", "naked = hb_naked", HOOK.format("x"))
    stranger = "import pluggy\n@pluggy.HookimplMarker('tox')\n" + HOOK.format("x")
    site("hookbrew-stranger", "0.1", "stranger = hb_stranger", stranger)
    typo = "@hookimpl\ndef hookbrew_register_loses(register):\n    pass\n"
    return site("hookbrew-typo", "0.1", "typo = hb_typo", HEAD + typo)


@pytest.mark.usefixtures("eight")
def test_eight_faults_are_rows():
    assert plugins("list") == EIGHT


@pytest.mark.usefixtures("eight")
def test_eight_faults_as_json():
    rows = json.loads(plugins("list", "--json"))
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["failed"] * 8
    assert rows[1] == {
        "name": "alpha",
        "version": "0.3",
        "distribution": "hookbrew-alpha",
        "status": "ok",
        "offers": {"losses": ["alpha"]},
    }
    assert rows[5] == {
        "name": "broken",
        "version": "0.1",
        "distribution": "hookbrew-broken",
        "status": "failed",
        "why": "ModuleNotFoundError: No module named 'not_installed_thing'",
        "where": "hb_broken.py:3",
    }


@pytest.mark.slow
def test_a_command_of_its_own_in_a_broken_environment(eight):
    environment = {**os.environ, "PYTHONPATH": str(eight)}
    command = [sys.executable, "-m", "hookbrew"]
    for arguments in (["--help"], ["plugins", "list"], ["plugins", "show", "kd_ce"], ["config", "schema"]):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_blocked_plugins_are_rows(sound, monkeypatch):
    sound("alpha")
    sound("beta")
    monkeypatch.setenv("HOOKBREW_BLOCK", "beta")
    done = CliRunner().invoke(main, ["--no-plugins", "plugins", "list"])
    assert done.stdout.splitlines()[-2:] == [
        "alpha     0.3      hookbrew-alpha  not on the allow-list (HOOKBREW_PLUGINS or --no-plugins)",
        "beta      0.3      hookbrew-beta   blocked (HOOKBREW_BLOCK)",
    ]


def test_a_plugin_that_offers_nothing(site):
    site("hookbrew-idle", "1.0", "idle = hb_idle", HEAD + "@hookimpl\ndef hookbrew_register_losses(register): pass\n")
    assert plugins("list").splitlines()[-1] == "idle      1.0      hookbrew-idle  nothing"


def test_list_and_completion_import_no_torch():
    for arguments in ("['plugins', 'list']", "['--help']", "['plugins', '--help']", "['plugns']"):
        code = (
            "import sys\nfrom hookbrew.cli import main\ntry:\n"
            f"    main({arguments})\nexcept SystemExit:\n    assert 'torch' not in sys.modules, 'torch was imported'"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def completed(words):
    """What bash is told for a line that ends in an unfinished word, and whether torch was imported."""
    code = (
        "import sys\nfrom hookbrew.cli import main\ntry:\n    main(prog_name='hookbrew')\n"
        "except SystemExit:\n    assert 'torch' not in sys.modules, 'torch was imported'"
    )
    extra = {"_HOOKBREW_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment = {**os.environ, **extra}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_completion():
    assert completed("hookbrew plugins show kd_") == ["kd_bce", "kd_ce", "kd_mse"]
    assert completed("hookbrew plu") == ["plugins"]
