"""The models of a comparison and its data, made from what the command line names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from hookbrew import factory, hub, words
from hookbrew.compare.entry import Entry
from hookbrew.compare.named import Named, named, require_names
from hookbrew.compare.weights import disk, filled
from hookbrew.config import Document, Experiment, Factory, read, staged
from hookbrew.errors import FolderError, HookbrewError
from hookbrew.export.weights import Origin, fill
from hookbrew.models import merged, model
from hookbrew.objective import Names
from hookbrew.outline import Modelled, modelled
from hookbrew.plan import placed, resolved
from hookbrew.plugin import Catalogue


@attrs.define
class Opened:
    """A configuration that was read: a file's, or that which a run keeps."""

    path: str
    document: Document
    experiment: Experiment
    folder: Path | None
    """Of a run, where its student is: of several stages the last one's."""


@attrs.define
class Source:
    """What the command line says, read once; `stack` holds where modules are imported from."""

    catalogue: Catalogue
    stack: ExitStack
    task: str | None = None
    """Of several tasks the one that is compared."""
    opened: dict[str, Opened] = attrs.field(factory=dict)

    def open(self, place: str, sets: Sequence[str] = ()) -> Opened:
        """A configuration or a run, by its place; raises ConfigError."""
        key = f"{Path(place).absolute()} {sets}"
        if key not in self.opened:
            run = Path(place).is_dir()
            stages = staged(read(str(Path(place) / "resolved.toml") if run else place, sets))
            name = [*stages][-1 if run else 0]
            with placed(stages[name]):
                config = resolved(stages[name], self.catalogue)
            self.stack.enter_context(factory.importing(config.pythonpath))
            folder = Path(place) / name if run else None
            self.opened[key] = Opened(place, stages[name], config, folder)
        return self.opened[key]

    def at(self, config: Experiment) -> str:
        """The task of a configuration; raises HookbrewError when it has several and none was chosen."""
        tasks = [*config.parts]
        if self.task is not None and self.task not in tasks:
            has = words.hint(self.task, tasks) if config.tasks else "it has no tasks"
            raise HookbrewError(f"--task {self.task}: there is no such task; {has}")
        if self.task is None and len(tasks) > 1:
            rest = words.several(tasks[1:])
            raise HookbrewError(f"there are {len(tasks)} tasks; choose one: --task {tasks[0]}, or {rest}")
        return self.task or tasks[0]

    def told(self, opened: Opened) -> Any:
        """What a configuration says of the data of an evaluation."""
        data = opened.experiment.parts[self.at(opened.experiment)].data
        read = [getattr(data, field.name) for field in attrs.fields(Names) if field.name != "logits"]
        return data.evaluate, data.collate, data.pad, data.fields, read

    def named(self, texts: Sequence[str]) -> list[Named]:
        """The models by their names, none of them made yet, and their configurations read.

        One run or configuration alone stands for its teacher, or teachers, and its student.
        """
        found = [named(text) for text in texts]
        if len(found) == 1 and found[0].kind in ("run", "file") and not found[0].part:
            found = self.alone(found[0])
        require_names([one.name for one in found])
        for one in found:
            if one.kind in ("run", "file"):
                self.open(one.place)
            if one.kind == "folder" and not (Path(one.place) / "config.json").is_file():
                raise HookbrewError(f"{one.place} is neither a run folder nor a model: it has no config.json")
        return found

    def entries(self, found: Sequence[Named], names: Names) -> list[Entry]:
        """The models, made; raises HookbrewError for one that cannot be.

        names: what the data say. The first of several is a teacher unless a run says what it is.
        """
        made = []
        for place, entry in enumerate(map(self.entry, found)):
            logits = entry.logits if isinstance(names.logits, str) else names.logits
            teacher = place == 0 and len(found) > 1 and entry.free
            side = ("teacher", "teacher") if teacher else entry.side
            made.append(attrs.evolve(entry, logits=logits, side=side))
        return made

    def alone(self, one: Named) -> list[Named]:
        """The models of one run."""
        config = self.open(one.place).experiment
        teachers = [name for name in self.models(config) if name != "student"]
        found = [attrs.evolve(one, part=name, label=name) for name in teachers]
        return [*found, attrs.evolve(one, label=one.label or "student")]

    def models(self, config: Experiment) -> dict[str, Modelled]:
        """The models of a configuration, those of other tasks left out, by what they are called in theirs."""
        task = self.at(config)
        every = {name: made for name, made in modelled(config).items() if name == "student" or made.task == task}
        return {name.removeprefix(f"{task}." if task else ""): made for name, made in every.items()}

    def entry(self, one: Named) -> Entry:
        """A model, made; raises HookbrewError when it cannot be."""
        if one.kind == "folder":
            return Entry(name=one.name, module=hub.loaded(one.place), free=True, disk=disk(Path(one.place)))
        if one.kind == "factory":
            return self.made(one)
        return self.configured(one, self.open(one.place))

    def made(self, one: Named) -> Entry:
        """What a function gives, with weights from a file if there is one."""
        self.stack.enter_context(factory.importing([Path.cwd()]))
        torch.manual_seed(0)
        module = factory.build(Factory(factory=one.place), one.name)
        if not isinstance(module, nn.Module):
            raise HookbrewError(f"{one.place} gave a {type(module).__name__}; expected a torch module")
        if not one.part:
            return Entry(name=one.name, module=module, free=True)
        filled(module, Path(one.part))
        return Entry(name=one.name, module=module, free=True, disk=Path(one.part).stat().st_size)

    def configured(self, one: Named, opened: Opened) -> Entry:
        """A model of a run or a configuration."""
        config, models = opened.experiment, self.models(opened.experiment)
        data = config.parts[self.at(config)].data
        if one.part in models and one.part != "student":
            made = models[one.part]
            logits = "logits" if isinstance(data.logits, str) else data.logits
            side = ("teacher", made.path.rpartition(".")[2])
            module = self.built(opened, made)
            return Entry(name=one.name, module=module, side=side, logits=logits, disk=None)
        if opened.folder is None:
            if one.part not in ("", "student"):
                raise absent(one, models)
            return Entry(name=one.name, module=self.built(opened, models["student"]), logits=data.logits)
        where = self.student(one, opened, models)
        whole = merged(config)
        if (where / "config.json").is_file() and not any(edit.model == "student" for edit in whole.surgery):
            module = hub.loaded(str(where))
        else:  # a configuration of transformers knows of no edit
            module = self.built(attrs.evolve(opened, experiment=whole), models["student"])
            fill(module, Origin("final", where))
        return Entry(name=one.name, module=module, logits=data.logits, disk=disk(where))

    def built(self, opened: Opened, made: Modelled) -> nn.Module:
        """A model as its configuration makes it, its random weights those that the run began with."""
        with placed(opened.document):
            return model(opened.experiment, made.made, made.path)

    def student(self, one: Named, opened: Opened, models: Mapping[str, Any]) -> Path:
        """The folder of a run's student; raises HookbrewError with the nearest name when there is none."""
        assert opened.folder is not None
        callbacks = opened.experiment.callbacks
        final, best = (
            next((c.options.folder for c in callbacks if c.type == kind), usual)
            for kind, usual in (("weights", "final"), ("best", "best"))
        )
        wanted = {"": (final, best), "student": (final, best), "final": (final,), "best": (best,)}
        tried = wanted.get(one.part, (one.part,))
        for name in tried:
            if held(opened.folder / name):
                return opened.folder / name
        there = [path.name for path in sorted(opened.folder.iterdir()) if held(path)] if opened.folder.is_dir() else []
        if one.part in ("", "student"):
            raise FolderError(f"{opened.folder} has no student yet: neither {final}/ nor {best}/ is there")
        raise absent(one, [*there, *models])


def absent(one: Named, names: Iterable[str]) -> HookbrewError:
    """What is said of a part that a run or a configuration does not have."""
    return HookbrewError(f"{one.place} has no model {one.part!r}; {words.hint(one.part, names)}")


def held(folder: Path) -> bool:
    """Whether a folder holds a model."""
    return (folder / "config.json").is_file() or (folder / "student.safetensors").is_file()
