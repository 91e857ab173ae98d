"""Files that extend files."""

import pytest

from hookbrew.config import read, structure
from hookbrew.errors import ConfigError, Place


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def refused(*arguments):
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    return str(caught.value)


def test_tables_merge_and_the_rest_replaces(folder):
    write(
        folder,
        base__sgd='x = 1\nl = [1, 2]\n[t]\na = 1\nb = {c = 1, d = 2}\n[[losses]]\ntype = "kd"\n[[losses]]\ntype = "b"',
        kd='extends = "base/sgd.toml"\nl = [3]\n[t]\nb.c = 5\n[[losses]]\ntype = "z"\n',
    )
    document = read("kd.toml")
    assert document.tree == {
        "x": 1,
        "l": [3],
        "t": {"a": 1, "b": {"c": 5, "d": 2}},
        "losses": [{"type": "z"}],
    }
    assert document.dropped == []
    assert str(document.locate("x")) == "base/sgd.toml:1:1"
    assert str(document.locate("t.a")) == "base/sgd.toml:4:1"
    assert str(document.locate("t.b.c")) == "kd.toml:4:1"
    assert str(document.locate("t.b.d")) == "base/sgd.toml:5:13"
    assert str(document.locate("losses[0].type")) == "kd.toml:6:1"
    assert "losses[1].type" not in document.origins
    assert document.locate("losses[1].type") == Place("kd.toml", 5, 1, "[[losses]]", 10)


def test_a_list_of_bases_later_ones_win(folder):
    write(folder, a="x = 1\ny = 1", b="x = 2", kd='extends = ["a.toml", "b.toml"]\nz = 3\n')
    assert read("kd.toml").tree == {"x": 2, "y": 1, "z": 3}


def test_bases_are_relative_to_the_file_that_names_them(folder):
    write(folder, base__one='extends = "two.toml"\n', base__two="x = 1", sub__kd='extends = "../base/one.toml"\n')
    document = read("sub/kd.toml")
    assert document.tree == {"x": 1}
    assert str(document.locate("x")) == "base/two.toml:1:1"


def test_one_base_by_two_ways_is_no_loop(folder):
    write(folder, a='extends = "c.toml"', b='extends = "c.toml"', c="x = 1", kd='extends = ["a.toml", "b.toml"]')
    assert read("kd.toml").tree == {"x": 1}


def test_a_loop_is_shown_as_a_chain(folder):
    write(folder, a='extends = "b.toml"', b='\nextends = ["sub/../a.toml"]', kd='extends = "a.toml"')
    assert refused("kd.toml") == (
        "b.toml:2:1: extends: these files extend each other: kd.toml -> a.toml -> b.toml -> a.toml\n"
        '  |\n2 | extends = ["sub/../a.toml"]\n  | ^^^^^^^'
    )


def test_a_missing_base_is_told_where_it_is_named(folder):
    write(folder, base__sgd="x = 1", kd='extends = "base/sdg.toml"')
    assert refused("kd.toml") == (
        "kd.toml:1:1: extends: there is no file 'base/sdg.toml'; did you mean 'base/sgd.toml'?\n"
        '  |\n1 | extends = "base/sdg.toml"\n  | ^^^^^^^'
    )
    write(folder, kd='extends = "base"')
    assert refused("kd.toml").startswith("kd.toml:1:1: extends: 'base' is a folder; give the TOML file in it\n")


@pytest.mark.parametrize(("value", "got"), [("3", "3"), ('["a.toml", 4]', "4"), ("{a = 1}", "a table")])
def test_extends_is_a_file_or_several(folder, value, got):
    write(folder, kd=f"extends = {value}\n")
    assert refused("kd.toml").startswith(f"kd.toml:1:1: extends: expected a file or a list of files, got {got}\n")


def test_a_table_that_changes_its_type_is_replaced(folder):
    write(
        folder,
        base='[optimizer]\ntype = "SGD"\nlr = 0.1\nmomentum = 0.9\nnesterov = true\n',
        kd='extends = "base.toml"\n[optimizer]\ntype = "Adam"\nlr = 0.2\n',
    )
    document = read("kd.toml")
    assert document.tree == {"optimizer": {"type": "Adam", "lr": 0.2}}
    assert document.dropped == ["optimizer: type SGD -> Adam; dropped momentum (base.toml:4), nesterov (base.toml:5)"]
    assert set(document.origins) == {"optimizer", "optimizer.type", "optimizer.lr"}


def test_the_same_type_merges(folder):
    text = 'extends = "base.toml"\n[optimizer]\ntype = "SGD"\n'
    write(folder, base='[optimizer]\ntype = "SGD"\nmomentum = 0.9\n', kd=text)
    document = read("kd.toml")
    assert document.tree == {"optimizer": {"type": "SGD", "momentum": 0.9}}
    assert document.dropped == []


def test_an_optimizer_without_a_type_is_adamw(folder):
    write(folder, base="[optimizer]\nweight_decay = 0.1\n", kd='extends = "base.toml"\noptimizer.type = "SGD"\n')
    document = read("kd.toml")
    assert document.tree == {"optimizer": {"type": "SGD"}}
    assert document.dropped == ["optimizer: type AdamW -> SGD; dropped weight_decay (base.toml:2)"]


def test_a_changed_factory_takes_other_arguments(folder):
    write(
        folder,
        base='[data]\nbatch_size = 4\ntrain = {factory = "a:b", root = "x", n = 1}\n',
        kd='extends = "base.toml"\n[data]\ntrain = {factory = "a:c", n = 2}\n',
    )
    document = read("kd.toml")
    assert document.tree == {"data": {"batch_size": 4, "train": {"factory": "a:c", "n": 2}}}
    assert document.dropped == ["data.train: factory a:b -> a:c; dropped root (base.toml:3)"]


def test_epochs_and_steps_displace_each_other(folder):
    write(folder, base="[train]\nepochs = 3\naccumulate = 2\n", kd='extends = "base.toml"\n[train]\nsteps = 10\n')
    document = read("kd.toml")
    assert document.tree == {"train": {"steps": 10, "accumulate": 2}}
    assert document.dropped == ["train: epochs -> steps; dropped epochs (base.toml:2)"]
    again = read("kd.toml", ["train.epochs=1"])
    assert again.tree == {"train": {"epochs": 1, "accumulate": 2}}
    assert again.dropped[1:] == ["train: steps -> epochs; dropped steps (kd.toml:3)"]


def test_paths_are_relative_to_the_file_that_says_them(folder, fake):
    write(
        folder,
        base__base=(
            'output = "runs/a"\npythonpath = ["."]\n[student]\nfactory = "a:b"\nfile = "./w.bin"\n'
            '[data.train]\nfactory = "a:c"\nfiles = ["../d", "d", {x = "./e"}]\n'
        ),
        sub__kd='extends = "../base/base.toml"\ntrain.epochs = 1\nlosses = [{type = "kd"}]\n[student]\nmore = "./m"\n',
    )
    experiment = structure(read("sub/kd.toml", ["student.extra=./e"]), fake)
    assert experiment.output == folder / "base/runs/a"
    assert experiment.pythonpath == [folder / "base"]
    assert experiment.student.arguments == {
        "file": str(folder / "base/w.bin"),
        "more": str(folder / "sub/m"),
        "extra": str(folder / "e"),
    }
    assert experiment.data.train.arguments == {"files": [str(folder / "d"), "d", {"x": str(folder / "base/e")}]}


def test_messages_show_the_file_as_the_user_gave_it(folder):
    path = folder / "kd.toml"
    path.write_text("x = \n")
    assert refused(path).startswith(f"{path}:1:5: not TOML: ")


def test_locating_nonsense_gives_the_file(folder):
    (folder / "kd.toml").write_text("x = 1\n")
    assert str(read("kd.toml").locate("..")) == "kd.toml:1:1"
    assert str(read("kd.toml").locate("")) == "kd.toml:1:1"
