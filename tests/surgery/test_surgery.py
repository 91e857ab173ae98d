"""Swap, wrap and undo on plain models: names, ties, places, modes, optimizers."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import SurgeryError
from tests.surgery.conftest import Around, facts


def test_swap_replaces_every_name(net):
    new = nn.Linear(4, 4)
    assert hb.Surgery(net).swap("body[0]", new) == ["body.0", "first"]
    assert net.first is new
    assert net.body[0] is new


def test_swap_two_places_in_one_parent(net):
    hb.Surgery(net).swap("body[1]", nn.GELU())
    assert net.body[1] is net.body[3]
    assert isinstance(net.body[3], nn.GELU)


def test_undo_is_exact(net):
    ids = torch.arange(7)[None]
    net.eval()
    before, output = facts(net), net(ids)
    surgery = hb.Surgery(net)
    surgery.swap("body[0]", nn.Linear(4, 4))
    mark = surgery.mark
    middle = facts(net)
    surgery.wrap("body[2]", Around)
    surgery.swap("embed", nn.Embedding(7, 4))
    surgery.undo(mark)
    assert facts(net) == middle
    surgery.undo()
    assert facts(net) == before
    assert torch.equal(net(ids), output)


def test_new_modules_come_to_device_dtype_and_mode(net):
    net.double().eval()
    hb.Surgery(net).swap("body[0]", lambda path, old: nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    assert net.body[0][0].weight.dtype == torch.float64
    assert not net.body[0][1].training


def test_undo_brings_back_where_the_model_is_now(net):
    surgery = hb.Surgery(net)
    old = net.body[0]
    weight = old.weight
    surgery.swap("body[0]", nn.Linear(4, 4))
    net.double().eval()
    surgery.undo()
    assert net.body[0] is old
    assert old.weight is weight
    assert weight.dtype == torch.float64
    assert not old.training


@pytest.mark.parametrize("name", ["embed", "head"])
def test_swap_ties_again(net, name):
    surgery = hb.Surgery(net)
    old = net.embed.weight
    new = nn.Embedding(7, 4) if name == "embed" else nn.Linear(4, 7, bias=False)
    surgery.swap(name, new)
    assert net.head.weight is net.embed.weight is new.weight is not old
    surgery.undo()
    assert net.head.weight is net.embed.weight is old


def test_swap_of_both_ends_ties_them(net):
    def make(path, old):
        return nn.Embedding(7, 4) if path == "embed" else nn.Linear(4, 7, bias=False)

    hb.Surgery(net).swap("{embed,head}", make)
    assert net.head.weight is net.embed.weight


def test_a_tie_that_cannot_be_kept_is_refused(net):
    before = facts(net)
    with pytest.raises(SurgeryError) as caught:
        hb.Surgery(net).swap("embed", nn.Embedding(9, 4))
    assert str(caught.value) == (
        "'embed.weight' (7, 4) is tied to 'head.weight', and the new Embedding has no 'weight' of that shape;"
        " give it one, wrap the old module, or untie=True leaves 'head.weight' alone"
    )
    assert facts(net) == before
    weight = net.head.weight
    hb.Surgery(net).swap("embed", nn.Embedding(9, 4), untie=True)
    assert net.head.weight is weight


def test_wrap_keeps_ties_and_hooks(net):
    fired = []
    net.head.register_forward_hook(lambda *_: fired.append(1))
    hb.Surgery(net).wrap("head", Around)
    net(torch.arange(3)[None])
    assert net.head.base.weight is net.embed.weight
    assert fired == [1]


def test_hooks_are_not_lost(net):
    def spy(*_):
        pass

    handle = net.body[0].register_forward_hook(spy)
    with pytest.raises(SurgeryError) as caught:
        hb.Surgery(net).swap("body[0]", nn.Linear(4, 4))
    assert str(caught.value).startswith("'body.0' has 1 hook(s), which would never fire again: test_hooks_are_not_lost")
    handle.remove()
    hb.Surgery(net).swap("body[0]", nn.Linear(4, 4))


def test_typos_have_near_misses(net):
    with pytest.raises(SurgeryError, match="no child 'boddy'; did you mean 'body'"):
        hb.Surgery(net).swap("boddy[0]", nn.Identity())


def test_the_optimizer_follows(net):
    optimizer = torch.optim.AdamW(
        [
            {"params": [net.embed.weight]},
            {"params": [*net.body[0].parameters()], "lr": 0.5},
            {"params": [*net.body[2].parameters(), *net.norm.parameters()]},
        ]
    )
    net(torch.arange(7)[None]).sum().backward()
    optimizer.step()
    groups = [[*group["params"]] for group in optimizer.param_groups]
    lists = [group["params"] for group in optimizer.param_groups]
    state = [(key, id(value)) for key, value in optimizer.state.items()]
    surgery = hb.Surgery(net, optimizer)
    old = net.body[0].weight
    surgery.swap("body[0]", nn.Linear(4, 4))
    surgery.wrap("body[2]", Around)
    assert optimizer.param_groups[1]["params"] == [net.body[0].weight, net.body[0].bias]
    assert optimizer.param_groups[2]["params"][-1] is net.body[2].scale
    assert old not in optimizer.state
    surgery.undo()
    for group, then, same in zip(optimizer.param_groups, groups, lists, strict=True):
        assert [*map(id, group["params"])] == [*map(id, then)]
        assert group["params"] is same
    assert [(key, id(value)) for key, value in optimizer.state.items()] == state


def test_a_tag_is_made_once(net):
    surgery = hb.Surgery(net)
    paths = surgery.wrap("body[2]", Around, tag="mine")
    wrapped = net.body[2]
    assert surgery.wrap("body[2]", Around, tag="mine") == paths == ["body.2"]
    assert net.body[2] is wrapped
    with pytest.raises(SurgeryError, match="tag 'mine' is of another edit: wrap 'body\\[2\\]'"):
        surgery.wrap("body[0]", Around, tag="mine")


def test_undo_refuses_what_somebody_else_changed(net):
    surgery = hb.Surgery(net)
    surgery.swap("body[0]", nn.Linear(4, 4))
    net.body[2] = nn.Identity()
    with pytest.raises(SurgeryError) as caught:
        surgery.undo()
    assert str(caught.value) == (
        "swap 'body[0]' cannot be undone: the children of 'body' were changed since by somebody else"
    )


def test_open_taps_refuse(net):
    surgery = hb.Surgery(net)
    with hb.tap(net, x="body[0]"), pytest.raises(SurgeryError, match=r"taps are open on 'body\.0'; leave their"):
        surgery.swap("body[2]", nn.Identity())


def test_wrapped_models_are_refused(net):
    with pytest.raises(SurgeryError, match="the model is a DataParallel"):
        hb.Surgery(nn.DataParallel(net))
    with pytest.raises(SurgeryError, match="the model was compiled"):
        hb.Surgery(torch.compile(net, backend="eager"))


def test_an_edit_that_fails_leaves_all_as_it_was(net):
    before = facts(net)
    with pytest.raises(ZeroDivisionError):
        hb.Surgery(net).swap("body[0,2]", lambda path, old: nn.Linear(4, 4) if path == "body.0" else 1 / 0)
    assert facts(net) == before
