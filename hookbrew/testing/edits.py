"""What every edit does. `check_edit(Swap(path="layers[1].query", module=...))` checks it all, on a model of its own.

The model of the kit has what edits name: `embed`, `layers[0:3]` each with `query`, `value`, `act` and `norm`, `body`, a
Sequential of three, and `head`, whose weight is that of `embed`. B batch, L tokens, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.surgery import Surgery
from hookbrew.testing.kit import Kit, law, require


class Layer(nn.Module):
    """A layer with parts of the usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.act, self.norm = nn.GELU(), nn.LayerNorm(8)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, 8) to (B, L, 8)."""
        mixed: Tensor = self.norm(hidden + self.act(self.query(hidden)) * self.value(hidden))
        return mixed


class Model(nn.Module):
    """Embeds tokens (B, L), and gives scores (B, L, C); `last` is another name of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.last = self.layers[2]
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.embed.requires_grad_(True)
        self.layers[0].requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores of each token."""
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        scores: Tensor = self.head(self.body(hidden))
        return scores


@attrs.frozen(eq=False)
class Operation:
    """A model and the edit that is made on it."""

    options: Any
    model: nn.Module
    offers: frozenset[str] = frozenset()

    def make(self, model: nn.Module, seed: int = 3) -> Surgery:
        """The edit on a model, drawn with a seed."""
        torch.manual_seed(seed)
        surgery = Surgery(model)
        self.options.build()(surgery)
        return surgery


def facts(model: nn.Module) -> list[Any]:
    """What is the same, to the object and to the bit, of a model that is the same."""
    return [
        [(path, id(module), module.training) for path, module in model.named_modules(remove_duplicate=False)],
        [[*module._modules] for module in model.modules()],
        [(name, id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)],
        [(name, tensor.tolist()) for name, tensor in model.state_dict().items()],
    ]


def said(model: nn.Module) -> Tensor:
    """What a model says, in eval mode, of a few tokens."""
    mode = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        scores: Tensor = model(torch.arange(10).view(2, 5))
    for module, training in zip(model.modules(), mode, strict=True):
        module.training = training
    return scores


@law()
def changes_something(operation: Operation) -> None:
    """The model is another one afterwards, in its modules, weights, or in what is trained."""
    before = facts(operation.model)
    surgery = operation.make(operation.model)
    require(facts(operation.model) != before, "it changes nothing of the model")
    require(surgery.mark > 0, "it changes the model behind the back of its surgery, which cannot undo it")


@law()
def undone(operation: Operation) -> None:
    """Undoing gives the same objects, in the same order, with the same numbers."""
    before, spoken = facts(operation.model), said(operation.model)
    operation.make(operation.model).undo()
    require(facts(operation.model) == before, "undo does not give the model back: something was changed by hand")
    require(torch.equal(said(operation.model), spoken), "after undo, the model says something else")


@law()
def still_runs(operation: Operation) -> None:
    """The model runs as before: finite scores of the same shape, and a gradient for whatever is trained."""
    shape = said(operation.model).shape
    operation.make(operation.model)
    now = said(operation.model)
    require(now.shape == shape, f"scores {tuple(shape)} have become {tuple(now.shape)}")
    require(bool(now.isfinite().all()), "scores are not finite")
    if any(parameter.requires_grad for parameter in operation.model.parameters()):
        operation.model(torch.arange(10).view(2, 5)).sum().backward()


@law()
def seeded(operation: Operation) -> None:
    """What it draws follows from torch's seed."""
    models = [copy.deepcopy(operation.model) for _ in range(2)]
    for model in models:
        operation.make(model, seed=5)
    one, other = (model.state_dict() for model in models)
    require([*one] == [*other], "the same seed gives other names of weights")
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    require(not differ, f"the same seed gives other values of {', '.join(differ)}")


@law()
def shares_nothing(operation: Operation) -> None:
    """Two models that it edits share no weight: each call of build() gives an edit that makes modules anew."""
    models = [copy.deepcopy(operation.model) for _ in range(2)]
    for model in models:
        operation.make(model)
    one, other = ({*map(id, (*model.parameters(), *model.buffers()))} for model in models)
    require(not one & other, "two models that were edited share weights")


@law()
def keeps_places(operation: Operation) -> None:
    """In a model of float64 in eval mode, all is float64 and in eval mode afterwards."""
    model = operation.model.double().eval()
    operation.make(model)
    wrong = [name for name, tensor in model.named_parameters() if tensor.dtype != torch.float64]
    require(not wrong, f"in a float64 model, {', '.join(wrong)} are not")
    training = [path for path, module in model.named_modules() if module.training]
    require(not training, f"in a model in eval mode, {', '.join(training)} are in training mode")


def operations(options: Any) -> Iterator[Operation]:
    """One subject: the model of the kit; raises AssertionError for what is no edit."""
    require(callable(options.build()), "build() gives no function of a Surgery")
    yield Operation(options, Model())


PROPERTIES = (changes_something, undone, still_runs, seeded, shares_nothing, keeps_places)

check_edit = Kit("edit", operations, PROPERTIES)
"""check_edit(options, exempt=None): AssertionError unless the edit has all of PROPERTIES."""
