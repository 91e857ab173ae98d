"""Layers of low rank: a matrix W becomes two, the best approximation of W of that rank.

W ~ U_k S_k V_k^T, the singular value decomposition cut after k values, is the nearest matrix of rank k in the Frobenius
and the spectral norm (Eckart and Young 1936). Both factors get the square root of S. Letters: V vocabulary, D features,
K rank, O and I the outputs and inputs of a projection.

A model with such layers has tensors under other names than its class knows, so `from_pretrained` cannot load it: it
would leave the layers random and only warn. So `save_pretrained` of such a model writes `student.safetensors` and
`factorised.json` in place of `model.safetensors`, and `from_pretrained` refuses the folder, which has no file that it
knows. `restored(fresh, folder)` loads it into a fresh model, `AutoModelFor….from_config(AutoConfig.from_pretrained(
folder))`; any other model loads as it was made: `factorised(fresh, ranks)`, then `safetensors.torch.load_model`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hookbrew.errors import SurgeryError
from hookbrew.taps import modules

FILE: Final = "student.safetensors"
NOTE: Final = "factorised.json"


class Factors(nn.Module):
    """Two factors in place of one weight, which can still be read: `weight` is their product, made anew each time."""

    def __init__(self, left: nn.Parameter, right: nn.Parameter) -> None:
        super().__init__()
        self.left, self.right = left, right

    @property
    def weight(self) -> Tensor:
        """left @ right, (O, I) or (V, D)."""
        return self.left @ self.right

    @property
    def rank(self) -> int:
        """K."""
        return self.right.shape[0]


class LowLinear(Factors):
    """x (.., I) -> x right^T left^T + bias (.., O)."""

    def __init__(self, left: nn.Parameter, right: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__(left, right)
        self.bias = bias
        self.out_features, self.in_features = left.shape[0], right.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """The projection."""
        return F.linear(F.linear(x, self.right), self.left, self.bias)


class LowConv1D(LowLinear):
    """The same for the transposed Linear of GPT-2: its weight is (I, O)."""

    def __init__(self, left: nn.Parameter, right: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__(left, right, bias)
        self.nf, self.nx = self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:
        """(left @ right)^T, (I, O)."""
        return (self.left @ self.right).T


class LowEmbedding(Factors):
    """ids (..) -> left[ids] right (.., D), times a scale that some models have in their embeddings."""

    def __init__(self, left: nn.Parameter, right: nn.Parameter, padding_idx: int | None, scale: float) -> None:
        super().__init__(left, right)
        self.padding_idx, self.embed_scale = padding_idx, scale
        self.num_embeddings, self.embedding_dim = left.shape[0], right.shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of the ids."""
        return F.embedding(ids, self.left, self.padding_idx) @ self.right * self.embed_scale


def factorised(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy of a model in which the layers that selectors name, Linear, Conv1D and Embedding, have these ranks.

    Biases are kept. Layers that share a weight, as an embedding and the output layer do, are factorised together and
    share the factors. The model is not touched; what loads the copy once it is saved stands at the top of this module.

    SurgeryError for a layer of another kind, a rank that is none or that is given twice; SelectorError for a path.
    """
    wanted = chosen(model, ranks)
    made = copy.deepcopy(model)
    named = dict(made.named_modules(remove_duplicate=False))
    holders: dict[int, list[str]] = {}
    for path, module in named.items():
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), []).append(path)
    fresh: dict[int, nn.Module] = {}
    known: dict[int, tuple[str, int]] = {}
    for path, rank in wanted.items():
        weight = named[path]._parameters["weight"]
        assert weight is not None
        first, other = known.setdefault(id(weight), (path, rank))
        if other != rank:
            raise SurgeryError(
                f"rank: '{path}' shares its weight with '{first}', and they have ranks {rank} and {other}; name one"
            )
        if id(named[path]) not in fresh:
            fresh |= together(named, holders[id(weight)], weight, rank)
    for path, module in named.items():
        if id(module) in fresh:
            parent, _, name = path.rpartition(".")
            named[parent]._modules[name] = fresh[id(module)]
    if callable(getattr(made, "save_pretrained", None)):
        made.save_pretrained = partial(saved, made, wanted)  # type: ignore[assignment]  # only of this model
    return made


def chosen(model: nn.Module, ranks: Mapping[str, int]) -> dict[str, int]:
    """The rank of each path that is named."""
    found: dict[str, int] = {}
    for selector, rank in ranks.items():
        for path, module in modules(model, selector).items():
            weight = module._parameters.get("weight")
            if kind(module) is None or weight is None:
                raise SurgeryError(
                    f"rank: '{path}' is a {type(module).__name__}; expected a Linear, Conv1D or Embedding"
                )
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(weight.shape):
                raise SurgeryError(
                    f"rank: {rank!r} for '{path}', which is {tuple(weight.shape)}; expected 1 to {min(weight.shape)}"
                )
            if found.setdefault(path, rank) != rank:
                raise SurgeryError(f"rank: '{path}' is named twice, with rank {found[path]} and {rank}")
    return found


def kind(module: nn.Module) -> str | None:
    """What a layer computes, as far as it can be written with two factors; None for any other."""
    if type(module).forward is nn.Linear.forward:
        return "linear"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    if isinstance(module, nn.Embedding) and module.max_norm is None and module.weight.numel() and plain(module):
        return "embedding"
    return None


def plain(module: nn.Embedding) -> bool:
    """Whether an embedding looks rows up, and multiplies by its `embed_scale` if it has one: nothing else."""
    ids = torch.arange(min(3, module.num_embeddings), device=module.weight.device)
    if ids.is_meta:
        return type(module).forward is nn.Embedding.forward
    with torch.no_grad():
        return torch.equal(module(ids), F.embedding(ids, module.weight) * scale(module))


def scale(module: nn.Module) -> float:
    """What an embedding multiplies its rows by."""
    return float(getattr(module, "embed_scale", 1.0))


def together(named: Mapping[str, nn.Module], paths: list[str], weight: Tensor, rank: int) -> dict[int, nn.Module]:
    """The new layers, by the id of the old, for all that hold one weight; they hold the same two factors."""
    kinds = {path: kind(named[path]) for path in paths}
    for path, what in kinds.items():
        if what is None or (what == "conv1d") != (kinds[paths[0]] == "conv1d"):
            raise SurgeryError(
                f"rank: the weight of '{paths[0]}' is that of '{path}' too, a {type(named[path]).__name__}, which"
                " cannot be factorised with it; untie them first"
            )
    left, right = (
        nn.Parameter(part, weight.requires_grad) for part in split(weight, rank, kinds[paths[0]] == "conv1d")
    )
    found: dict[int, nn.Module] = {}
    for path, what in kinds.items():
        old: Any = named[path]
        if what == "embedding":
            found[id(old)] = LowEmbedding(left, right, old.padding_idx, scale(old))
        else:
            found[id(old)] = (LowConv1D if what == "conv1d" else LowLinear)(left, right, old.bias)
        found[id(old)].train(old.training)
    return found


def split(weight: Tensor, rank: int, turned: bool) -> tuple[Tensor, Tensor]:
    """(O, I), or (I, O) if turned -> (O, K), (K, I): computed in float64, in the weight's own precision."""
    matrix = weight.detach().T if turned else weight.detach()
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * v[:rank]
    return left.to(weight.dtype).contiguous(), right.to(weight.dtype).contiguous()


def saved(model: nn.Module, ranks: Mapping[str, int], save_directory: Any, **given: Any) -> None:
    """In place of `save_pretrained`: a folder that `restored` loads, and that `from_pretrained` refuses.

    given: `state_dict`, as the tensors to write; other arguments of `save_pretrained` are refused.
    """
    from safetensors.torch import save_file, save_model

    state = given.pop("state_dict", None)
    if given:
        raise SurgeryError(f"a factorised model is saved without {', '.join(given)}; write its state_dict yourself")
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.save_pretrained(folder)  # type: ignore[operator, union-attr]  # of transformers
    if state is None:
        save_model(model, str(folder / FILE))
    else:
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # of tied ones the first name
        save_file({name: value.contiguous() for name, value in state.items() if name in once}, str(folder / FILE))
    how = "from_pretrained cannot load this; hookbrew.surgery.rank.restored(fresh, folder) can"
    (folder / NOTE).write_text(json.dumps({"note": how, "ranks": dict(ranks)}, indent=2) + "\n", encoding="utf-8")


def restored(model: nn.Module, folder: str | Path) -> nn.Module:
    """A fresh model, made of the config in a folder, with the layers and tensors of the factorised one saved there.

    SurgeryError for a folder that holds none.
    """
    from safetensors.torch import load_model

    note = Path(folder) / NOTE
    if not note.is_file():
        raise SurgeryError(f"{folder} holds no factorised model: there is no {NOTE}")
    made = factorised(model, json.loads(note.read_text(encoding="utf-8"))["ranks"])
    load_model(made, str(Path(folder) / FILE))
    return made
