"""`[[surgery]]`: edits of a configuration, through check, run, resume, stages and the files of the student."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hookbrew_plugins
from hookbrew.config import read, schema
from hookbrew.errors import ConfigError, ResumeError, SurgeryError
from hookbrew.factory import importing
from hookbrew.operate import operated
from hookbrew.plan import planned
from hookbrew.plugin import catalogue, hookimpl, options
from hookbrew.run import built, resume, run
from tests.surgery.edits.conftest import model

EDITS = """
[[surgery]]
type = "freeze"
path = "embed"

[[surgery]]
type = "swap"
path = "layers[1]"
module = { factory = "torch.nn:Sequential", args = { factory = "toyland:bottleneck" } }

[[surgery]]
type = "reset"
model = "teacher"
path = "head"
"""
PARTS = """

def bottleneck(width=8):
    return nn.Sequential(nn.Linear(width, 3), nn.Linear(3, width))


class Scaled(nn.Module):
    def __init__(self, old, scale=1.0):
        super().__init__()
        self.base, self.scale = old, nn.Parameter(torch.full((1,), scale))

    def forward(self, x):
        return self.base(x) * self.scale
"""
FREEZE = '[[surgery]]\ntype = "freeze"\npath = "embed"\n'
SWAP = '[[surgery]]\ntype = "swap"\npath = "layers[1]"\nmodule = { factory = "toyland:bottleneck" }\n'
WRAP = '[[surgery]]\ntype = "wrap"\npath = "head"\nmodule = { factory = "toyland:Scaled", scale = 2.0 }\n'
RESET = '[[surgery]]\ntype = "reset"\nmodel = "teacher"\npath = "head"\n'


@pytest.fixture
def edited(toy):
    """edited(text): toy.toml with more tables; the folder."""
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + PARTS)

    def add(text):
        with (toy / "toy.toml").open("a") as file:
            file.write("\n" + text)
        return toy

    return add


def prepared(known, sets=()):
    """The models as the training gets them."""
    return built(planned(read("toy.toml", sets), known, quiet=True), known)


def test_edits_are_made_in_order_when_models_are_built(edited, known):
    edited(FREEZE + SWAP + WRAP + RESET)
    with prepared(known) as (made,):
        student = made.distillation.student
        teacher = made.distillation.objective.parts[""].models["teacher"]
    assert [p.requires_grad for p in student.embed.parameters()] == [False]
    assert [type(m).__name__ for m in student.layers] == ["Linear", "Sequential"]
    assert student.head.scale.item() == 2.0
    assert teacher.layers[1].weight.shape == (12, 12)


def test_new_weights_follow_from_the_seed_and_their_table(edited, known):
    edited(SWAP + RESET)

    def weights(*sets):
        with prepared(known, sets) as (made,):
            return [made.distillation.student.layers[1][0].weight, made.distillation.student.embed.weight]

    assert all(map(torch.equal, weights(), weights()))
    assert not torch.equal(weights()[0], weights("seed=4")[0])


def test_a_frozen_student_is_saved_as_ever(edited, hookbrew):
    folder = edited(FREEZE)
    assert hookbrew("run", "toy.toml").exit_code == 0
    import toyland

    student = toyland.Net()
    saved = load_file(folder / "runs/toy/final/student.safetensors")
    student.load_state_dict(saved)
    torch.manual_seed(0)
    assert [*saved] == sorted(student.state_dict())


def test_frozen_weights_stay(edited, known):
    folder = edited(FREEZE)
    with prepared(known) as (made,):
        before = made.distillation.student.embed.weight.clone()
    run("toy.toml", catalogue=known, quiet=True)
    assert torch.equal(load_file(folder / "runs/toy/final/student.safetensors")["embed.weight"], before)


def test_a_swapped_student_loads_into_one_that_was_edited_alike(edited, known, hookbrew):
    import hookbrew as hb

    folder = edited(SWAP + WRAP)
    run("toy.toml", catalogue=known, quiet=True)
    import toyland

    student = toyland.Net()
    surgery = hb.Surgery(student)
    surgery.swap("layers[1]", toyland.bottleneck())
    surgery.wrap("head", toyland.Scaled)
    student.load_state_dict(load_file(folder / "runs/toy/final/student.safetensors"))


def test_resume_makes_the_same_edits(edited, known, train):
    edited(FREEZE + SWAP + WRAP + RESET)
    base = ["train.log_every=2"]
    whole, halves = train("whole", base=base), train("halves", [5], base=base)
    names = "final/student.safetensors"
    assert (whole / names).read_bytes() == (halves / names).read_bytes()


def test_resume_tells_that_an_edit_is_another(edited, known, hookbrew):
    edited(FREEZE)
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    said = []
    resume("runs/toy", ["surgery=[]", "train.epochs=2"], catalogue=known, quiet=True, say=said.append)
    assert "surgery[0].path: 'embed' before, not there now" in said[0]
    assert said[0].splitlines()[1].startswith("data: ")


def test_resume_of_another_model_is_refused(edited, known):
    edited(SWAP)
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    with pytest.raises(ResumeError) as caught:
        resume("runs/toy", ["surgery=[]", "train.epochs=2"], catalogue=known, quiet=True)
    assert str(caught.value) == (
        "the checkpoint is of another Net, which differs in layers.1.0.bias, layers.1.0.weight, layers.1.1.bias"
        " ... and 3 more; resume with the model that it was, its [[surgery]] included"
    )


def test_the_resolved_configuration_has_the_edits(edited, known):
    folder = edited(SWAP)
    run("toy.toml", catalogue=known, quiet=True)
    (made,) = planned(read(folder / "runs/toy/resolved.toml", []), known)[0].experiment.surgery
    assert (made.type, made.model, made.options.path) == ("swap", "student", "layers[1]")


def test_stages_share_the_edits(edited, known):
    folder = edited(SWAP + '[[stages]]\nname = "one"\ntrain = { epochs = 1 }\n[[stages]]\nname = "two"\n')
    run("toy.toml", catalogue=known, quiet=True)
    for stage in ("one", "two"):
        assert "layers.1.1.bias" in load_file(folder / f"runs/toy/{stage}/final/student.safetensors")


MISTAKES = {
    "an unknown edit": (
        FREEZE.replace("freeze", "freze"),
        "toy.toml:45:1: surgery[0].type: no edit called 'freze'; did you mean 'freeze'?",
    ),
    "an unknown option": (
        FREEZE.replace("path", "pth"),
        "toy.toml:46:1: surgery[0].pth: unknown key; did you mean 'path'? (it is required)",
    ),
    "no model of that name": (
        RESET.replace("teacher", "techer"),
        "toy.toml:46:1: surgery[0].model: there is no model 'techer'; did you mean 'teacher'?",
    ),
    "a model that is no name": (
        RESET.replace('"teacher"', "3"),
        "toy.toml:46:1: surgery[0].model: expected a string, got 3",
    ),
    "a path that names nothing": (
        FREEZE.replace("embed", "embd"),
        "toy.toml:46:1: surgery[0].path: selector 'embd' matches no module of Net. Stopped at the model: no child"
        " 'embd'; did you mean 'embed'?",
    ),
    "the second of two": (
        FREEZE + SWAP.replace("layers[1]", "layers[2]"),
        "toy.toml:49:1: surgery[1].path: selector 'layers[2]': index [2] out of range: 'layers' has 2 children (0..1)",
    ),
    "a factory that is not there": (
        SWAP.replace("bottleneck", "bottlneck"),
        "toy.toml:47:12: surgery[0].module.factory: toyland has no 'bottlneck'; did you mean 'bottleneck'?",
    ),
    "an argument that nobody takes": (
        WRAP.replace("scale", "scal"),
        "toy.toml:47:12: surgery[0].module.factory: toyland:Scaled takes no argument 'scal'; did you mean 'scale'?",
    ),
    "a factory that makes no module": (
        SWAP.replace("bottleneck", "samples"),
        "toy.toml:46:1: surgery[0].path: swap 'layers.1': expected a module, got list",
    ),
    "a wrapper that holds nothing": (
        WRAP.replace('"toyland:Scaled", scale = 2.0', '"torch.nn:Identity"'),
        "toy.toml:46:1: surgery[0].path: wrap 'head': the new Identity does not hold it; swap is what replaces it",
    ),
    "an element that is none": (
        '[[surgery]]\ntype = "remove"\npath = "head"\n',
        "toy.toml:46:1: surgery[0].path: remove 'head': the model is a Net, which calls it by name; only elements of a"
        " Sequential, ModuleList or ModuleDict can go; swap it for torch.nn.Identity()",
    ),
    "an edit in a stage": (
        '[[stages]]\n[[stages.surgery]]\ntype = "freeze"\npath = "embed"\n',
        "stages[0].surgery: all stages have this in common; write it above [[stages]]",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_mistake(edited, hookbrew, case, command):
    text, expected = MISTAKES[case]
    folder = edited(text)
    done = hookbrew(command, "toy.toml")
    assert done.exit_code == 2, done.output
    assert f"{expected}\n" in done.output
    assert not (folder / "runs").exists()


def test_check_tells_the_edits(edited, hookbrew):
    edited(FREEZE + RESET)
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 0, done.output
    assert "surgery on student: freeze embed\n" in done.output
    assert "surgery on teacher: reset head\n" in done.output


def test_a_student_that_could_not_be_saved_is_refused(edited, known):
    """transformers knows ties by name, and would say so at the end of the training."""
    edited(WRAP.replace('"head"', '"lm_head"') + SWAP.replace("layers[1]", "transformer.h[0].attn"))
    experiment = planned(read("toy.toml", []), known)[0].experiment
    with importing(experiment.pythonpath), pytest.raises(ConfigError) as caught:
        operated(experiment, model("gpt2"), "student")
    assert str(caught.value) == (
        "surgery[0].path: save_pretrained of GPT2LMHeadModel knows shared weights by name, and could not save it with"
        " other ties than it had (lm_head.base.weight, transformer.wte.weight); edit a module that shares none, or set"
        " tie_word_embeddings=False"
    )


def test_freezing_all_is_found(edited, hookbrew):
    edited(FREEZE.replace('"embed"', '"*"'))
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 2, done.output


@options
class Act:
    """What a plugin adds."""

    what: str

    def build(self):
        def edit(surgery):
            if self.what == "refuse":
                raise SurgeryError("it cannot be")
            if self.what == "fail":
                raise ZeroDivisionError
            if self.what == "mark":
                surgery.swap("layers[0]", lambda path, old: nn.Sequential(old))

        return edit


class Plugin:
    @hookimpl
    def hookbrew_register_edits(self, register):
        register("act", Act)


def acted(what):
    known = catalogue(discover=False, plugins=[hookbrew_plugins, Plugin()])
    with built(planned(read("toy.toml", [f"surgery=[{{type='act', what='{what}'}}]"]), known), known) as (made,):
        return made.distillation.student


def test_a_plugin_adds_an_edit(edited):
    edited("")
    assert type(acted("mark").layers[0]) is nn.Sequential


@pytest.mark.parametrize(
    ("what", "message"),
    [("refuse", "surgery[0]: it cannot be"), ("nothing", "surgery[0]: edit 'act' has changed nothing")],
)
def test_what_an_edit_refuses_is_told_at_its_table(edited, what, message):
    edited("")
    with pytest.raises(ConfigError) as caught:
        acted(what)
    assert message in str(caught.value)


def test_what_an_edit_raises_is_told_whose_it_is(edited):
    edited("")
    with pytest.raises(ZeroDivisionError) as caught:
        acted("fail")
    assert "raised by surgery[0], edit 'act'" in caught.value.__notes__


def test_the_schema_knows_edits(known):
    items = schema(known)["properties"]["surgery"]["items"]
    assert items["required"] == ["type"]
    assert {"freeze", "swap"} <= {*items["properties"]["type"]["enum"]}
    assert items["properties"]["model"]["default"] == "student"
    (swap,) = [b["then"] for b in items["allOf"] if b["if"]["properties"]["type"]["const"] == "swap"]
    assert {"path", "module", "model", "old", "untie", "type"} == {*swap["properties"]}
    assert swap["required"] == ["path", "module"]
