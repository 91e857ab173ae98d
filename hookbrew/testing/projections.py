"""What every projection does. `check_projection(Linear())` checks it all.

B batch, L tokens, S student features, D teacher features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.testing.kit import Kit, law, require

SIZES = ((4, 6), (6, 4), (5, 5))
"""(S, D): wider, narrower, equal."""
LEADING = ((3,), (2, 3))
"""What stands before the features: (B,), (B, L)."""


@attrs.frozen(eq=False)
class Map:
    """A projection, built for two sizes."""

    options: Any
    student: int
    teacher: int
    module: nn.Module
    offers: frozenset[str] = frozenset()

    def input(self, *leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random student features (..., S), the same at each call."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(*leading, self.student, generator=generator).to(dtype)

    def built(self, seed: int) -> nn.Module:
        """Another one of the same sizes, its weights drawn with this seed."""
        torch.manual_seed(seed)
        module: nn.Module = self.options.build(self.student, self.teacher)
        return module

    def __str__(self) -> str:
        return f"build({self.student}, {self.teacher})"


@law()
def is_module(map: Map) -> None:
    """build(S, D) gives an nn.Module with parameters to train, each of them finite."""
    require(isinstance(map.module, nn.Module), f"{map} gives a {type(map.module).__name__}, no nn.Module")
    trained = [parameter for parameter in map.module.parameters() if parameter.requires_grad]
    require(bool(trained), f"{map} has no parameter to train")
    require(all(bool(p.isfinite().all()) for p in trained), f"{map} has parameters that are not finite")


@law()
def maps_last_dimension(map: Map) -> None:
    """(..., S) becomes (..., D), finite, for pooled and for token features."""
    for leading in LEADING:
        output = map.module(map.input(*leading))
        shapes = f"{(*leading, map.student)} to {tuple(output.shape)}"
        require(output.shape == (*leading, map.teacher), f"{map} maps {shapes}")
        require(bool(output.isfinite().all()), f"{map} gives numbers that are not finite")


@law()
def gradient_passes(map: Map) -> None:
    """A gradient reaches the student through it, and each of its parameters."""
    student = map.input(*LEADING[-1]).requires_grad_()
    map.module(student).square().sum().backward()
    require(student.grad is not None and bool(student.grad.any()), f"{map} passes no gradient to the student")
    for name, parameter in map.module.named_parameters():
        require(not parameter.requires_grad or parameter.grad is not None, f"{map}: {name} gets no gradient")
    map.module.zero_grad()


@law()
def keeps_dtype(map: Map) -> None:
    """Made float64 or bfloat16, it gives what it gets."""
    for dtype in (torch.float64, torch.bfloat16):
        output = map.built(0).to(dtype)(map.input(*LEADING[0], dtype=dtype))
        require(output.dtype == dtype, f"{map} in {dtype} gives {output.dtype}")


@law()
def seeded(map: Map) -> None:
    """Its weights follow from torch's seed."""
    one, other = map.built(5).state_dict(), map.built(5).state_dict()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    require(not differ, f"{map}: the same seed gives other values of {', '.join(differ)}")


@law()
def state_restores(map: Map) -> None:
    """Its state_dict holds all that its output depends on."""
    restored = map.built(7)
    restored.load_state_dict(map.module.state_dict())
    given = map.input(*LEADING[-1])
    require(torch.equal(restored(given), map.module(given)), f"{map}: a loaded state_dict gives another output")


@law()
def input_untouched(map: Map) -> None:
    """The student's features are not changed."""
    given = map.input(*LEADING[-1])
    with torch.no_grad():
        map.module(given)
    require(torch.equal(given, map.input(*LEADING[-1])), f"{map} changes its input in place")


def maps(options: Any) -> Iterator[Map]:
    """One subject for each pair of sizes."""
    for student, teacher in SIZES:
        yield Map(options, student, teacher, options.build(student, teacher))


PROPERTIES = (
    is_module,
    maps_last_dimension,
    gradient_passes,
    keeps_dtype,
    seeded,
    state_restores,
    input_untouched,
)

check_projection = Kit("projection", maps, PROPERTIES)
"""check_projection(options, exempt=None): AssertionError unless the projection has all of PROPERTIES."""
