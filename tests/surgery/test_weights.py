"""What is trained, and weights that are drawn anew."""

import pytest
import torch
from torch import nn

from hookbrew import Surgery
from hookbrew.errors import SurgeryError
from tests.surgery.conftest import built, facts, model, outputs


def test_freeze_and_back(net):
    net(torch.arange(7)[None]).sum().backward()
    net.body[2].bias.requires_grad_(False).grad = None
    before = facts(net)
    surgery = Surgery(net)
    assert surgery.freeze("body") == ["body"]
    assert [p.requires_grad for p in net.body.parameters()] == [False] * 4
    assert [p.grad for p in net.body.parameters()] == [None] * 4
    assert net.head.weight.requires_grad
    surgery.unfreeze("body[2]")
    assert [p.requires_grad for p in net.body.parameters()] == [False, False, True, True]
    surgery.undo()
    assert facts(net) == before


def test_freezing_a_tied_weight_freezes_it_everywhere(net):
    Surgery(net).freeze("embed")
    assert not net.head.weight.requires_grad


def test_freeze_needs_a_parameter(net):
    with pytest.raises(SurgeryError) as caught:
        Surgery(net).freeze("body[1]")
    assert str(caught.value) == "freeze 'body[1]': no parameter that could be trained is in body.1"


def test_undo_refuses_a_flag_of_somebody_elses(net):
    surgery = Surgery(net)
    surgery.freeze("body[0]")
    net.first.bias.requires_grad_(True)
    with pytest.raises(SurgeryError, match=r"requires_grad of 'body\.0\.bias' was set to True since by somebody else"):
        surgery.undo()


def test_reset_draws_in_place_and_undo_brings_the_numbers_back(net):
    net.eval()
    before, said = facts(net), outputs("net", net)
    surgery = Surgery(net)
    surgery.reset("{body,norm}")
    assert facts(net) == before
    assert not torch.equal(outputs("net", net), said)
    surgery.undo()
    assert torch.equal(outputs("net", net), said)


def test_reset_follows_the_seed(net):
    def drawn():
        torch.manual_seed(5)
        surgery = Surgery(net)
        surgery.reset("body")
        weight = net.body[2].weight.detach().clone()
        surgery.undo()
        return weight

    assert torch.equal(drawn(), drawn())


def test_reset_forgets_what_the_optimizer_remembers(net):
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.arange(7)[None]).sum().backward()
    optimizer.step()
    states = {key: id(value) for key, value in optimizer.state.items()}
    surgery = Surgery(net, optimizer)
    surgery.reset("body")
    assert not {*net.body.parameters()} & {*optimizer.state}
    assert net.embed.weight in optimizer.state
    surgery.undo()
    assert {key: id(value) for key, value in optimizer.state.items()} == states


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_reset_draws_as_the_model_does(name):
    net = model(name)
    for parameter in net.parameters():
        parameter._is_hf_initialized = True  # as from_pretrained leaves them
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    Surgery(net).reset("*")
    for path, parameter in net.named_parameters():
        assert parameter._is_hf_initialized
        constant = before[path].unique().numel() == 1  # biases and norms are drawn as what they were
        assert torch.equal(parameter, before[path]) is constant, path
        assert abs(parameter.std().item() - built(name).get_parameter(path).std().item()) < 0.3 or constant


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(2))


def test_reset_refuses_what_nobody_can_draw():
    net = nn.Sequential(Odd())
    weight = net[0].linear.weight.detach().clone()
    with pytest.raises(SurgeryError) as caught:
        Surgery(net).reset("0")
    assert str(caught.value) == ("'0' cannot be reset: Odd has no reset_parameters(), and nobody else draws its scale")
    assert torch.equal(net[0].linear.weight, weight)
