"""Swap, wrap and undo on plain models: names, ties, places, modes, optimizers."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew import Surgery
from hookbrew.errors import SurgeryError
from tests.surgery.edits.conftest import Around, facts


def test_swap_replaces_every_name(net):
    new = nn.Linear(4, 4)
    assert Surgery(net).swap("body[0]", new) == ["body.0", "first"]
    assert net.first is new
    assert net.body[0] is new


def test_swap_two_places_in_one_parent(net):
    Surgery(net).swap("body[1]", nn.GELU())
    assert net.body[1] is net.body[3]
    assert isinstance(net.body[3], nn.GELU)


def test_undo_is_exact(net):
    ids = torch.arange(7)[None]
    net.eval()
    before, output = facts(net), net(ids)
    surgery = Surgery(net)
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
    Surgery(net).swap("body[0]", lambda path, old: nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    assert net.body[0][0].weight.dtype == torch.float64
    assert not net.body[0][1].training


def test_undo_brings_back_where_the_model_is_now(net):
    surgery = Surgery(net)
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
    surgery = Surgery(net)
    old = net.embed.weight
    new = nn.Embedding(7, 4) if name == "embed" else nn.Linear(4, 7, bias=False)
    surgery.swap(name, new)
    assert net.head.weight is net.embed.weight is new.weight is not old
    surgery.undo()
    assert net.head.weight is net.embed.weight is old


def test_swap_of_both_ends_ties_them(net):
    def make(path, old):
        return nn.Embedding(7, 4) if path == "embed" else nn.Linear(4, 7, bias=False)

    Surgery(net).swap("{embed,head}", make)
    assert net.head.weight is net.embed.weight


def test_a_tie_that_cannot_be_kept_is_refused(net):
    before = facts(net)
    with pytest.raises(SurgeryError) as caught:
        Surgery(net).swap("embed", nn.Embedding(9, 4))
    assert str(caught.value) == (
        "'embed.weight' (7, 4) is tied to 'head.weight', and the new Embedding has no 'weight' of that shape;"
        " give it one, wrap the old module, or untie=True leaves 'head.weight' alone"
    )
    assert facts(net) == before
    weight = net.head.weight
    Surgery(net).swap("embed", nn.Embedding(9, 4), untie=True)
    assert net.head.weight is weight


def test_wrap_keeps_ties_and_hooks(net):
    fired = []
    net.head.register_forward_hook(lambda *_: fired.append(1))
    Surgery(net).wrap("head", Around)
    net(torch.arange(3)[None])
    assert net.head.base.weight is net.embed.weight
    assert fired == [1]


def test_hooks_are_not_lost(net):
    def spy(*_):
        pass

    handle = net.body[0].register_forward_hook(spy)
    with pytest.raises(SurgeryError) as caught:
        Surgery(net).swap("body[0]", nn.Linear(4, 4))
    assert str(caught.value).startswith("'body.0' has 1 hook(s), which would never fire again: test_hooks_are_not_lost")
    handle.remove()
    Surgery(net).swap("body[0]", nn.Linear(4, 4))


def test_typos_have_near_misses(net):
    with pytest.raises(SurgeryError, match="no child 'boddy'; did you mean 'body'"):
        Surgery(net).swap("boddy[0]", nn.Identity())


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
    surgery = Surgery(net, optimizer)
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


def test_a_new_parameter_stands_where_the_one_of_its_name_stood(net):
    """By its own name, not by that of its module: weights and biases are often in groups of their own."""
    weights = [net.body[0].weight, net.body[2].weight, net.embed.weight]
    optimizer = torch.optim.SGD(
        [{"params": [net.body[0].bias, net.body[2].bias], "weight_decay": 0.0}, {"params": weights}], lr=0.1
    )
    Surgery(net, optimizer).swap("body[0]", nn.Linear(4, 4))
    assert optimizer.param_groups[0]["params"][0] is net.body[0].bias
    assert optimizer.param_groups[1]["params"][0] is net.body[0].weight
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 3]


def test_a_tag_is_made_once(net):
    surgery = Surgery(net)
    paths = surgery.wrap("body[2]", Around, tag="mine")
    wrapped = net.body[2]
    assert surgery.wrap("body[2]", Around, tag="mine") == paths == ["body.2"]
    assert net.body[2] is wrapped
    with pytest.raises(SurgeryError, match="tag 'mine' is of another edit: wrap 'body\\[2\\]'"):
        surgery.wrap("body[0]", Around, tag="mine")


def test_undo_refuses_what_somebody_else_changed(net):
    surgery = Surgery(net)
    surgery.swap("body[0]", nn.Linear(4, 4))
    net.body[2] = nn.Identity()
    with pytest.raises(SurgeryError) as caught:
        surgery.undo()
    assert str(caught.value) == (
        "swap 'body[0]' cannot be undone: the children of 'body' were changed since by somebody else"
    )


def test_open_taps_refuse(net):
    surgery = Surgery(net)
    with hb.tap(net, x="body[0]"), pytest.raises(SurgeryError, match=r"taps are open on 'body\.0'; leave their"):
        surgery.swap("body[2]", nn.Identity())


def test_wrapped_models_are_refused(net):
    with pytest.raises(SurgeryError, match="the model is a DataParallel"):
        Surgery(nn.DataParallel(net))
    with pytest.raises(SurgeryError, match="the model was compiled"):
        Surgery(torch.compile(net, backend="eager"))


def test_an_edit_that_fails_leaves_all_as_it_was(net):
    before = facts(net)
    with pytest.raises(ZeroDivisionError):
        Surgery(net).swap("body[0,2]", lambda path, old: nn.Linear(4, 4) if path == "body.0" else 1 / 0)
    assert facts(net) == before


def test_a_module_that_would_hold_itself_is_refused(net):
    """`body[0]` is another name of `first`."""
    for selector in ("first", "body[0]"):
        with pytest.raises(SurgeryError) as caught:
            Surgery(net).swap(selector, net.body)
        path = "first" if selector == "first" else "body.0"
        assert str(caught.value) == f"swap '{path}': the new Sequential holds a module that would hold it"
    with pytest.raises(SurgeryError, match="insert 'body\\[1\\]': the new Sequential holds the container itself"):
        Surgery(net).insert("body[1]", nn.Sequential(net.body))


def test_one_module_for_several_places_is_refused(net):
    with pytest.raises(SurgeryError, match="names 2 modules, which would share one; give a function of path"):
        Surgery(net).swap("body[0,2]", nn.Linear(4, 4))


def test_one_inside_the_other_is_refused(net):
    with pytest.raises(SurgeryError) as caught:
        Surgery(net).swap("**", lambda path, old: nn.Identity())
    assert str(caught.value) == "selector '**': 'body.0' is inside 'body'; edit one after the other"


def test_hooks_of_torchs_own_go_with_their_module(net):
    torch.nn.utils.spectral_norm(net.body[2])
    Surgery(net).swap("body[2]", nn.Linear(4, 4))


def test_a_model_on_meta_needs_a_module_with_weights(net):
    with pytest.raises(SurgeryError, match="the new module has no weights, it is on the meta device"):
        Surgery(net).swap("body[2]", nn.Linear(4, 4, device="meta"))


def test_names_in_the_optimizer_follow(net):
    optimizer = torch.optim.SGD(net.named_parameters())
    names = [*optimizer.param_groups[0]["param_names"]]
    surgery = Surgery(net, optimizer)
    surgery.wrap("body[2]", Around)
    assert optimizer.param_groups[0]["param_names"][-1] == "body.2.scale"
    surgery.undo()
    assert optimizer.param_groups[0]["param_names"] == names


def test_the_optimizer_of_somebody_else(net):
    optimizer = torch.optim.SGD(net.parameters())
    surgery = Surgery(net, optimizer)
    surgery.swap("body[2]", nn.Linear(4, 4))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    surgery.undo()
    assert len(optimizer.param_groups) == 2
    surgery.swap("body[2]", nn.Linear(4, 4))
    optimizer.param_groups[0]["params"].pop()
    with pytest.raises(SurgeryError, match="the optimizer's groups were changed since by somebody else"):
        surgery.undo()


def test_training_goes_on_between_edits_and_undo(net):
    """What stays keeps what it has learned; what comes back is as it left."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        net(torch.arange(7)[None]).square().sum().backward()
        optimizer.step()

    step()
    surgery = Surgery(net, optimizer)
    old = net.body[2]
    weight, embed = old.weight.detach().clone(), net.embed.weight.detach().clone()
    surgery.swap("body[2]", nn.Linear(4, 4))
    made = net.body[2].weight.detach().clone()
    step()
    assert not torch.equal(net.body[2].weight, made)
    surgery.undo()
    assert torch.equal(old.weight, weight)
    assert not torch.equal(net.embed.weight, embed)
    assert optimizer.state[net.embed.weight]["step"].item() == 2
    assert optimizer.state[old.weight]["step"].item() == 1
    step()
    assert not torch.equal(old.weight, weight)


def test_recurrent_layers_run_with_a_weight_that_was_tied_again():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.LSTM(3, 3), nn.LSTM(3, 3)
            self.two.weight_hh_l0 = self.one.weight_hh_l0

    model = Two()
    new = nn.LSTM(3, 3)
    surgery = Surgery(model)
    surgery.swap("one", new)
    x = torch.ones(2, 1, 3)
    model.two.weight_ih_l0.data.copy_(new.weight_ih_l0)
    model.two.bias_ih_l0.data.copy_(new.bias_ih_l0)
    model.two.bias_hh_l0.data.copy_(new.bias_hh_l0)
    assert torch.equal(model.two(x)[0], new(x)[0])


def test_with_takes_all_back(net):
    before = facts(net)
    with Surgery(net) as surgery:
        surgery.swap("body[0]", nn.Identity())
        assert facts(net) != before
    assert facts(net) == before


def test_undo_to_a_mark_that_is_not_there(net):
    with pytest.raises(SurgeryError, match=r"undo to 3: there are 0 edits; expected 0\.\.0"):
        Surgery(net).undo(3)


def test_half_an_edit_is_taken_back(net):
    """A module that takes no other weight stops the tying of a third one, after the second has its new weight."""

    class Stubborn(nn.Linear):
        def __setattr__(self, name, value):
            if name == "weight" and "weight" in self._parameters and self._parameters["bias"] is None:
                raise RuntimeError("mine")
            super().__setattr__(name, value)

    net.other = Stubborn(4, 7, bias=False)
    net.other._parameters["weight"] = net.embed.weight
    before = facts(net)
    with pytest.raises(RuntimeError, match="mine"):
        Surgery(net).swap("embed", nn.Embedding(7, 4))
    assert facts(net) == before
