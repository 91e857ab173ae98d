"""Augmentations that mix each sample of a batch with another one, and its label with that one's. B batch, C classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from hookbrew import words
from hookbrew.errors import DataError
from hookbrew.plugin import at_least, options, positive

Batch = dict[str, Tensor]
Mix = Callable[[Tensor, Tensor, float, Generator], tuple[Tensor, float]]
"""Images, the number of the one to mix into each, the share of the first and a generator, to mixed images and the
share that it got."""

IGNORED = -100
"""The label of a sample that has none, as everywhere in torch."""


@options
class Mixing:
    """Options of every augmentation that mixes samples."""

    images: str = "pixel_values"
    """The key of the batch that holds the images."""
    labels: str = "labels"
    """The key of the labels, which are mixed too; a batch without them is left without. Empty: no labels are mixed."""
    classes: int | None = at_least(1, None)
    """C: how many classes there are. Labels that are numbers of classes need it, to become one number per class."""

    def mixing(self, name: str, alpha: float, mix: Mix) -> Callable[[Batch, Generator], Batch]:
        """The augmentation, as a function of a batch and a generator."""
        return partial(mixed, name=name, alpha=alpha, mix=mix, options=self)


@options
class Mixup(Mixing):
    """Add each image to another one, l x + (1 - l) x', and their labels; l is drawn from Beta(alpha, alpha) for each
    batch (Zhang et al. 2018, section 2)."""

    alpha: float = positive(0.2)
    """Near 0 one of the two images is all that is seen; 1 draws all shares alike; above, they tend to a half."""

    def build(self) -> Callable[[Batch, Generator], Batch]:
        """The augmentation, as a function of a batch and a generator."""
        return self.mixing("mixup", self.alpha, blend)


@options
class CutMix(Mixing):
    """Paste a box of another image into each, and mix their labels by area: the box has 1 - l of it, l is drawn from
    Beta(alpha, alpha) for each batch (Yun et al. 2019, section 3.2)."""

    alpha: float = positive(1.0)
    """Near 0 the box is all or nothing; 1 draws all areas alike; above, they tend to a half."""

    def build(self) -> Callable[[Batch, Generator], Batch]:
        """The augmentation, as a function of a batch and a generator."""
        return self.mixing("cutmix", self.alpha, paste)


def mixed(batch: Batch, generator: Generator, *, name: str, alpha: float, mix: Mix, options: Mixing) -> Batch:
    """A new batch of mixed images and labels: one share and one permutation for all of it.

    Labels are mixed as probabilities, (B, C), or whatever numbers they are. Integers (B,) become such rows, one of
    -100 a row of zeros: the mixed row then sums to the share of the other.

    Raises DataError when there are no images, or images or labels cannot be mixed.
    """
    images = imaged(batch, name, options)
    labels = labelled(batch, name, options)
    share = beta(alpha, generator)
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    found, share = mix(images, order.to(images.device), share, generator)
    if labels is None:
        return {**batch, options.images: found}
    others = labels[order.to(labels.device)]
    return {**batch, options.images: found, options.labels: share * labels + (1.0 - share) * others}


def blend(images: Tensor, order: Tensor, share: float, _: Generator) -> tuple[Tensor, float]:
    """The weighted sum of the images; raises DataError when they are integers, whose sum would be rounded."""
    if not images.is_floating_point():
        raise DataError(f"mixup: the images are {images.dtype}; expected floats, as a preprocessor gives")
    return images[order].lerp_(images, share), share


def paste(images: Tensor, order: Tensor, share: float, generator: Generator) -> tuple[Tensor, float]:
    """The images (..., H, W) with a box of the others, cut at the border, and the share that it leaves of them.

    Raises DataError when the images have no height and width.
    """
    if images.dim() < 3:
        raise DataError(f"cutmix: the images are {tuple(images.shape)}; expected (batch, ..., height, width)")
    (top, bottom), (left, right) = (cut(size, share, generator) for size in images.shape[-2:])
    found = images.clone()
    found[..., top:bottom, left:right] = images[..., top:bottom, left:right][order]
    return found, 1.0 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])


def cut(size: int, share: float, generator: Generator) -> tuple[int, int]:
    """Where a box begins and ends along a side of `size` pixels: sqrt(1 - share) of it, around any pixel."""
    half = int(size * (1.0 - share) ** 0.5) // 2
    middle = int(torch.randint(size, (), generator=generator, device=generator.device))
    return max(0, middle - half), min(size, middle + half)


def beta(alpha: float, generator: Generator) -> float:
    """A number from Beta(alpha, alpha): x / (x + y), both drawn from Gamma(alpha).

    By logarithms, as ln Gamma(alpha) = ln Gamma(alpha + 1) + ln(u) / alpha: for a small alpha x and y are both 0 in
    float64. torch.distributions takes no generator, what it draws with does.
    """
    shape = torch.full((2,), alpha + 1.0, dtype=torch.float64, device=generator.device)
    draw = torch.rand(2, generator=generator, dtype=torch.float64, device=generator.device)
    x, y = torch._standard_gamma(shape, generator=generator).log() + (1.0 - draw).log() / alpha  # 1 - draw is never 0
    return float(torch.sigmoid(x - y))


def imaged(batch: Batch, name: str, options: Mixing) -> Tensor:
    """The images; raises DataError when the batch has none."""
    if options.images not in batch:
        hint = words.hint(options.images, batch)
        raise DataError(f"{name}: the batch has no key {options.images!r} (option 'images'); {hint}")
    return batch[options.images]


def labelled(batch: Batch, name: str, options: Mixing) -> Tensor | None:
    """The labels as floats, (B, ...), or None if the batch has none.

    Raises DataError when a key of nearly this name is there, so that labels of other images would be trained on, or
    when they are numbers that `classes` does not fit.
    """
    key, classes = options.labels, options.classes
    if not key:
        return None
    if key not in batch:
        if words.nearest(key, batch):
            raise DataError(f"{name}: the batch has no key {key!r} (option 'labels'); {words.hint(key, batch)}")
        return None
    labels = batch[key]
    if labels.is_floating_point():
        return labels
    if labels.dtype == torch.bool or labels.dim() != 1:
        raise DataError(
            f"{name}: the labels {key!r} are {labels.dtype} {tuple(labels.shape)}; expected floats, or the number of "
            f"the class of each sample, ({len(labels)},)"
        )
    if classes is None:
        raise DataError(f"{name}: the labels {key!r} are numbers of classes; say how many there are, with 'classes'")
    return rows(labels, classes, name)


def rows(labels: Tensor, classes: int, name: str) -> Tensor:
    """Numbers of classes, (B,), as probabilities, float32 (B, C); zeros for -100.

    Raises DataError for the number of no class.
    """
    there = labels != IGNORED
    wrong: list[Any] = labels[there & ((labels < 0) | (labels >= classes))].tolist()
    if wrong:
        raise DataError(f"{name}: a label is {wrong[0]}; expected 0 to {classes - 1}, or {IGNORED} for none")
    return one_hot(labels.masked_fill(~there, 0).long(), classes).float() * there.unsqueeze(1)
