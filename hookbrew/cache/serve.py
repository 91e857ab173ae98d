"""Which kind of cache gives the losses of a teacher all that they read, and what one cannot give.

B batch, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from hookbrew import words
from hookbrew.cache.head import LastHidden, headed
from hookbrew.cache.kinds import Full, Hidden, Kind, TopK
from hookbrew.cache.rounded import Rounded
from hookbrew.cache.sampled import Sampled
from hookbrew.config import Cache
from hookbrew.errors import ConfigError, Problem
from hookbrew.objective import Seat, Source

DRAWS = 64
KEPT = {"topk": ("fp32", "fp16", "bf16"), "sampled": ("fp32",)}
"""The dtypes of kinds that keep some classes only; ids are of int32 whatever it is."""
LINEAR = "linear"
"""The attribute of a loss's options that says whether it is linear in the teacher's probabilities."""
LIKELIEST = "likeliest"
"""The class variable of a loss that reads only a teacher's likeliest classes, and the others as one: the name of the
option that says how many."""


def fitting(
    config: Cache, seat: Seat, seen: Mapping[str, Tensor], inputs: Mapping[str, Any], head: Mapping[str, Any]
) -> Kind:
    """The kind that keeps what the losses read of a teacher, as they saw it in one batch.

    head: the linear layer that ran last, see `heading`.
    Raises ConfigError for what it would not have, with each loss that would need it.
    """
    problems = [Problem("cache", message) for message in unkept(seat, seen, inputs)]
    axes = crossing(seat, seen, inputs)
    tokens = [name for name, tensor in seen.items() if name not in axes and along(seat, tensor, inputs)]
    if tokens or axes:
        problems += [Problem(f"{source.path}.mask", message) for source, message in unmasked(seat)]
    if config.kind in ("topk", "sampled"):
        problems += [*sparse(config, seat, seen)]
    elif config.kind == "last_hidden":
        problems += [*headless(seat, seen, head)]
    if config.k is not None and config.kind in ("full", "last_hidden"):
        problems.append(Problem("cache.k", f"the kind {config.kind!r} keeps all classes; leave this key out"))
    if problems:
        raise ConfigError(problems)
    if config.kind in ("topk", "sampled"):
        (tensor,) = seen.values()
        return reduced(config, seat, tensor.shape[-1], bool(tokens))
    dtype = "fp32" if config.dtype == "int8" else config.dtype
    kind: Kind = Hidden(seen, tokens, dtype, axes)
    if config.kind == "last_hidden":
        of = head["head"], head["path"], head["input"].dtype
        kind = LastHidden(*of, dtype, bool(tokens), fast=head["fast"])
    elif len(seen) == 1 and all(source.takes == "logits" for source in seat.sources):
        (tensor,) = seen.values()
        kind = Full(dtype, bool(tokens)) if tensor.dim() == 2 + bool(tokens) else kind
    return Rounded(kind) if config.dtype == "int8" else kind


def reduced(config: Cache, seat: Seat, classes: int, tokens: bool) -> Kind:
    """The kind that keeps some classes only, for losses that `sparse` found nothing wrong with."""
    options = [source.table.options for source in seat.sources]
    temperature = options[0].temperature
    if config.kind == "sampled":
        return Sampled(config.k or DRAWS, temperature, tokens, classes)
    most = max(getattr(each, getattr(each, LIKELIEST)) for each in options)
    k = min(config.k or most, classes)
    if k < min(most, classes):
        raise ConfigError([Problem("cache.k", f"a loss reads {most} classes; write so many, or leave it out")])
    return TopK(k, config.dtype, temperature, tokens, classes)


def padded(seat: Seat, inputs: Mapping[str, Any]) -> Tensor | None:
    """The mask, (B, L), that says which tokens of a teacher's inputs are padding; None where none does."""
    mask = inputs.get(seat.names.mask)
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point() else None


def along(seat: Seat, tensor: Tensor, inputs: Mapping[str, Any]) -> bool:
    """Whether a tensor is (B, L, ...), so that padding is left out of it."""
    mask = padded(seat, inputs)
    if mask is None or tensor.dim() < 2 or tensor.shape[1] != mask.shape[1]:
        return False
    return tensor.dim() > 2 or seat.names.classes == "tokens"


def crossing(seat: Seat, seen: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Which dimensions of an example go along the tokens, in what is of an attention: queries, and keys if any."""
    mask, found = padded(seat, inputs), dict[str, tuple[int, ...]]()
    for name, square in seat.attended().items() if mask is not None else ():
        if seen[name].dim() == 4 and mask is not None:
            wanted = (1, 2) if square else (1,)
            if all(seen[name].shape[1 + axis] == mask.shape[1] for axis in wanted):
                found[name] = wanted
    return found


def unkept(seat: Seat, seen: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> Iterator[str]:
    """What the losses read that cannot be kept for each example."""
    if seat.shared:
        yield f"{seat.at} shares modules with the student: it changes as that is trained, and is not kept"
    mask = padded(seat, inputs)
    axes = crossing(seat, seen, inputs)
    size = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()), 0)
    for name, tensor in seen.items():
        shape = tuple(tensor.shape)
        if not shape or shape[0] != size:
            yield f"{seat.at}: {name} is {shape}, and the batch has {size} examples; only rows of examples are kept"
        elif not tensor.is_floating_point():
            yield f"{seat.at}: {name} is of {tensor.dtype}; only floats are kept"
        elif mask is not None and name not in axes and len(shape) > 3 and mask.shape[1] in shape[2:]:
            yield (
                f"{seat.at}: {name} is {shape}, which has tokens in other dimensions than the second; its padding "
                "cannot be left out, so it is not kept"
            )


def unmasked(seat: Seat) -> Iterator[tuple[Source, str]]:
    """The losses that count padding, of which nothing is kept."""
    for source in seat.sources:
        if source.table.mask is not True:
            yield source, "with a [cache], nothing is kept of padding, which this loss may count; leave this key out"


def headless(seat: Seat, seen: Mapping[str, Tensor], head: Mapping[str, Any]) -> Iterator[Problem]:
    """Why the last hidden state cannot stand for what is read of a teacher."""
    for name, tensor in seen.items():
        if not headed(head, tensor):
            last = f"its last linear layer is {head['path']}" if head else "it has no linear layer"
            message = f"'last_hidden' is for logits that a linear layer gives, and {name} of {seat.at} is none: {last}"
            yield Problem("cache.kind", f"{message}; write 'full'")


def sparse(config: Cache, seat: Seat, seen: Mapping[str, Tensor]) -> Iterator[Problem]:
    """What of a teacher some of its classes cannot stand for."""
    kind = config.kind
    if config.dtype not in KEPT[kind]:
        yield Problem("cache.dtype", f"{kind!r} is not kept in {config.dtype}; {words.hint(config.dtype, KEPT[kind])}")
    temperatures = set()
    for source in seat.sources:
        wrong = needing(kind, source, seat)
        if wrong:
            yield Problem("cache.kind", f"{kind!r} {wrong}; write 'full'")
        else:
            temperatures.add(source.table.options.temperature)
    if len(temperatures) > 1:
        told = " and ".join(f"{value:g}" for value in sorted(temperatures))
        yield Problem("cache.kind", f"{kind!r} is of one temperature, and the losses have {told}; write 'full'")
    if len(seen) > 1 or any(tensor.dim() not in (2, 3) for tensor in seen.values()):
        yield Problem("cache.kind", f"{kind!r} keeps one tensor of logits, (B, C) or (B, L, C); write 'full'")


def needing(kind: str, source: Source, seat: Seat) -> str | None:
    """Why a loss needs all logits; None if it does not."""
    options, name = source.table.options, f"loss {source.table.type!r} ({source.path})"
    if kind == "topk" and getattr(options, LIKELIEST, None) is None:
        return f"keeps the likeliest classes, and {name} reads all"
    if kind == "sampled" and not getattr(options, LINEAR, False):
        return f"keeps draws, and {name} is not linear in the teacher's probabilities"
    if source.varying or getattr(options, "standardize", False):
        return (
            f"is of one temperature, and {next(iter(source.varying), 'standardize')} of {source.path} needs all logits"
        )
    if len(source.teachers) > 1:
        return "cannot stand for logits where several teachers are merged"
    return "cannot stand for logits where data.classes cuts them" if seat.names.classes is not None else None
