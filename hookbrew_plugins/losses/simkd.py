"""A student that learns the features before the teacher's classifier, to predict with that classifier itself.

B batch, L tokens, D features of the teacher, S of the student; maps have C channels, height H and width W.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from hookbrew.errors import ObjectiveError
from hookbrew.objective import valid_mean
from hookbrew.plugin import at_least, options
from hookbrew_plugins.losses.measured import Measured
from hookbrew_plugins.losses.shapes import blanked, named, require_mask, widened

NARROWEST = 8
"""The least width inside a projector."""


@options
class SimKD:
    """Mean squared difference of the student's last features, through a projector that is learned, and the teacher's.

    Knowledge distillation with the reused teacher classifier (Chen et al. 2022, eq. 3): name on both sides what goes
    into the classifier, as in `fc:in`, or the maps before they are pooled. It is the only loss of the authors' recipe.
    The trained student predicts with its projector and the teacher's classifier: see `Reused`.
    """

    takes: ClassVar[str] = "features"
    exempt: ClassVar[dict[str, str]] = {
        "zero_at_agreement": "the projector is learned, and no identity at first",
        "flat_at_agreement": "the projector is learned, and no identity at first",
    }

    factor: int = at_least(1, 2)
    """The projector is D / factor wide inside, 8 at least: the norm of a few features leaves nothing of them."""
    rectify: bool | None = None
    """Whether the projector ends with a norm and a ReLU, for a teacher whose features are none below 0; left out:
    those of maps do, as the authors', and those of vectors and tokens do not."""

    def build(self) -> Transfer:
        """The loss, a module of student, teacher and mask that is trained."""
        return Transfer(self.factor, self.rectify)


class Transfer(Measured):
    """mean_d (projector(student)_d - teacher_d)^2, mean over valid positions.

    `projector` is made at the first forward. For vectors and tokens it is linear (S to D / factor), norm, ReLU, linear,
    norm, ReLU, linear (to D), with layer norms, which see one token alone. For maps they are convolutions 1x1, 3x3, 1x1
    with batch norms, behind a pooling to the smaller of both maps.
    """

    projector: nn.Module | None

    def __init__(self, factor: int, rectify: bool | None) -> None:
        super().__init__()
        self.factor, self.rectify = factor, rectify
        self.projector = None

    def make(self, *sizes: int) -> None:
        """The projector for S, D and, of maps, the height and width of both."""
        student, teacher, *extent = sizes
        inside = max(NARROWEST, teacher // self.factor)
        rectified = bool(extent) if self.rectify is None else self.rectify
        chain = mapped(student, teacher, inside, rectified) if extent else vector(student, teacher, inside, rectified)
        self.projector = nn.Sequential(nn.AdaptiveAvgPool2d((extent[0], extent[1])), *chain) if extent else chain

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """A scalar. student, teacher: (B, D), (B, L, D) or (B, C, H, W), each with its own D, or C, H and W; the
        teacher receives no gradient. mask: bool (B,) or (B, L), not for maps.

        Raises ObjectiveError when the shapes do not fit.
        """
        require_alike(student, teacher)
        student, teacher = widened(student), widened(teacher.detach())
        if student.dim() == 4:
            return self.of_maps(student, teacher, mask)
        require_mask(student, mask)
        self.measure(student, student.shape[-1], teacher.shape[-1])
        assert self.projector is not None
        error = self.projector(blanked(student, mask)) - blanked(teacher, mask)
        return valid_mean(error.square().mean(dim=-1), mask)

    def of_maps(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of (B, C, H, W): the projector pools the student's map, and the teacher's is pooled to fit it."""
        if mask is not None:
            raise ObjectiveError(
                f"a mask of positions says nothing about a map {tuple(student.shape)}; write mask = false"
            )
        extent = [min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True)]
        self.measure(student, student.shape[1], teacher.shape[1], *extent)
        assert self.projector is not None
        ours = self.projector(student)
        apart: Tensor = (ours - adaptive_avg_pool2d(teacher, ours.shape[2:])).square()
        return apart.mean()


class Reused(nn.Module):
    """A trained student that predicts with the teacher's classifier, with nothing of hookbrew left in it.

        transfer = run.objective.extras["simkd/Transfer"]
        model = Reused(trunk, transfer.projector, teacher.fc)

    trunk: a module that gives what the `student` of the loss named: the student with `nn.Identity()` for a classifier.
    head: the teacher's, from the features that its side named to logits; for maps it begins with the pooling, as in
    `nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), teacher.fc)`. The parts are not copied.
    """

    def __init__(self, trunk: nn.Module, projector: nn.Module | None, head: nn.Module) -> None:
        """Raises ObjectiveError for a projector that has not seen any batch."""
        super().__init__()
        if projector is None:
            raise ObjectiveError("the projector of this simkd loss was never made: train it first, or load its state")
        self.trunk, self.projector, self.head = trunk, projector, head

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """head(projector(trunk(...)))."""
        return self.head(self.projector(self.trunk(*inputs, **named)))


def vector(student: int, teacher: int, inside: int, rectified: bool) -> nn.Sequential:
    """The projector of vectors and tokens, (..., S) to (..., D)."""
    last = [nn.LayerNorm(teacher), nn.ReLU()] if rectified else []
    return nn.Sequential(
        *(nn.Linear(student, inside), nn.LayerNorm(inside), nn.ReLU()),
        *(nn.Linear(inside, inside), nn.LayerNorm(inside), nn.ReLU()),
        *(nn.Linear(inside, teacher), *last),
    )


def mapped(student: int, teacher: int, inside: int, rectified: bool) -> nn.Sequential:
    """The projector of maps, (B, S, H, W) to (B, D, H, W), as in the authors' code."""
    last = [nn.BatchNorm2d(teacher), nn.ReLU()] if rectified else []
    return nn.Sequential(
        *(nn.Conv2d(student, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
        *(nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
        *(nn.Conv2d(inside, teacher, 1, bias=not rectified), *last),
    )


def require_alike(student: Tensor, teacher: Tensor) -> None:
    """Raise ObjectiveError unless both are vectors, tokens or maps, and of the same batch and tokens."""
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.dim() != teacher.dim() or student.dim() not in (2, 3, 4):
        raise ObjectiveError(f"expected vectors, tokens or maps, the same on both sides; {shapes}")
    same = 1 if student.dim() == 4 else student.dim() - 1
    for place in range(same):
        ours, theirs = student.shape[place], teacher.shape[place]
        if ours != theirs:
            raise ObjectiveError(f"{named(place, student.dim(), 'features')} differ: {ours} and {theirs}; {shapes}")
