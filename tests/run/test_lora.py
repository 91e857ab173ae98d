"""Adapters of low rank in a whole run: what is trained, what is left, and that it goes on exactly."""

import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import hookbrew as hb
from hookbrew.cli import main
from hookbrew.errors import ConfigError, PreemptedError, SurgeryError
from hookbrew.run import resume, run
from hookbrew_plugins.edits.lora import Lora
from tests.run.compare import end, require_equal

peft = pytest.importorskip("peft")

LORA = "{type='lora', path='layers[*]', rank=2%s}"
LOSSES = "losses=[{type='kd_ce'}]"


def sets(name, more="", callbacks=""):
    return [f"output=runs/{name}", f"surgery=[{LORA % more}]", LOSSES, "optimizer.lr=0.1", f"callbacks=[{callbacks}]"]


def born():
    """The student as the configuration draws it."""
    from toyland import Net

    from hookbrew.loop import mix

    torch.manual_seed(mix(3, "student"))
    return Net()


def test_a_run_leaves_a_plain_student(toy, known):
    """It loads where there is no peft, and the best does; what is not adapted is as it was, and so is all else."""
    state = run("toy.toml", sets("toy", callbacks="{type='best'}"), catalogue=known, quiet=True)
    final, best = (load_file(toy / f"runs/toy/{name}/student.safetensors") for name in ("final", "best"))
    plain = born()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, final[name]) == (name not in ("layers.0.weight", "layers.1.weight"))
    for weights in (final, best):
        plain.load_state_dict(weights)
    plain.load_state_dict(final)
    assert all(type(module) is torch.nn.Linear for module in state.student.layers)
    assert [*state.student.state_dict()] == [*plain.state_dict()]
    ids = torch.arange(1, 13).view(3, 4)
    mask = torch.ones_like(ids)
    assert torch.equal(plain.eval()(ids, mask), state.student.eval()(ids, mask))
    difference = final["layers.0.weight"] - born().state_dict()["layers.0.weight"]
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2


def test_the_merged_student_says_what_the_adapted_one_said(toy, known):
    state = run("toy.toml", [*sets("toy"), "train.evaluate_every=100"], catalogue=known, quiet=True)
    adapted = run(
        "toy.toml", [*sets("adapted", ", merge=false"), "train.evaluate_every=100"], catalogue=known, quiet=True
    )
    ids = torch.arange(1, 13).view(3, 4)
    one, other = (model.eval()(ids, torch.ones_like(ids)) for model in (state.student, adapted.student))
    assert torch.allclose(one, other, rtol=0, atol=1e-6)
    names = load_file(toy / "runs/adapted/final/student.safetensors")
    assert "layers.0.lora_A.default.weight" in names


@pytest.mark.parametrize("evaluate", [1, 100])
def test_resuming_is_exact(toy, known, evaluate):
    """With a merge at the end of each evaluation, and without one."""
    more = [f"train.evaluate_every={evaluate}"]
    run("toy.toml", [*sets("whole", callbacks="{type='checkpoint', every=2}"), *more], catalogue=known, quiet=True)
    strike = "{type='strike', at=[5]}, {type='checkpoint', every=2}"
    with pytest.raises(PreemptedError):
        run("toy.toml", [*sets("cut", callbacks=strike), *more], catalogue=known, quiet=True)
    resume("runs/cut", catalogue=known, quiet=True, require="exact")
    require_equal(end(toy / "runs/cut"), end(toy / "runs/whole"))
    one, other = (load_file(toy / f"runs/{name}/final/student.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_modules_that_are_trained_too(toy, known):
    run("toy.toml", sets("toy", ", train=['head']"), catalogue=known, quiet=True)
    final, plain = load_file(toy / "runs/toy/final/student.safetensors"), born().state_dict()
    moved = {name for name in plain if not torch.equal(final[name], plain[name])}
    assert moved == {"layers.0.weight", "layers.1.weight", "head.weight", "head.bias"}


def test_stages_keep_adapters(toy, known):
    text = (toy / "toy.toml").read_text()
    (toy / "toy.toml").write_text(text + "\n[[stages]]\nname = 'a'\n\n[[stages]]\nname = 'b'\n")
    with pytest.raises(ConfigError) as caught:
        run("toy.toml", [f"surgery=[{LORA % ''}]"], catalogue=known, quiet=True)
    assert "surgery[0]: edit 'lora' goes on to the end of a run, and there are several stages; write merge = false" in (
        str(caught.value)
    )


def test_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SurgeryError) as caught:
        Lora(path="0").build()(hb.Surgery(torch.nn.Sequential(torch.nn.Linear(2, 2))))
    assert str(caught.value) == "edit 'lora' needs peft: pip install 'hookbrew[lora]'"


def test_what_peft_does_not_adapt():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    surgery = hb.Surgery(model)
    with pytest.raises(SurgeryError, match="peft adapts no LayerNorm: Target module"):
        Lora(path="1").build()(surgery)


def test_gpt2_has_its_weights_turned():
    """Conv1D has (in, out): merged and adapted say the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from hookbrew.loop import State
    from hookbrew_plugins.edits.merge import Merge

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=30, n_positions=12)).eval()
    keys = [*model.state_dict()]
    Lora(path="transformer.h[*].attn.c_attn").build()(hb.Surgery(model))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(10).view(2, 5)
    before, weight = model(ids).logits, model.transformer.h[0].attn.c_attn.get_base_layer().weight.clone()
    state = State(
        student=model,
        teacher=None,
        extras=torch.nn.ModuleDict(),
        device=torch.device("cpu"),
        total_steps=1,
        total_epochs=None,
        announce=print,
    )
    merge = Merge()
    merge.run_start(state)
    merge.eval_end(state)
    assert [*model.state_dict()] == keys
    assert torch.allclose(model(ids).logits, before, rtol=0, atol=1e-4)
    merge.step_start(state)
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(model.transformer.h[0].attn.c_attn.get_base_layer().weight, weight)


def test_what_is_left_is_exported_and_compared(toy, known):
    """Without adapters in the model that is made for it."""
    from hookbrew.export import export

    run("toy.toml", sets("toy"), catalogue=known, quiet=True)
    export("runs/toy", "out", format="torch-export")
    done = CliRunner().invoke(main, ["compare", "runs/toy", "--batch-sizes", "none", "--quiet"], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
