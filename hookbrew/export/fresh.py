"""A process of its own that loads an exported student and runs it: `python -P fresh.py job.json`.

It imports nothing of hookbrew, nor lets anyone else do so. job.json holds

    code        Python that makes `student`, as the model card has it; or `weights`, tensors by name
    inputs      a file of safetensors, `0/input_ids`, `1/input_ids`, ...
    outputs     where those of the student go, under names of the same form
    count       how many batches there are
    threads     how many torch computes with
    arrays      whether the student takes arrays of NumPy, and needs no torch
    answer      where to say what it found, as JSON
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BARRED = ("hookbrew", "hookbrew_plugins")
REASON = "is not to be imported here"


class Bar:
    """Lets nobody import hookbrew; as the first of sys.meta_path."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise ImportError for its modules; others are for the finders after it."""
        if name.partition(".")[0] in BARRED:
            raise ImportError(f"{name} {REASON}")


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The tensors of what a model gives, by name: `logits`, `hidden_states.0`; a single one is `output`.

    Mappings, dataclasses, tuples and lists are gone into; anything else, as a cache, is left out.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return {name or "output": value}
    inside: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inside = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, (list, tuple)):
        inside = dict(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    found: dict[str, Any] = {}
    for key, part in inside.items():
        found |= flat(part, f"{name}.{key}" if name else f"output.{key}" if isinstance(key, int) else str(key))
    return found


def main(path: str) -> None:
    """Do one job."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, Bar())
    space: dict[str, Any] = {"__name__": "exported"}
    if not job["arrays"]:
        import torch

        torch.set_num_threads(job["threads"])
        torch.set_grad_enabled(False)
    exec(compile(job["code"], "the code of the model card", "exec"), space)
    files = importlib.import_module("safetensors.numpy" if job["arrays"] else "safetensors.torch")
    outputs = dict(space["weights"]) if "weights" in space else run(space["student"], files, job)
    files.save_file({name: plain(value) for name, value in outputs.items()}, job["outputs"])
    module: Any = space.get("student")
    state = module.state_dict() if hasattr(module, "state_dict") else {}
    answer = {"keys": {name: list(tensor.shape) for name, tensor in state.items()}}
    assert not {name for name in sys.modules if name.partition(".")[0] in BARRED}
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def run(student: Any, files: Any, job: Mapping[str, Any]) -> dict[str, Any]:
    """What the student gives for each batch."""
    batches: list[dict[str, Any]] = [{} for _ in range(job["count"])]
    for name, tensor in files.load_file(job["inputs"]).items():
        number, _, key = name.partition("/")
        batches[int(number)][key] = tensor
    if hasattr(student, "parameters"):
        student = student.to("cpu")
        for tensor in (*student.parameters(), *student.buffers()):
            tensor.data = tensor.data.clone()  # of a mapped file they lie unevenly, and kernels round otherwise then
    return {f"{n}/{k}": value for n, batch in enumerate(batches) for k, value in flat(student(**batch)).items()}


def plain(value: Any) -> Any:
    """A tensor or an array that shares its memory with no other."""
    return value.detach().contiguous().clone() if hasattr(value, "detach") else value.copy(order="C")


if __name__ == "__main__":
    main(sys.argv[1])
