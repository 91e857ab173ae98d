"""The weights of a run, back in its student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from hookbrew import words
from hookbrew.errors import CheckpointError, ExportError
from hookbrew.loop.shards import FOLDER, placed
from hookbrew.loop.snapshot import fill as refill
from hookbrew.report.weights import EXTRAS
from hookbrew.store import Checkpoint, opened

OURS = "student.safetensors"


@attrs.frozen
class Origin:
    """Where weights are."""

    name: str
    """`final`, `best` or `step 120`."""
    folder: Path
    averaged: bool = False
    """Whether the run keeps an average too, which these are not."""


def fill(student: nn.Module, origin: Origin) -> None:
    """Give a student the weights of a run; raises ExportError when they are another model's, or cannot be read."""
    try:
        if origin.name.startswith("step"):
            resumed(student, opened(origin.folder))
        elif (origin.folder / OURS).is_file():
            load_model(student, str(origin.folder / OURS))
        else:
            pretrained(student, origin.folder)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"the weights in {origin.folder} are not of the student that {MADE}: {reason}") from error


MADE = "resolved.toml makes"


def resumed(student: nn.Module, checkpoint: Checkpoint) -> None:
    """From a checkpoint of a training, sharded or not."""
    if OURS in checkpoint.files:
        refill(student, checkpoint.read(OURS))
        return
    import warnings

    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    wanted = dict(placed({"student": student}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is, of one process
        load(wanted, storage_reader=FileSystemReader(checkpoint.folder / FOLDER), no_dist=True)
    student.load_state_dict({name: wanted[f"student.{name}"] for name in student.state_dict()})


def pretrained(student: nn.Module, folder: Path) -> None:
    """From files of `save_pretrained`: by name, or where names on disk are others, by the model's own way."""
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != EXTRAS)
    state: dict[str, Tensor] = {}
    for path in files:
        state |= load_file(path)
    if state and not {*state} - {*student.state_dict()} and not missing(student, state):
        student.load_state_dict(state, strict=False)
        return
    again, report = type(student).from_pretrained(folder, output_loading_info=True)  # type: ignore[attr-defined]
    wrong = [str(name) for names in report.values() for name in names]
    if wrong:
        raise ExportError(f"the weights in {folder} are not of the student that {MADE}: {words.several(sorted(wrong))}")
    student.load_state_dict(again.state_dict())


def missing(student: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The names that nothing is given for, also not under another name of the same tensor."""
    whole = student.state_dict()
    given = {whole[name].data_ptr() for name in state}
    return [name for name, tensor in whole.items() if name not in state and tensor.data_ptr() not in given]
