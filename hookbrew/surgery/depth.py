"""Students with fewer layers: some of the teacher's, in its own order.

A transformers model is made anew from a configuration that says so (rebuild.py): which number in it decides the length
of a list is found by trying, whatever its name; lists with an item for each layer, as `layer_types`, are cut alike. Any
other model is copied, and its lists are cut.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from hookbrew import words
from hookbrew.errors import SurgeryError
from hookbrew.surgery.rebuild import blank, lists, pretrained, rebuilt, renamed, tensors
from hookbrew.taps import sharded, unwrap

Keep = Mapping[str, Sequence[int]]
"""The layers that stay, by the path of their list; rising."""
COUNTING = ("layer", "depth", "block")
"""One of these is in the name of a setting that has to do with layers."""
INDICES = ("mlp_only_layers", "cross_attention_layers", "attn_layer_indices")
"""Settings that list numbers of layers."""
PLAIN = (bool, int, float, str, tuple, list, type(None))
OWN = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")
"""What a layer calls its own number, by which it finds its part of a cache."""


def kept(model: nn.Module, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of a model with these layers of its lists alone; no tensor is shared, and the model is not touched.

    keep: by the path of a list, the numbers of layers that stay, rising; negative ones count from the end. Several
    lists may be named, as those of an encoder and of a decoder. Where nothing of the model is trained, all of the copy
    are. Raises SurgeryError for a path or a number that is not there, and for layers that cannot stand where they
    would: T5 has its position bias in the first block alone.
    """
    inner = unwrap(model)
    if sharded(inner):
        raise SurgeryError(f"{type(inner).__name__} is shared out over processes; make a student before that")
    wanted = demanded(inner, keep)
    frozen = not any(parameter.requires_grad for parameter in inner.parameters())
    memo: dict[int, Any] = {}
    for module in roots(inner):
        names = {part: name for name, part in module.named_modules()}
        there = {path: part for path in wanted if (part := inner.get_submodule(path)) in names}
        if there:
            inside = {names[part]: wanted.pop(path) for path, part in there.items()}
            memo |= paired(module, shortened(module, inside), inside)
    ready = {*memo.values()}
    try:
        made: nn.Module = copy.deepcopy(inner, memo)
    except Exception as error:
        raise SurgeryError(f"{type(inner).__name__} cannot be copied: {error}") from error
    for path, indices in wanted.items():
        cut(made, path, indices)
    for parameter in made.parameters() if frozen else ():
        if parameter not in ready:  # what is made anew is trained as its class says
            parameter.requires_grad_()
    return made


def roots(model: nn.Module) -> Iterator[nn.Module]:
    """The models of transformers in a model, itself perhaps; none that is inside another."""
    found: list[str] = []
    for path, module in model.named_modules():
        if pretrained(module) and not any(path.startswith(f"{outer}.") or not outer for outer in found):
            found.append(path)
            yield module


def paired(teacher: nn.Module, made: nn.Module, keep: Keep) -> dict[int, Any]:
    """What a copy of something around the teacher takes in place of its modules and tensors, as `deepcopy` reads it."""
    modules, own = dict(made.named_modules(remove_duplicate=False)), tensors(made)
    memo: dict[int, Any] = {}
    for path, module in teacher.named_modules(remove_duplicate=False):
        if (name := renamed(path, keep)) is not None:
            memo[id(module)] = modules[name]
    for path, tensor in tensors(teacher).items():
        if (name := renamed(path, keep)) in own:
            memo[id(tensor)] = own[name]
    return memo


def demanded(model: nn.Module, keep: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The same with all numbers from 0 up; raises SurgeryError for paths and numbers that are not there."""
    known = lists(model)
    found: dict[str, list[int]] = {}
    for path, indices in keep.items():
        demand_list(model, known, path)
        if outer := [other for other in keep if path.startswith(f"{other}.")]:
            raise SurgeryError(
                f"keep: {path!r} is inside {outer[0]!r}, whose layers get other numbers; name one of them"
            )
        if twice := [other for other in found if model.get_submodule(other) is model.get_submodule(path)]:
            raise SurgeryError(f"keep: {path!r} is another name of {twice[0]!r}; name one of them")
        found[path] = demand_rising(path, indices, known[path])
    return found


def demand_list(model: nn.Module, known: Mapping[str, int], path: str) -> None:
    """Raise SurgeryError unless there is a list at a path."""
    if path in known:
        return
    there = {name: module for name, module in model.named_modules(remove_duplicate=False)}
    if path in there:
        what = f"keep: {path!r} is a {type(there[path]).__name__}, no list of layers"
    else:
        what = f"keep: {type(model).__name__} has no {path!r}"
    near = words.nearest(path, known)
    ends = [name for name in known if name.endswith(f".{path}")]
    if near is None and ends:
        near = ends[0]
    shown = words.several((f"{name} ({count})" for name, count in known.items()), most=4)
    raise SurgeryError(f"{what}; " + (f"did you mean {near!r}?" if near else f"its lists: {shown or 'none'}"))


def demand_rising(path: str, indices: Sequence[int], count: int) -> list[int]:
    """The numbers from 0 up; raises SurgeryError unless they are there, each once, rising."""
    given = list(indices)
    if not given:
        raise SurgeryError(f"keep: no layer of {path!r} is named; name one or more of its {count}")
    outside = [index for index in given if not -count <= index < count]
    if outside:
        raise SurgeryError(f"keep: {path!r} has no layer {outside[0]}; it has {count}: 0 to {count - 1}")
    found = [index % count for index in given]
    if twice := [index for place, index in enumerate(found) if index in found[:place]]:
        raise SurgeryError(f"keep: layer {twice[0]} of {path!r} is named twice; a student has each once")
    if found != sorted(found):
        raise SurgeryError(f"keep: layers of {path!r} stay in the teacher's order; write {sorted(found)}")
    return found


def cut(model: nn.Module, path: str, indices: Sequence[int]) -> None:
    """Leave some children of a container, numbered anew, in a model that is changed; and what says how many it has."""
    container = model.get_submodule(path)
    layers = list(container._modules.values())
    count = len(layers)
    container._modules.clear()
    for new, old in enumerate(indices):
        layer = container._modules[str(new)] = layers[old]
        for module in layer.modules() if layer is not None else ():
            for name in OWN:
                if vars(module).get(name) == old:
                    setattr(module, name, new)
    parent = model.get_submodule(path.rpartition(".")[0])
    for name, value in vars(parent).items():
        if type(value) is int and value == count and any(word in name for word in COUNTING):
            setattr(parent, name, len(indices))


def shortened(teacher: nn.Module, keep: Keep) -> nn.Module:
    """A transformers model with these layers; raises SurgeryError."""
    config: Any = copy.deepcopy(teacher.config)
    now = lists(teacher)
    goal = now | {path: len(indices) for path, indices in keep.items()}
    for path, indices in keep.items():
        if lists(blank(teacher, config))[path] != goal[path]:
            config = Search(teacher, config, goal, keep).found(path, indices)
    made = blank(teacher, config)
    for path in keep:
        require_fitting(teacher, made, path, keep)
    student = rebuilt(teacher, config, dict(brought(teacher, made, keep)))
    for path, indices in keep.items():
        require_alike(teacher, student, path, indices)
    return student


def brought(teacher: nn.Module, made: nn.Module, keep: Keep) -> Iterator[tuple[str, Tensor]]:
    """The teacher's tensors by their names in the student; not what is computed for layers that are left out."""
    saved, wanted = teacher.state_dict().keys(), tensors(made).keys()
    for name, tensor in tensors(teacher).items():
        new = renamed(name, keep)
        if new is not None and (new in wanted or name in saved):
            yield new, tensor


@attrs.frozen
class Search:
    """For the setting that decides how long a list is."""

    teacher: nn.Module
    config: Any
    goal: Mapping[str, int]
    """How long each list has to be in the end."""
    keep: Keep

    def found(self, path: str, indices: Sequence[int]) -> Any:
        """The configuration with this list shortened; raises SurgeryError if none of its settings does that."""
        before = lists(blank(self.teacher, self.config))
        reasons = []
        for changed, name in variants(self.config, before[path], indices):
            try:
                after = lists(blank(self.teacher, changed))
            except SurgeryError as error:
                reasons.append(f"{name}: {error}")
                continue
            if after.get(path) != len(indices):
                continue
            others = [
                at for at, count in after.items() if self.outside(at) and count not in (before[at], self.goal[at])
            ]
            if not others:
                return changed
            reasons.append(f"{name} decides {words.several(others)} too; keep as many layers of each")
        why = f" ({words.several(reasons, most=2)})" if reasons else ""
        kind = type(self.config).__name__
        raise SurgeryError(f"keep: no setting of {kind} says how many layers {path!r} has, so it cannot be cut{why}")

    def outside(self, path: str) -> bool:
        """Whether a list is not inside a layer that may be dropped."""
        return not any(path.startswith(f"{other}.") for other in self.keep)


def variants(config: Any, count: int, indices: Sequence[int]) -> Iterator[tuple[Any, str]]:
    """Copies of a configuration in which one number of layers is another, with the name of the setting."""
    for place, holder in enumerate(holders(config)):
        for name, value in list(vars(holder).items()):
            if not any(word in name for word in COUNTING):
                continue
            if type(value) is int and value == count:
                yield changed(config, place, count, indices, {name: len(indices)}), name
            elif isinstance(value, list | tuple) and all(type(item) is int for item in value):
                for at, item in enumerate(value):
                    if item == count:
                        items = [*value[:at], len(indices), *value[at + 1 :]]
                        yield changed(config, place, count, indices, {name: items}), f"{name}[{at}]"


def holders(config: Any) -> list[Any]:
    """A configuration and those inside it, as of a text and a vision model."""
    found = [config]
    for value in vars(config).values():
        if callable(getattr(value, "to_dict", None)) and hasattr(value, "model_type"):
            found += holders(value)
    return found


def changed(config: Any, place: int, count: int, indices: Sequence[int], settings: dict[str, Any]) -> Any:
    """A copy with these settings in one of its holders, and that one's lists of an item for each layer cut."""
    made = copy.deepcopy(config)
    holder = holders(made)[place]
    sides = [side for side in ("encoder", "decoder") if any(side in name for name in settings)]
    for name, value in list(vars(holder).items()):
        if not isinstance(value, list | tuple) or name in settings or not value:
            continue
        if sides and any(other in name for other in {"encoder", "decoder"} - {*sides}):
            continue
        if name in INDICES and (len(value) != count or max(value) >= len(value)):
            settings[name] = [list(indices).index(item) for item in value if item in indices]
        elif len(value) == count and any(word in name for word in COUNTING):
            settings[name] = type(value)(value[index] for index in indices)
    for name, value in settings.items():
        holder.__dict__[name] = value  # one by one they do not hold together, which setting would check
    return made


def require_fitting(teacher: nn.Module, made: nn.Module, path: str, keep: Keep) -> None:
    """Raise SurgeryError when a layer lacks what its new place needs, or has what that has no place for."""
    for new, old in enumerate(keep[path]):
        wanted = tensors(made.get_submodule(f"{path}.{new}"))
        given = tensors(teacher.get_submodule(f"{path}.{old}"))
        layers = teacher.get_submodule(path)._modules
        for name in [name for name in wanted if name not in given]:
            having = [place for place, layer in layers.items() if layer is not None and name in tensors(layer)]
            has = f"layer {having[0]} alone has it: keep that as layer {new}" if len(having) == 1 else "it has none"
            raise SurgeryError(f"keep: layer {old} of {path!r} would be layer {new}, which needs {name}; {has}")
        for name in [name for name in given if name not in wanted]:
            raise SurgeryError(f"keep: layer {old} of {path!r} would be layer {new}, which has no place for its {name}")


def require_alike(teacher: nn.Module, made: nn.Module, path: str, indices: Sequence[int]) -> None:
    """Raise SurgeryError when a layer is of another kind at its new place: its configuration counts layers somehow."""
    for new, old in enumerate(indices):
        mine, theirs = (m.get_submodule(f"{path}.{i}").named_modules() for m, i in ((made, new), (teacher, old)))
        for (name, one), (_, other) in zip(mine, theirs, strict=True):
            where = f"keep: layer {old} of {path!r} would be another as layer {new}: {name}{'.' * bool(name)}"
            if type(one) is not type(other):
                raise SurgeryError(f"{where} is a {type(one).__name__}, and was a {type(other).__name__}")
            for key, value in vars(one).items():
                before = vars(other).get(key)
                if comparable(one, key, value) and value != before and (value, before) != (new, old):
                    raise SurgeryError(f"{where}{key} is {value!r}, and was {before!r}")


def comparable(module: nn.Module, key: str, value: Any) -> bool:
    """Whether an attribute says what a layer computes; how much it drops in training may vary with the depth."""
    if key == "training" or key.startswith("_") or "drop" in key or "Drop" in type(module).__name__:
        return False
    return isinstance(value, PLAIN)
