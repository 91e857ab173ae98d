"""A loss that tells each training sample from all others, by memories of both models' features.

B batch, n samples of the training data, K negatives, E the dimension of the embeddings.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from hookbrew.errors import ObjectiveError
from hookbrew.loop import mix
from hookbrew.plugin import at_least, fraction, options, positive
from hookbrew_plugins.losses.measured import Measured
from hookbrew_plugins.losses.shapes import widened


@options
class CRD:
    """Contrastive representation distillation with a memory of all samples (Tian et al. 2020, section 3.1 and 3.3).

    The features of a sample, embedded and of length 1, are told from those that the other model gave for K others,
    in both directions. It needs the number of each sample, `data.index`. Each process keeps a memory of its own.
    """

    takes: ClassVar[str] = "features"
    counts: ClassVar[str] = "samples"
    exempt: ClassVar[dict[str, str]] = {
        "zero_at_agreement": "it tells samples apart, and equal models have something to tell, too",
        "flat_at_agreement": "it tells samples apart, and equal models have something to tell, too",
        "temperature_scale": "its temperature is of cosines, and no weight of the authors' expects a T^2",
    }

    samples: int = at_least(1)
    """n: how many samples the training data has."""
    dimension: int = at_least(1, 128)
    """E: of the embeddings."""
    negatives: int = at_least(1, 16384)
    """K: how many samples of the memory a batch is compared with; n if that is less."""
    temperature: float = positive(0.07)
    """What cosines are divided by."""
    momentum: float = fraction(0.5)
    """How much of its old place in the memory a sample keeps."""
    seed: int = at_least(0, 0)
    """Of the memories at first, and of which negatives are drawn."""

    def build(self) -> Contrast:
        """The loss, a module of student, teacher and index that is trained."""
        return Contrast(self)


class Contrast(Measured):
    """The mean over samples of both directions' noise contrastive loss, 0 or more.

    The memories (n, E) and the normalisers are buffers. A forward in training mode with gradients moves them, and the
    next one draws other negatives; any other changes nothing. The negatives follow from seed and the number of such
    forwards, so that a loaded state_dict goes on as the old one would have.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    normalisers: Tensor
    """log Z of both directions, from the first batch of the training; inf before it."""

    def __init__(self, options: CRD) -> None:
        super().__init__()
        self.options = options
        self.draws = 0
        self.embeddings = nn.ModuleDict()
        generator = torch.Generator().manual_seed(options.seed)
        bound = 1.0 / math.sqrt(options.dimension / 3)
        for side in ("student", "teacher"):
            memory = torch.rand(options.samples, options.dimension, generator=generator) * 2 * bound - bound
            self.register_buffer(f"memory_{side}", memory)
        self.register_buffer("normalisers", torch.full((2,), math.inf))

    def make(self, *sizes: int) -> None:
        """An embedding for the features of the student and for those of the teacher."""
        for side, size in zip(("student", "teacher"), sizes, strict=True):
            self.embeddings[side] = nn.Linear(size, self.options.dimension)

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """A scalar. student, teacher: (B, D), each with its own D; the teacher receives no gradient.
        index: long (B,), the number of each sample, from 0.

        Raises ObjectiveError when the shapes do not fit, or a number is beyond the memory.
        """
        require_vectors(student, teacher)
        fresh = not self.sizes
        student, teacher = widened(student), widened(teacher.detach())
        self.measure(student, student.shape[-1], teacher.shape[-1])
        # a device is asked once only: later an index beyond the memory is found by torch's own assertion there
        self.require_index(index, len(student), look=fresh or index.device.type == "cpu")
        vectors = {"student": self.embedded("student", student), "teacher": self.embedded("teacher", teacher)}
        negatives = self.drawn(student.device)
        scores = [
            self.scores(vectors["student"], self.memory_teacher, index, negatives),
            self.scores(vectors["teacher"], self.memory_student, index, negatives),
        ]
        means = [score.detach().logsumexp(dim=(0, 1)) - math.log(score.numel()) for score in scores]
        measured = torch.stack(means) + math.log(self.options.samples)
        normalisers = torch.where(self.normalisers.isinf(), measured, self.normalisers)
        loss = sum((self.estimated(s, z) for s, z in zip(scores, normalisers, strict=True)), student.new_zeros(()))
        if self.training and torch.is_grad_enabled():
            self.remember(vectors, index, normalisers)
        return loss

    def embedded(self, side: str, features: Tensor) -> Tensor:
        """(B, D) to (B, E), of length 1."""
        return normalize(self.embeddings[side](features), dim=-1)

    def drawn(self, device: torch.device) -> Tensor:
        """The numbers of K samples, all equally likely: the same for all samples of the batch, (K,)."""
        # a generator of its own: the order of the data and the dropout of the models are not this loss's to move
        generator = torch.Generator(device).manual_seed(mix(self.options.seed, "crd", self.draws))
        negatives = min(self.options.negatives, self.options.samples)
        return torch.randint(self.options.samples, (negatives,), generator=generator, device=device)

    def scores(self, vectors: Tensor, memory: Tensor, index: Tensor, negatives: Tensor) -> Tensor:
        """cosine / T of each sample with its own place in the memory, then with those of the negatives: (B, 1 + K)."""
        # an index of numbers copies: what backward needs does not change when the memory is written
        own = (vectors * memory[index]).sum(dim=-1, keepdim=True)
        others = vectors @ memory[negatives].mT
        return torch.cat([own, others], dim=1) / self.options.temperature

    def estimated(self, scores: Tensor, normaliser: Tensor) -> Tensor:
        """-log D(own) - sum log(1 - D(negative)) with D = p / (p + K / n) and p = exp(score) / Z, mean over samples.

        By logarithms, which need no epsilon and are finite at any temperature.
        """
        noise = math.log((scores.shape[1] - 1) / self.options.samples)
        odds = scores - normaliser - noise
        return (softplus(-odds[:, 0]) + softplus(odds[:, 1:]).sum(dim=1)).mean()

    @torch.no_grad()
    def remember(self, vectors: dict[str, Tensor], index: Tensor, normalisers: Tensor) -> None:
        """Move the places of these samples in both memories, and draw other negatives next time."""
        for side, memory in {"student": self.memory_student, "teacher": self.memory_teacher}.items():
            old = self.options.momentum * memory[index]
            memory[index] = normalize(old + (1 - self.options.momentum) * vectors[side], dim=-1)
        self.normalisers.copy_(normalisers)
        self.draws += 1

    def get_extra_state(self) -> Tensor:
        """The number of forwards in training, then the sizes."""
        return torch.tensor([self.draws, *self.sizes], dtype=torch.long)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the negatives of a state_dict, and make the embeddings for its sizes."""
        self.draws = int(state[0])
        super().set_extra_state(state[1:])

    def require_index(self, index: Tensor, batch: int, *, look: bool) -> None:
        """Raise ObjectiveError unless there is a number for each sample, and each is in the memory."""
        if index.dtype != torch.long or index.shape != (batch,):
            raise ObjectiveError(f"index is {index.dtype} {tuple(index.shape)}; expected torch.long {(batch,)}")
        if not look or not batch:
            return
        outside = [number for number in (int(index.min()), int(index.max())) if not 0 <= number < self.options.samples]
        if outside:
            raise ObjectiveError(
                f"index: sample {outside[-1]} is not one of samples = {self.options.samples}; write how many samples "
                "the training data has"
            )


def require_vectors(student: Tensor, teacher: Tensor) -> None:
    """Raise ObjectiveError unless each sample is one vector on both sides."""
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.dim() != 2 or teacher.dim() != 2:
        raise ObjectiveError(f"expected one vector a sample, (batch, features): name pooled features; {shapes}")
    if len(student) != len(teacher):
        raise ObjectiveError(f"batch sizes differ: {len(student)} and {len(teacher)}; {shapes}")
