"""Layer maps: which blocks are paired, how they are spelled, and that the tables can be pasted."""

import json
import tomllib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hookbrew.errors import HookbrewError
from hookbrew.taps import Block, Layout, Spot, Stack, Taps, discover
from hookbrew.taps.layermap import RULES, as_data, as_toml, match


def stack(count, width=16, path="encoder.layer", *, shared=False):
    spots = [Spot(path, n) if shared else Spot(f"{path}.{n}" if path else str(n)) for n in range(count)]
    return Stack(path, "Layer", tuple(Block(spot, (), (2, 7, width)) for spot in spots))


def layout(*stacks):
    return Layout("Model", stacks)


def teachers(student, teacher, rule):
    (found,) = match(layout(stack(student)), layout(stack(teacher)), rule)
    return [theirs for _, theirs in found.blocks]


def selectors(student, teacher, rule="uniform"):
    (found,) = match(layout(student), layout(teacher), rule)
    return found.student, found.teacher


def mistake(student, teacher, rule="uniform"):
    with pytest.raises(HookbrewError) as caught:
        match(student, teacher, rule)
    return str(caught.value)


@pytest.mark.parametrize(
    ("student", "teacher", "uniform", "last"),
    [
        (3, 12, [3, 7, 11], [9, 10, 11]),
        (4, 12, [2, 5, 8, 11], [8, 9, 10, 11]),
        (5, 12, [2, 4, 7, 9, 11], [7, 8, 9, 10, 11]),
        (1, 6, [5], [5]),
        (6, 6, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_rules(student, teacher, uniform, last):
    assert teachers(student, teacher, "uniform") == uniform
    assert teachers(student, teacher, "last") == last


@given(st.data(), st.sampled_from(sorted(RULES)))
def test_laws(data, rule):
    teacher = data.draw(st.integers(1, 40))
    student = data.draw(st.integers(1, teacher))
    found = teachers(student, teacher, rule)
    assert len(found) == student
    assert found == sorted(set(found))
    assert found[-1] == teacher - 1
    assert found[0] >= 0


def test_a_table():
    found = match(layout(stack(3, 16)), layout(stack(12, 24, "bert.encoder.layer")))
    assert as_toml(found) == (
        "# uniform: the student's 3 Layer of width 16; the teacher's 12 Layer of width 24\n"
        "[[losses]]\n"
        'type = "hidden_mse"\n'
        'student = "encoder.layer[0:3]"\n'
        'teacher = "bert.encoder.layer[3,7,11]"\n'
        'projection = "linear"'
    )
    assert as_data(found) == {
        "matches": [
            {
                "rule": "uniform",
                "student": "encoder.layer[0:3]",
                "teacher": "bert.encoder.layer[3,7,11]",
                "blocks": ((0, 3), (1, 7), (2, 11)),
                "widths": ((16, 24),) * 3,
                "comment": "uniform: the student's 3 Layer of width 16; the teacher's 12 Layer of width 24",
            }
        ],
        "losses": tomllib.loads(as_toml(found))["losses"],
    }
    assert json.loads(json.dumps(as_data(found)))["matches"][0]["blocks"][1] == [1, 7]


def test_equal_widths_need_no_projection():
    assert "projection" not in as_toml(match(layout(stack(3)), layout(stack(6))))


def test_two_stacks_are_two_tables():
    student = layout(stack(2, 16, "encoder.block"), stack(1, 16, "decoder.block"))
    teacher = layout(stack(4, 16, "model.encoder.layers"), stack(3, 24, "model.decoder.layers"))
    text = as_toml(match(student, teacher, "last"))
    assert text.count("# last: ") == 2
    assert tomllib.loads(text)["losses"] == [
        {"type": "hidden_mse", "student": "encoder.block[0:2]", "teacher": "model.encoder.layers[2:4]"},
        {
            "type": "hidden_mse",
            "student": "decoder.block[0]",
            "teacher": "model.decoder.layers[2]",
            "projection": "linear",
        },
    ]


@pytest.mark.parametrize(
    ("student", "rule", "selector"),
    [
        (1, "uniform", "groups.0#11"),
        (4, "uniform", "groups.0#2:12:3"),
        (5, "uniform", "hidden[3,5,8,10,12]"),
        (5, "last", "groups.0#7:12"),
    ],
)
def test_calls_of_a_shared_module(student, rule, selector):
    assert selectors(stack(student), stack(12, path="groups.0", shared=True), rule)[1] == selector


def test_calls_of_several_modules_have_aliases_only():
    spots = [Spot(f"groups.{group}", call) for group in (0, 1) for call in (0, 1)]
    groups = Stack("groups", "Group", tuple(Block(spot, (), (2, 7, 16)) for spot in spots))
    assert selectors(stack(2), groups)[1] == "hidden[2,4]"
    other = stack(1, path="other.layer")
    first, second = match(layout(stack(2), other), layout(groups, stack(3, path="decoder.layer")))
    assert (first.teacher, second.teacher) == ("groups.hidden[2,4]", "decoder.layer[2]")


def test_blocks_that_are_children_of_the_model():
    assert selectors(stack(2, path=""), stack(5, path="")) == ("{0,1}", "{2,4}")
    assert selectors(stack(1, path=""), stack(5, path="")) == ("0", "4")


def test_mistakes():
    one, two = layout(stack(3)), layout(stack(4, path="encoder.block"), stack(4, path="decoder.block"))
    assert mistake(one, two) == (
        "the student has 1 stack (encoder.layer), and the teacher 2 stacks (encoder.block, decoder.block);"
        " a layer map pairs them one to one"
    )
    assert mistake(layout(stack(6)), layout(stack(4, path="h"))) == (
        "the student is deeper: 6 blocks in 'encoder.layer', and the teacher has 4 in 'h'"
    )
    assert mistake(one, layout()) == ("the teacher, a Model, has no stack of equal blocks that a layer map could use")
    assert mistake(layout(), one).startswith("the student, a Model, has no stack")
    assert mistake(one, one, "unifrom") == "there is no layer map 'unifrom'; did you mean 'uniform'?"
    odd = layout(Stack("h", "Layer", (Block(Spot("h.0")),)))
    assert mistake(odd, one) == "the output of 'h.0' in the student is not a tensor with a shape"


def test_images_of_other_channels():
    sides = [Stack("stage", "Block", (Block(Spot("stage.0"), (), (2, width, 4, 4)),)) for width in (4, 8)]
    assert mistake(*map(layout, sides)) == (
        "the outputs of 'stage.0' in the student (2, 4, 4, 4) and of 'stage.0' in the teacher (2, 8, 4, 4) differ"
        " before the last dimension; hidden_mse compares position by position"
    )


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize(
    ("student", "teacher"), [("bert", "albert"), ("albert", "bert"), ("llama", "qwen3"), ("t5", "t5"), ("bart", "bart")]
)
def test_the_selectors_read_what_was_paired(transformer, student, teacher, rule):
    models = [transformer(name) for name in (student, teacher)]
    found = match(*(discover(model, lambda m=model, b=batch: m(**b)) for model, batch in models), rule)
    tables = tomllib.loads(as_toml(found))["losses"]
    for side, (model, batch) in zip(("student", "teacher"), models, strict=True):
        with Taps(model, {str(number): table[side] for number, table in enumerate(tables)}) as taps:
            taps.run(**batch)
        for number, match_ in enumerate(found):
            assert [tensor.shape[-1] for tensor in taps[str(number)]] == [16] * len(match_.blocks)


def test_the_selectors_read_the_right_blocks():
    student, teacher = (nn.Sequential(*(nn.Linear(2, 2) for _ in range(n))) for n in (2, 4))
    x = torch.randn(1, 2)
    (found,) = match(discover(student, lambda: student(x)), discover(teacher, lambda: teacher(x)))
    with Taps(teacher, {"t": found.teacher}) as taps:
        taps.run(x)
    assert torch.equal(taps["t"][0], teacher[:2](x))
    assert torch.equal(taps["t"][1], teacher(x))
