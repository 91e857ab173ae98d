"""Students on two ranks: gradients are those of one process, whatever the loss is made of, if it is tied."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ranks(launched):
    """ranks(case): the results of both ranks."""
    pytest.importorskip("transformers")
    return launched(Path(__file__).with_name("ranks.py"))


@pytest.mark.parametrize(
    "case",
    [
        "ddp logits",
        "ddp logits tied",
        "ddp tied",
        "ddp small buckets tied",
        "ddp static tied",
        "ddp unused tied",
        "ddp compiled tied",
        "fsdp bert tied",
        "fsdp inner tied",
        "fsdp stem tied",
        "fsdp kept inner tied",
        "fsdp blocks compiled tied",
    ],
)
def test_gradients_are_those_of_one_process(ranks, case):
    assert max(ranks(case)) < 1e-12


@pytest.mark.parametrize(
    "case", ["ddp loose once", "ddp static loose", "ddp bypassed", "fsdp stem loose", "fsdp kept inner loose"]
)
def test_gradients_that_nobody_averages(ranks, case):
    """The reason for the tether, and for running the wrapper: no error, and each rank has its own gradients."""
    assert min(ranks(case)) > 1e-3


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("ddp loose", "Expected to have finished reduction in the prior iteration before starting a new one."),
        ("ddp compiled loose", "Expected to have finished reduction in the prior iteration before starting a new one."),
        ("fsdp inner loose", "setStorage: sizes [4, 4], strides [4, 1], storage offset 0, "),
    ],
)
def test_losses_that_wrappers_refuse(ranks, case, says):
    for text in ranks(case):
        assert text.startswith(says)


def test_parameters_that_the_loss_does_not_reach(ranks):
    """DDP gives zeros, which weight decay acts upon; with find_unused_parameters there is no gradient, as elsewhere."""
    layers = ["block.2.inner", "block.2.outer", "head"]
    assert ranks("ddp zeros") == [[f"{layer}.{part}" for layer in layers for part in ("bias", "weight")]] * 2
    assert ranks("ddp unused zeros") == ranks("fsdp zeros") == [[], []]


def test_a_tap_sees_what_the_next_layer_gets_if_installed_after_sharding(ranks):
    low = {"out": "torch.bfloat16", "in": "torch.bfloat16", "inner": "torch.bfloat16"}
    assert ranks("dtypes early") == [low] * 2
    assert ranks("dtypes late") == [low | {"out": "torch.float32"}] * 2


@pytest.mark.parametrize("case", ["ddp stopped", "fsdp stopped"])
def test_only_without_grad_a_forward_stops_early(ranks, case):
    for refusal, stopped, difference in ranks(case):
        assert refusal == (
            "a model whose gradients are synchronised cannot stop early: ranks would wait for each other, or drift"
            " apart; run it under torch.no_grad(), or without stop=True"
        )
        assert stopped == [False, True, True]
        assert difference < 1e-6


def test_no_prefix_for_wrapped_students(ranks):
    expected = [f"block.{number}.inner" for number in range(3)]
    assert ranks("paths") == [[expected] * 3] * 2


def test_which_models_are_synced(ranks):
    expected = {"plain": False, "compiled": False, "ddp": True, "compiled ddp": True, "fsdp": True, "one block": True}
    assert ranks("synced") == [expected] * 2
