"""Level 1: names and plugins."""

import pytest

from hookbrew.config import check_names, read
from hookbrew.errors import ConfigError


@pytest.fixture
def told(folder, fake):
    """What level 1 says about a text."""

    def run(text, catalogue=fake):
        (folder / "kd.toml").write_text(text)
        document = read("kd.toml")
        problems = ()
        try:
            check_names(document, catalogue)
        except ConfigError as error:
            problems = error.problems
        assert all(problem.place for problem in problems)
        return [f"{problem.path}: {problem.message}" for problem in problems]

    return run


def test_a_good_file_passes_without_loading_anything(told, good, fake):
    class Listed(type(fake)):
        def load(self, kind, name):
            raise AssertionError("level 1 loads nothing")

    assert told(good, Listed()) == []


def test_every_unknown_name_is_told_with_its_place(folder, fake):
    (folder / "kd.toml").write_text(
        """\
lr_schedule = { type = "liner" }

[[losses]]
type = "dkdd"
weight = { type = "lin", base = 1 }
projection = "mpl"

[[losses]]
typ = "kd"

[[callbacks]]
type = 3

[[augments]]
type = "zzz"
"""
    )
    with pytest.raises(ConfigError) as caught:
        check_names(read("kd.toml"), fake)
    assert str(caught.value) == (
        """\
kd.toml:1:17: lr_schedule.type: no schedule called 'liner'; did you mean 'linear'?
  |
1 | lr_schedule = { type = "liner" }
  |                 ^^^^
kd.toml:4:1: losses[0].type: no loss called 'dkdd'; did you mean 'kd'?
  |
4 | type = "dkdd"
  | ^^^^
kd.toml:5:12: losses[0].weight.type: no schedule called 'lin'; did you mean 'linear'?
  |
5 | weight = { type = "lin", base = 1 }
  |            ^^^^
kd.toml:6:1: losses[0].projection: no projection called 'mpl'; did you mean 'mlp'?
  |
6 | projection = "mpl"
  | ^^^^^^^^^^
kd.toml:9:1: losses[1].typ: unknown key; did you mean 'type'? (it is required)
  |
9 | typ = "kd"
  | ^^^
kd.toml:12:1: callbacks[0].type: expected a string, got 3
   |
12 | type = 3
   | ^^^^
kd.toml:15:1: augments[0].type: no augment called 'zzz'; one of: note
   |
15 | type = "zzz"
   | ^^^^"""
    )


def test_the_catalogue_explains_what_failed(told, fake):
    class Explaining(type(fake)):
        def explain(self, kind, name):
            return f"no {kind} {name}; plugin dkd failed to load"

    assert told('losses = [{type = "dkd"}]', Explaining()) == [
        "losses[0].type: no losses dkd; plugin dkd failed to load"
    ]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ('"dkd"', None),
        ('"dkd>=0.3,<1"', None),
        ('"gram-net>=1.0"', None),
        ('"dkd>=0.5"', "plugins[0]: plugin dkd is 0.3; this file needs dkd>=0.5"),
        ('"dkdd"', "plugins[0]: no plugin called 'dkdd' is installed; did you mean 'dkd'?"),
        ('"zzz"', "plugins[0]: no plugin called 'zzz' is installed; one of: dkd, gram_net"),
        ('"broken>=1"', "plugins[0]: plugin broken failed to load: ModuleNotFoundError: no such thing"),
        ('"dkd>>1"', "plugins[0]: the string 'dkd>>1' is not a plugin with its versions, like \"dkd>=0.3\""),
        (
            '"dkd[x]>=1"',
            "plugins[0]: the string 'dkd[x]>=1' says more than a plugin and its versions; write \"dkd>=1\"",
        ),
        ("3", "plugins[0]: expected a string, got 3"),
    ],
)
def test_required_plugins(told, wanted, expected):
    assert told(f"plugins = [{wanted}]\n") == ([expected] if expected else [])


def test_required_plugins_are_a_list(told):
    assert told('plugins = "dkd"\n') == ["plugins: expected a list, got the string 'dkd'"]


def test_a_plugin_without_a_sound_version(told, fake):
    class Loose(type(fake)):
        plugins = (type(fake.plugins[0])("dkd", "from source"),)

    assert told('plugins = ["dkd"]', Loose()) == []
    assert told('plugins = ["dkd>=1"]', Loose()) == ["plugins[0]: plugin dkd is from source; this file needs dkd>=1"]


def test_shapes_are_left_to_level_two(told):
    assert told('losses = "kd"\naugments = 3\ncallbacks = ["x"]\nlr_schedule = []\n') == []
    assert told('losses = [{type = "kd", weight = 3, projection = 4}]\n') == []
