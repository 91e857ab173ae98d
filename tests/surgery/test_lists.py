"""Insertion into containers, and removal from them."""

import pytest
import torch
from torch import nn

from hookbrew import Surgery
from hookbrew.errors import SurgeryError
from tests.surgery.conftest import facts


def kinds(container):
    return [type(module).__name__ for module in container]


@pytest.mark.parametrize(
    ("path", "at"), [("body[0]", 0), ("body.0", 0), ("body[2]", 2), ("body[-1]", 3), ("body[4]", 4)]
)
def test_insert_before_an_element_or_at_the_end(net, path, at):
    before = facts(net)
    elements = [*net.body]
    surgery = Surgery(net)
    new = nn.LayerNorm(4)
    assert surgery.insert(path, new) == [f"body.{at}"]
    assert [*net.body] == [*elements[:at], new, *elements[at:]]
    assert [*net.body._modules] == ["0", "1", "2", "3", "4"]
    surgery.undo()
    assert facts(net) == before


def test_what_is_inserted_comes_to_its_neighbour(net):
    net.double()
    net.body[0].eval()
    Surgery(net).insert("body[0]", nn.LayerNorm(4))
    assert net.body[0].weight.dtype == torch.float64
    assert not net.body[0].training


def test_insert_into_an_empty_list_at_the_root():
    model = nn.Sequential()
    Surgery(model).insert("0", nn.ReLU())
    assert kinds(model) == ["ReLU"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("body[5]", "insert 'body[5]': 'body' has 4 children; expected 0..4, 4 for the end"),
        ("body", "insert 'body': expected the one position where the new module goes, like 'net[2]'"),
        ("body[*]", "insert 'body[*]': expected the one position where the new module goes, like 'net[2]'"),
        ("bdy[1]", "no child 'bdy'; did you mean 'body'?"),
        ("embed[1]", "insert 'embed[1]': 'embed' is a Embedding; expected a Sequential or ModuleList by number"),
    ],
)
def test_insert_refuses(net, path, message):
    with pytest.raises(SurgeryError) as caught:
        Surgery(net).insert(path, nn.ReLU())
    assert message in str(caught.value)


def test_the_optimizer_takes_what_is_inserted(net):
    optimizer = torch.optim.SGD([{"params": [net.embed.weight]}, {"params": [*net.body.parameters()]}])
    surgery = Surgery(net, optimizer)
    surgery.insert("body[1]", nn.LayerNorm(4))
    assert [*map(id, optimizer.param_groups[1]["params"][-2:])] == [*map(id, net.body[1].parameters())]
    surgery.undo()
    assert len(optimizer.param_groups[1]["params"]) == 4


def test_remove_takes_one_name_and_leaves_the_others(net):
    act, before = net.body[1], facts(net)
    surgery = Surgery(net)
    assert surgery.remove("body[1,2]") == ["body.1", "body.2"]
    assert kinds(net.body) == ["Linear", "ReLU"]
    assert net.body[1] is act
    assert [*net.body._modules] == ["0", "1"]
    surgery.undo()
    assert facts(net) == before


def test_remove_from_a_dict_keeps_the_other_keys():
    model = nn.ModuleDict({"a": nn.ReLU(), "b": nn.GELU(), "c": nn.Tanh()})
    surgery = Surgery(model)
    surgery.remove("b")
    assert [*model] == ["a", "c"]
    surgery.undo()
    assert [*model] == ["a", "b", "c"]


def test_remove_refuses_what_is_called_by_name(net):
    with pytest.raises(SurgeryError, match="remove 'head': the model is a Net, which calls it by name"):
        Surgery(net).remove("head")


def test_remove_refuses_hooks_of_what_goes_and_not_of_what_stays(net):
    net.body[1].register_forward_hook(lambda *_: None)
    Surgery(net).remove("body[1]")  # it is still body[2], which was body[3]
    net.body[1].register_forward_hook(lambda *_: None)
    with pytest.raises(SurgeryError, match=r"'body\.1' has 1 hook"):
        Surgery(net).remove("body[1]")
