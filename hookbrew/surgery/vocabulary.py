"""A model of fewer tokens, or of the tokens of another tokenizer: embeddings, output layers, biases and special ids.

Letters: V vocabulary.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from hookbrew import words
from hookbrew.errors import SurgeryError
from hookbrew.modes import evaluating
from hookbrew.surgery.axes import lasting, shapes
from hookbrew.surgery.proof import close, outputs
from hookbrew.surgery.rebuild import blank, pretrained, rebuilt
from hookbrew.surgery.sample import LENGTH, run
from hookbrew.surgery.special import respelled, specials

SIZES: Final = ("vocab_size", "decoder_vocab_size")

Pieces = list[list[int]]
"""For each new id the old ids that it is made of."""


def respelt(model: nn.Module, ids: Sequence[int] | Mapping[int, int | Sequence[int]]) -> nn.Module:
    """A new transformers model whose token i is the i-th of these ids of the old one, or, of a mapping, what it says.

    A mapping is for another tokenizer: of each new id, 0 to V - 1, the old id or ids. A token of several old ones gets
    the mean of their embeddings, and of their rows in the output layer and its bias. The special ids of the config,
    and of the configuration of `generate`, are translated; what `generate` was to suppress is left out if it went.

    Raises SurgeryError for ids that are not there or come twice, for a special id that was dropped, and for a model
    that gives other outputs for the tokens that were kept, as RoBERTa does when its padding moves: it counts positions
    from there.
    """
    if not pretrained(model):
        raise SurgeryError(
            f"{type(model).__name__} has no config of transformers that another vocabulary could be written into;"
            " replace its embedding yourself"
        )
    config: Any = model.config
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        raise SurgeryError(f"{type(config).__name__} says no vocab_size, so {type(model).__name__} has no vocabulary")
    pieces = spelled(ids, size)
    news = translation(pieces)
    made = respelled(config, news, size)
    for key in SIZES:
        if getattr(config, key, None) == size:
            setattr(made, key, len(pieces))
    found, axes = lasting(model), rows(model, size)
    student = rebuilt(model, made, dict(taken(found, axes, pieces)))
    if getattr(model, "generation_config", None) is not None:
        student.generation_config = respelled(model.generation_config, news, size)
    require_alike(model, student, news)
    return student


def spelled(ids: Sequence[int] | Mapping[int, int | Sequence[int]], size: int) -> Pieces:
    """The old ids of each new one; SurgeryError for what does not fit a vocabulary of this size."""
    if isinstance(ids, Mapping):
        missing = [new for new in range(len(ids)) if new not in ids]
        if missing:
            raise SurgeryError(f"vocabulary: new ids have to be 0 to {len(ids) - 1}, and {missing[0]} is not there")
        pieces = [[old] if isinstance(old := ids[new], int) else list(old) for new in range(len(ids))]
    else:
        pieces = [[int(old)] for old in ids]
        if twice := sorted(old for old, count in Counter(old for (old,) in pieces).items() if count > 1):
            raise SurgeryError(f"vocabulary: id {twice[0]} is there twice")
    if not pieces:
        raise SurgeryError("vocabulary: there is no id to keep")
    for new, olds in enumerate(pieces):
        if not olds:
            raise SurgeryError(f"vocabulary: new id {new} is made of no old one; give it that of the unknown token")
        if wrong := [old for old in olds if not 0 <= old < size]:
            raise SurgeryError(f"vocabulary: id {wrong[0]} is not in the teacher's vocabulary of {size}")
    return pieces


def translation(pieces: Pieces) -> dict[int, int]:
    """The new id of each old one that is a new one by itself; the first of several."""
    found: dict[int, int] = {}
    for new, olds in enumerate(pieces):
        if len(olds) == 1:
            found.setdefault(olds[0], new)
    return found


def rows(model: nn.Module, size: int) -> dict[str, list[int]]:
    """The dimensions of tensors that the size of the vocabulary decides, measured on the meta device."""
    config: Any = copy.deepcopy(model.config)
    for key in SIZES:
        if getattr(config, key, None) == size:
            setattr(config, key, size + 1)
    was, now = shapes(model), shapes(blank(model, config))
    found = {
        name: [dim for dim, (a, b) in enumerate(zip(shape, now[name], strict=True)) if a != b]
        for name, shape in was.items()
    }
    for name, dims in found.items():
        for dim in dims:
            if was[name][dim] != size:
                raise SurgeryError(
                    f"dimension {dim} of '{name}' is {was[name][dim]} long and changes with the vocabulary of {size} in"
                    " a way that is not understood"
                )
    return {name: dims for name, dims in found.items() if dims}


def taken(found: Mapping[str, Tensor], axes: Mapping[str, list[int]], pieces: Pieces) -> Iterator[tuple[str, Tensor]]:
    """The tensors by name, those of the vocabulary with the new rows; one with several names stays one."""
    made: dict[int, Tensor] = {}
    for name, tensor in found.items():
        if id(tensor) not in made:
            value = tensor.detach()
            for dim in axes.get(name, []):
                value = mixed(value, dim, pieces)
            made[id(tensor)] = value
        yield name, made[id(tensor)]


def mixed(tensor: Tensor, dim: int, pieces: Pieces) -> Tensor:
    """The rows of the new ids along a dimension: a copy of one, bit for bit, or the mean of several."""
    first = torch.tensor([olds[0] for olds in pieces], device=tensor.device)
    made = tensor.index_select(dim, first)
    for new, olds in enumerate(pieces):
        if len(olds) > 1:
            several = tensor.index_select(dim, torch.tensor(olds, device=tensor.device))
            made.select(dim, new).copy_(several.double().mean(dim))
    return made


def len_of(model: nn.Module) -> int:
    """How many tokens a transformers model knows."""
    config: Any = model.config
    return int(config.vocab_size)


def require_alike(teacher: nn.Module, student: nn.Module, news: Mapping[int, int]) -> None:
    """Raise SurgeryError unless both say the same of a few tokens that both have, special ones left out."""
    special = {old: key for key, old in specials(teacher.config)}
    ends = [old for old, key in special.items() if key == "eos_token_id" and old in news]  # some heads look for it
    plain = [*[old for old in news if old not in special][:LENGTH], *ends[:1]]
    if not plain or getattr(teacher, "main_input_name", "") != "input_ids":
        return
    device = next(teacher.parameters()).device

    def says(model: nn.Module, ids: list[int]) -> list[Tensor]:
        tokens = torch.tensor([ids], device=device)
        both = {"decoder_input_ids": tokens} if getattr(model.config, "is_encoder_decoder", False) else {}
        return outputs(run(model, {"input_ids": tokens} | both))

    with evaluating(teacher, student), torch.no_grad():
        before, after = says(teacher, plain), says(student, [news[old] for old in plain])
    old, new = (torch.tensor(list(part), device=device) for part in (news.keys(), news.values()))
    sizes = len_of(teacher), len_of(student)
    for one, other in zip(before, after, strict=True):
        scored = (*one.shape[-1:], *other.shape[-1:]) == sizes
        if not close(one, other) and not (scored and close(one[..., old], other[..., new])):
            raise SurgeryError(
                f"{type(teacher).__name__} gives other outputs for the same tokens once their ids are others: it"
                " computes with ids, as RoBERTa does, whose positions are counted from pad_token_id; keep the special"
                " ids at their places"
            )


def occurring(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], keys: Sequence[str] = ("input_ids", "decoder_input_ids")
) -> list[int]:
    """The ids that occur in batches under these keys, with the special ids of the model; rising, ready for `respelt`.

    Negative ones, as labels have where nothing is to be predicted, do not count. SurgeryError if no batch has a key.
    """
    found: set[int] = set()
    seen = False
    for batch in batches:
        for key in (key for key in keys if key in batch):
            seen = True
            found.update(torch.as_tensor(batch[key]).flatten().tolist())
    if not seen:
        raise SurgeryError(f"no batch has any of {words.several(keys)}")
    size = len_of(model)
    told = [*specials(model.config), *specials(getattr(model, "generation_config", None))]
    return sorted(token for token in found | {old for _, old in told} if 0 <= token < size)
