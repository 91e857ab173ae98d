"""How the gradients of several processes become one.

Student, projections and losses that learn are one module to DistributedDataParallel, whose forward gives the sums of
all losses: with a wrapper around the student alone, each process would train projections of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hookbrew.errors import ConfigError, Problem
from hookbrew.loop.state import State
from hookbrew.loop.trainable import Trainable
from hookbrew.ranks import Ranks
from hookbrew.taps import synced

LEFT_OUT = (
    "a process waits for gradients that never came: some steps leave a part of the student out, as layerdrop does; "
    "switch that off, or wrap the student yourself: DistributedDataParallel(..., find_unused_parameters=True)"
)


class Joint(nn.Module):
    """All that is trained, and a function of a batch that uses it."""

    def __init__(self, student: nn.Module, extras: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.student, self.extras, self._call = student, extras, call

    def forward(self, *given: Any) -> Any:
        """What the function gives; of nothing, zero times all that is trained."""
        if given:
            return self._call(*given)
        return sum((p.flatten()[:1].sum() * 0 for p in self.trained()), start=torch.zeros(()))

    def trained(self) -> list[nn.Parameter]:
        """The parameters that get a gradient now."""
        return [p for p in self.parameters() if p.requires_grad]


@attrs.define
class Replica:
    """Runs a forward so that backward averages over processes; of one process alone it only runs it."""

    joint: Joint | None = None
    ranks: Ranks = attrs.field(factory=Ranks)
    leaves: Callable[[], set[int]] = set
    """The ids of what every batch reaches; heads of other tasks are not, and torch has to look for them."""
    loose: tuple[nn.Parameter, ...] = ()
    """What no wrapper averages: `average` does, when backward is over."""
    student: nn.Module | None = None
    """The one whose buffers no wrapper keeps alike: `average` does."""
    _wrapped: DistributedDataParallel | None = None
    _known: list[int] = attrs.field(factory=list)

    def ready(self) -> None:
        """Before a step: wrap what is trained now, if that is not what is wrapped already.

        torch changes the order in which it averages gradients after the first backward, and with it the last bits of
        three or more of them: a run that is resumed would have the old order again. So one over zeros comes first.
        """
        if self.joint is None or self._known == (now := [id(p) for p in self.joint.trained()]):
            return
        self._known, self._wrapped = now, None
        group, find = self.ranks.group, not self.leaves().issuperset(now)
        remembered = [f"extras.{name}" for name, _ in self.joint.extras.named_buffers()]  # by each process for itself
        ignored = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignored(self.joint, remembered)  # type: ignore[no-untyped-call]  # torch has no types here
        self._wrapped = DistributedDataParallel(self.joint, process_group=group, find_unused_parameters=find)
        if not find:
            self._wrapped().backward()
            self.joint.zero_grad(set_to_none=True)

    def run(self, call: Callable[..., Any], *given: Any) -> Any:
        """What `call` gives, through the wrapper if there is one, which calls the same function."""
        if self._wrapped is None:
            return call(*given)
        try:
            return self._wrapped(*given)
        except RuntimeError as error:
            if "finished reduction" in str(error):
                error.add_note(LEFT_OUT)
            raise

    def waiting(self, *, last: bool) -> AbstractContextManager[None]:
        """Forward and backward inside: gradients are averaged once a step, with those of its last batch."""
        return nullcontext() if last or self._wrapped is None else self._wrapped.no_sync()

    def close(self) -> None:
        """Let go of the wrapper, with buffers as large as all gradients: it and the step hold each other."""
        self.joint = self._wrapped = None

    def average(self) -> None:
        """Average what no wrapper does; of buffers the first process's hold, as torch's wrapper has it.

        A gradient that only some processes have is zero in the others, as of a layer that was dropped there.
        """
        if self.loose:
            reached = self.ranks.most([int(p.grad is not None) for p in self.loose])
            trained = [p for p, there in zip(self.loose, reached, strict=True) if there]
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            reduced(self.ranks, [p.grad for p in trained if p.grad is not None])
        if self.student is not None:
            self.ranks.alike([*self.student.buffers()])


def reduced(ranks: Ranks, gradients: Iterable[Tensor]) -> None:
    """Average some tensors over all processes, where they are."""
    started = [(grad, distributed.all_reduce(grad, group=ranks.group, async_op=True)) for grad in gradients]
    for grad, work in started:
        work.wait()
        grad /= ranks.size


def bare(student: nn.Module, extras: nn.Module) -> list[nn.Parameter]:
    """What no wrapper of the user's averages: extras, and the rest of a student of which a part is wrapped."""
    wrapped = (module for module in student.modules() if isinstance(module, DistributedDataParallel))
    known = {id(parameter) for module in wrapped for parameter in module.parameters()}
    trained = dict.fromkeys((*student.parameters(), *extras.parameters()))
    return [p for p in trained if id(p) not in known and not hasattr(p, "device_mesh")]


def replicated(objective: Trainable, state: State, call: Callable[..., Any], *, halve: bool, fresh: bool) -> Replica:
    """What averages the gradients of a training; a student that the user wrapped does it itself.

    state: says which processes there are, and whether steps leave parts of the student out.
    fresh: whether it begins; what losses remember is each process's own later.
    halve: whether a forward that is out of memory in one process is made again in all. A wrapper has begun to average
    by then, so there is none, and all is averaged at the end. Raises ConfigError where the user's own does.
    """
    ranks = state.ranks
    if ranks.size == 1:
        return Replica()
    student, extras = objective.student, objective.extras
    if fresh:
        ranks.alike([*extras.buffers()])
    if synced(student):
        if halve:
            message = "'halve' needs the student as it is, and its wrapper averages while others may be out of memory"
            raise ConfigError([Problem("train.out_of_memory", message)])
        ranks.alike(loose := bare(student, extras))
        return Replica(ranks=ranks, loose=tuple(loose))
    ranks.alike([*student.parameters(), *student.buffers(), *extras.parameters()])
    if halve:
        return Replica(ranks=ranks, loose=(*student.parameters(), *extras.parameters()), student=student)
    joint = Joint(student, extras, call)
    return Replica(joint, ranks, lambda: set() if state.partial else objective.leaves)
