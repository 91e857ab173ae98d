"""What is written reads as what it was."""

import os
from pathlib import Path

import attrs
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.config import (
    Component,
    Data,
    Edit,
    Experiment,
    Factory,
    Loss,
    Optimizer,
    Train,
    Weight,
    read,
    structure,
    write,
)
from hookbrew.errors import ConfigError

words = st.text(st.characters(codec="utf-8"), max_size=6)
names = words.filter(lambda text: text not in {"factory", "type", "lr", "extends"})
scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | words.filter(lambda text: not text.startswith(("./", "../")))
    | st.datetimes()
    | st.dates()
    | st.times()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
arguments = st.dictionaries(names, values, max_size=3)
selectors = st.none() | words
factories = st.builds(Factory, factory=st.sampled_from(["a:b", "zoo.models:Big.load"]), arguments=arguments)
trains = st.builds(
    Train,
    epochs=st.integers(1, 9),
    clip_grad_norm=st.none() | st.floats(0.1, 9),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    threads=st.none() | st.integers(1, 4),
) | st.builds(Train, steps=st.integers(1, 99), accumulate=st.integers(1, 4), evaluate_every=st.none() | st.just(5))
datas = st.builds(
    Data,
    train=factories,
    evaluate=st.none() | factories,
    collate=st.none() | factories,
    evaluate_batch_size=st.none() | st.integers(1, 9),
    pad=st.dictionaries(words, st.integers(-5, 5) | st.floats(-1, 1), max_size=2),
    fields=st.lists(words, max_size=2),
)
optimizers = st.builds(Optimizer, type=words, lr=st.floats(1e-6, 1), arguments=arguments)
paths = words.map(lambda text: Path(os.path.abspath("/" + text.replace("\0", ""))))


def components(fake, kind):
    """Components of a kind with any options."""
    positive = st.floats(0.1, 9)
    unit = st.floats(0, 1)
    known = {
        "linear": {"start": unit, "end": unit},
        "flat": {},
        "mlp": {"width": st.integers(1, 9), "bias": st.booleans()},
        "note": {"every": st.integers(1, 9), "folders": st.lists(paths, max_size=2)},
        "kd": {"temperature": positive, "metric": st.sampled_from(["l2", "cosine"]), "tag": words},
        "hidden": {
            "norm": st.sampled_from(["l1", "l2"]),
            "scales": st.dictionaries(words, positive, max_size=2),
            "margin": st.none() | positive,
            "pair": st.tuples(unit, unit),
            "table": st.none() | paths,
        },
        "needy": {
            "epochs": st.integers(1, 5),
            "many": st.integers(-(2**63), 2**63 - 1) | st.lists(st.integers(-9, 9), max_size=2),
        },
    }

    def options(name):
        cls = fake.load(kind, name)
        plain = kind == "projections" and name == "linear"
        return st.fixed_dictionaries({} if plain else known[name]).map(
            lambda given: Component(type=name, options=cls(**given))
        )

    return st.sampled_from([name for name in fake.names(kind) if name in known]).flatmap(options)


def edits(fake):
    """Edits of models."""
    frozen = st.tuples(st.just("freeze"), st.fixed_dictionaries({"path": words}))
    swapped = st.tuples(st.just("swap"), st.fixed_dictionaries({"path": words, "module": factories}))
    made = st.tuples(frozen | swapped, st.just("student") | words)
    return made.map(lambda d: Edit(type=d[0][0], options=fake.load("edits", d[0][0])(**d[0][1]), model=d[1]))


def experiments(fake):
    """Whole experiments."""
    weights = st.builds(Weight, base=st.floats(-9, 9), schedule=st.none() | components(fake, "schedules"))
    several = st.lists(words, min_size=1, max_size=2)
    placement = {
        "name": selectors,
        "student": selectors | several,
        "teacher": selectors | several | st.dictionaries(words, words | several, min_size=1, max_size=2),
        "projection": st.none() | components(fake, "projections") | factories,
        "weight": weights,
        "mask": st.booleans() | words,
        "labels": selectors | several,
        "optimizer": st.none() | st.dictionaries(words, values, max_size=2),
    }
    numbers = {"kd": "temperature", "hidden": "margin", "needy": "high"}

    def varied(drawn):
        """A loss, one option of it moved by a schedule."""
        made, placed, schedule = drawn
        name = numbers[made.type]
        moves = schedule is not None and getattr(made.options, name) is not None
        varying = {name: Weight(base=getattr(made.options, name), schedule=schedule)} if moves else {}
        return Loss(type=made.type, options=made.options, varying=varying, **placed)

    schedules = st.none() | components(fake, "schedules")
    losses = st.tuples(components(fake, "losses"), st.fixed_dictionaries(placement), schedules).map(varied)
    return st.builds(
        Experiment,
        output=paths,
        student=factories,
        data=datas,
        train=trains,
        losses=st.lists(losses, min_size=1, max_size=3),
        teacher=st.none() | factories,
        seed=st.integers(0, 2**63 - 1),
        plugins=st.lists(words, max_size=2),
        pythonpath=st.lists(paths, max_size=2),
        optimizer=optimizers,
        lr_schedule=st.none() | components(fake, "schedules"),
        augments=st.lists(components(fake, "augments"), max_size=2),
        callbacks=st.lists(components(fake, "callbacks"), max_size=3),
        surgery=st.lists(edits(fake), max_size=2),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("written") / "kd.toml"


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_an_experiment_reads_as_it_was_written(fake, file, data):
    experiment = data.draw(experiments(fake))
    text = write(experiment)
    file.write_text(text, encoding="utf-8", newline="")
    again = structure(read(file), fake)
    assert again == experiment
    assert write(again) == text


@given(st.dictionaries(names, values, max_size=4))
def test_any_tree_reads_as_it_was_written(file, tree):
    file.write_text(tomli_w.dumps(tree), encoding="utf-8", newline="")
    document = read(file)
    assert document.tree == tree
    assert document.dropped == []


def test_every_default_is_said_and_nothing_that_is_none(structured, good):
    assert write(structured(good)).partition("[student]")[2].startswith('\nfactory = "zoo.models:Small"\nwidth = 8\n')
    train = write(structured(good)).partition("[train]\n")[2].partition("\n\n")[0]
    assert train.splitlines() == [
        "epochs = 3",
        "accumulate = 1",
        'precision = "auto"',
        'nonfinite = "stop"',
        'out_of_memory = "stop"',
        'device = "auto"',
        "stop_teacher = true",
        'teacher_precision = "same"',
        'chunked = "auto"',
        'shard = "none"',
        "timeout = 600.0",
        'compile = "none"',
        "log_every = 10",
    ]


def test_what_toml_cannot_say_is_refused(structured, good, fake):
    experiment = structured(good)
    odd = attrs.evolve(experiment, student=Factory(factory="a:b", arguments={"x": [1, {"y": None}]}))
    with pytest.raises(ConfigError) as caught:
        write(odd)
    assert str(caught.value) == "student.x[1].y: TOML has no form for None"


def test_none_in_place_of_another_default_is_refused(structured, good, fake):
    experiment = structured(good)
    loss = attrs.evolve(experiment.losses[0], options=fake.load("losses", "kd")(tag=None))
    with pytest.raises(ConfigError) as caught:
        write(attrs.evolve(experiment, losses=[loss]))
    assert str(caught.value) == "losses[0].tag: TOML has no form for None"
