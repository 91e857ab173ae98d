"""The module tree: what it says, how it is drawn, and that the model is left alone."""

import attrs
import pytest
import torch
from torch import nn

from hookbrew.taps import Taps, outline, parse, render
from hookbrew.taps.resolve import resolve
from hookbrew.taps.selector import Range


def lines(model, *args, **kwargs):
    """The nodes by selector."""
    return {node.selector: node for _, node in outline(model, lambda: model(*args, **kwargs)).nodes()}


def facts(node):
    return node.name, node.kind, node.count, node.calls, node.shapes, node.parameters


def test_a_tree_with_difficult_names(stack):
    model, x = stack
    tree = outline(model, lambda: model(x))
    assert render(tree).splitlines() == [
        "module          class       parameters  selector       output",
        "model           Stack       170         :out           (3, 2)",
        "  layer[0:6]    Sequential  6 x 20      layer[0:6]     (3, 4)",
        "    [0]         Linear      20          layer[0:6][0]  (3, 4)",
        "    [1]         Tanh                    layer[0:6][1]  (3, 4)",
        "  heads.self    Linear      20          heads.self     (3, 4)",
        "  heads.output  Linear      20          heads.output   (3, 4)",
        "  first         Sequential  20          first          (3, 4)",
        "    [0]         Linear      20          first[0]       (3, 4)",
        "    [1]         Tanh                    first[1]       (3, 4)",
        "  logits        Linear      10          logits:out     (3, 2)",
        "",
        "hidden[0:7]  layer: 6 Sequential, hidden[0] is the input of the first",
        "logits       :out (3, 2)",
    ]


def test_bert_fits_on_a_screen(transformer):
    model, batch = transformer("bert")
    found = lines(model, **batch)
    assert len(found) == 32
    assert facts(found[":out"])[:5] == (
        "model",
        "BertForSequenceClassification",
        1,
        1,
        ("SequenceClassifierOutput{logits: (2, 3)}",),
    )
    layer = found["bert.encoder.layer[0:4]"]
    size = sum(p.numel() for p in model.bert.encoder.layer[0].parameters())
    assert facts(layer) == ("layer[0:4]", "BertLayer", 4, 1, ("(2, 7, 16)",), size)
    assert layer.path == "bert.encoder.layer.0"
    inner = found["bert.encoder.layer[0:4].attention.self"]
    assert facts(inner)[:5] == ("self", "BertSelfAttention", 1, 1, ("((2, 7, 16), None)",))
    assert "bert.encoder.layer" not in found


@pytest.mark.parametrize("name", ["bert", "distilbert", "albert", "gpt2", "llama", "vit", "t5"])
def test_every_selector_can_be_pasted(transformer, name):
    model, batch = transformer(name)
    found = lines(model, **batch)
    for selector, node in found.items():
        assert node.path == next(iter(resolve(model, parse(selector))))
        assert str(parse(selector)) == selector
    every = {node.path: str(attrs.evolve(parse(text), call=Range())) for text, node in found.items() if node.calls}
    with Taps(model, every) as taps:
        taps.run(**batch)
    for node in found.values():
        if node.calls and not node.shapes[0].startswith("((") and "{" not in node.shapes[0]:
            assert tuple(dict.fromkeys(str(tuple(tensor.shape)) for tensor in taps[node.path])) == node.shapes


def test_every_module_that_is_called_has_a_line(transformer):
    model, batch = transformer("t5")
    found = lines(model, **batch)
    paths = {path for text in found for path in resolve(model, parse(text))}
    containers = (nn.ModuleList, nn.ModuleDict)
    assert paths == {path for path, module in model.named_modules() if not isinstance(module, containers)}


def test_a_shared_module_says_how_often_it_runs(transformer):
    model, batch = transformer("albert")
    tree = outline(model, lambda: model(**batch))
    layer = "albert.encoder.albert_layer_groups[0].albert_layers[0]"
    assert {node.selector: node.calls for _, node in tree.nodes()}[layer] == 4
    assert "(2, 7, 16) x4" in render(tree)


def test_modules_that_are_never_called(cnn):
    model, x = cnn
    tree = outline(model, lambda: model(x))
    assert {node.selector for _, node in tree.nodes() if node.calls == 0} == {"spare"}
    assert [line.split() for line in render(tree).splitlines() if "spare" in line] == [
        ["spare", "Identity", "spare", "never", "called"]
    ]


def test_neighbours_with_other_shapes_or_classes_have_lines_of_their_own():
    layers = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 3), nn.Tanh(), nn.Tanh(), nn.Linear(3, 3)]
    model = nn.Sequential(nn.Sequential(*layers))
    assert list(lines(model, torch.zeros(1, 4))) == [":out", "0", "0[0:2]", "0[2]", "0[3]", "0[4:6]", "0[6]"]


def test_equal_modules_with_other_shapes_have_lines_of_their_own():
    model = nn.Sequential(nn.Sequential(nn.AvgPool1d(2), nn.AvgPool1d(2)))
    assert list(lines(model, torch.zeros(1, 1, 8))) == [":out", "0", "0[0]", "0[1]"]


def test_neighbours_at_the_top():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(3)), nn.Linear(2, 1))
    assert list(lines(model, torch.zeros(1, 2))) == [":out", "{0,1,2}", "{0,1,2}[0]", "3"]


def test_several_shapes():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return {"a": self.act(x), "b": [self.act(x[:1]), 3], "c": None, "d": self.act(x)}

    found = lines(Wide(), torch.zeros(2, 5))
    assert found[":out"].shapes == ("dict{a: (2, 5), b: ((1, 5), int), c: None, d: (2, 5)}",)
    assert found["act"].shapes == ("(2, 5)", "(1, 5)")
    assert found["act"].calls == 3


def test_nested_tensors():
    """They have no one shape. torch packs padded batches into them, but not while its functions are watched."""

    class Nest(nn.Module):
        def forward(self, x):
            return torch.nested.as_nested_tensor([x, x], layout=torch.jagged)

    model = nn.Sequential(Nest())
    tree = outline(model, lambda: model(torch.zeros(2, 3)))
    assert tree.root.shapes == ("nested",)
    assert tree.logits is None


def test_names_that_a_selector_cannot_write():
    model = nn.Sequential()
    model.add_module("a b", nn.Linear(2, 2))
    assert list(lines(model, torch.zeros(1, 2))) == [":out", "a?b"]


def test_the_model_is_left_alone(cnn, hooks):
    model, x = cnn
    model.train()
    model.stage[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = []

    def run():
        out = model(x)
        grads.append((out.requires_grad, model.stage[0].training))

    outline(model, run)
    assert grads == [(False, False)]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert hooks(model) == 0
    assert torch.is_grad_enabled()


def test_the_model_is_left_alone_after_an_error(cnn, hooks):
    model, _ = cnn
    model.train()
    with pytest.raises(RuntimeError):
        outline(model, lambda: model(torch.zeros(1, 99, 2, 2)))
    assert all(module.training for module in model.modules())
    assert hooks(model) == 0
    assert torch.is_grad_enabled()
