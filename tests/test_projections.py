"""Projections that the user's own function makes, in Python and by factory in a file."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import ConfigError
from hookbrew.objective.projection import require_mapped


class Bottleneck(nn.Module):
    """Down to `hidden` features, and up again."""

    def __init__(self, student, teacher, hidden=4):
        super().__init__()
        self.down, self.up = nn.Linear(student, hidden), nn.Linear(hidden, teacher)

    def forward(self, features):
        return self.up(torch.relu(self.down(features)))


@pytest.fixture
def pair(tagger):
    return tagger(12), tagger(8)


@pytest.fixture
def fitted(pair, batches, pack):
    """Train one step with a projection; the distillation."""

    def run(projection, student="blocks[0]"):
        losses = [hb.loss("hidden_mse", student=student, teacher=student, projection=projection)]
        made = hb.Distillation(*pair, losses, catalogue=pack)
        made.fit(batches([3, 2]), steps=1)
        return made

    return run


def test_a_function_makes_the_projection(fitted):
    run = fitted(Bottleneck)
    ((name, module),) = run.objective.extras.items()
    assert (name, type(module)) == ("hidden_mse/Bottleneck", Bottleneck)
    assert (module.down.in_features, module.up.out_features) == (8, 12)


def test_a_factory_by_name_as_in_a_file(fitted, tmp_path, monkeypatch):
    (tmp_path / "mapland.py").write_text(
        "from torch.nn import Linear\n\ndef made(student, teacher, bias):\n    return Linear(student, teacher, bias)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = fitted({"factory": "mapland:made", "bias": False})
    (module,) = run.objective.extras.values()
    assert module.bias is None
    with pytest.raises(ConfigError) as caught:
        fitted({"factory": "mapland:mode", "bias": False})
    assert str(caught.value) == "losses[0].projection.factory: mapland has no 'mode'; did you mean 'made'?"


def test_each_pair_has_one_of_its_own(fitted):
    run = fitted(lambda student, teacher: Bottleneck(student, teacher, hidden=2), student="blocks[0:2]")
    one, other = run.objective.extras.values()
    assert one is not other
    assert one.down.out_features == 2


def test_it_is_trained(pair, batches, pack):
    losses = [hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]", projection=Bottleneck)]
    run = hb.Distillation(*pair, losses, catalogue=pack)
    run.fit(batches([3, 2]), steps=1)
    before = [p.detach().clone() for p in run.objective.extras.parameters()]
    run.fit(batches([3, 2]), steps=1)
    assert not any(map(torch.equal, before, run.objective.extras.parameters()))


def keyword(student, wide):
    return nn.Linear(student, wide)


class Noisy(nn.Module):
    """Changes and draws random numbers whenever it is called in training mode."""

    def __init__(self, student, teacher):
        super().__init__()
        self.map, self.norm = nn.Linear(student, teacher), nn.BatchNorm1d(student)

    def forward(self, features):
        made = self.map(self.norm(features.flatten(0, -2))).view(*features.shape[:-1], -1)
        return made + torch.randn(made.shape)


class Pairing(nn.Identity):
    """Gives a tuple."""

    def forward(self, features):
        return features, features


@pytest.mark.parametrize(
    ("projection", "message"),
    [
        (
            keyword,
            "it is called with student= and teacher=, the widths: "
            "keyword() got an unexpected keyword argument 'teacher'",
        ),
        (lambda student, teacher: None, "<lambda> gave a NoneType; expected a torch module"),
        (
            lambda student, teacher: nn.Linear(student, teacher + 1),
            "loss 'hidden_mse' projects the student's (2, 3, 8) to (2, 3, 12), and Linear gave (2, 3, 13)",
        ),
        (
            lambda student, teacher: nn.Sequential(nn.Linear(student, teacher), nn.Flatten()),
            "loss 'hidden_mse' projects the student's (2, 3, 8) to (2, 3, 12), and Sequential gave (2, 36)",
        ),
        (
            lambda student, teacher: nn.Linear(teacher, student),
            "loss 'hidden_mse' projects the student's (2, 3, 8) to (2, 3, 12), and Linear failed: "
            "mat1 and mat2 shapes cannot be multiplied (6x8 and 12x8)",
        ),
        (
            lambda student, teacher: Pairing(),
            "loss 'hidden_mse' projects the student's (2, 3, 8) to (2, 3, 12), and Pairing gave a tuple",
        ),
    ],
)
def test_what_does_not_map_one_width_to_the_other(fitted, projection, message):
    with pytest.raises(ConfigError) as caught:
        fitted(projection)
    assert str(caught.value) == f"losses[0].projection: {message}"


def test_a_mistake_inside_the_function_is_its_own(fitted):
    def broken(student, teacher):
        return {}[student]

    with pytest.raises(KeyError) as caught:
        fitted(broken)
    assert caught.value.__notes__ == ["raised by losses[0].projection"]

    def mistyped(student, teacher):
        return len(student)

    with pytest.raises(TypeError, match="has no len"):
        fitted(mistyped)


def test_a_module_made_before_is_refused():
    with pytest.raises(ConfigError) as caught:
        hb.loss("hidden_mse", projection=nn.Linear(8, 12))
    assert str(caught.value) == (
        "loss 'hidden_mse': projection: expected a function that makes a module of student= and teacher=, "
        "the widths; got a Linear"
    )


def test_trying_it_changes_nothing_of_it():
    module = Noisy(8, 12)
    random = torch.get_rng_state()
    require_mapped("mine", module, torch.randn(2, 3, 8, generator=torch.Generator()), 12)
    assert module.training
    assert module.norm.num_batches_tracked == 0
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)
