"""TextBrewer's configurations as ours: DistillationConfig and TrainingConfig, as JSON, become one TOML file.

What has no counterpart is not dropped: it stands in the file as a comment, with the reason. Source of the
meanings: TextBrewer at git 2c105fa, configurations.py and distiller_general.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import tomli_w

from hookbrew.errors import ConfigError, Problem
from hookbrew.words import hint

DISTILLATION: Final[dict[str, Any]] = {
    "temperature": 4,
    "temperature_scheduler": "none",
    "hard_label_weight": 0,
    "hard_label_weight_scheduler": "none",
    "kd_loss_type": "ce",
    "kd_loss_weight": 1,
    "kd_loss_weight_scheduler": "none",
    "probability_shift": False,
    "intermediate_matches": None,
    "is_caching_logits": False,
}
TRAINING: Final[dict[str, Any]] = {
    "gradient_accumulation_steps": 1,
    "ckpt_frequency": 1,
    "ckpt_epoch_frequency": 1,
    "ckpt_steps": None,
    "log_dir": None,
    "output_dir": "./saved_models",
    "device": "cuda",
    "fp16": False,
    "fp16_opt_level": "O1",
    "data_parallel": False,
    "local_rank": -1,
}
MATCHES: Final = {
    "hidden_mse": "hidden",
    "cos": "hidden",
    "pkd": "hidden",
    "fsp": "flow",
    "gram": "flow",
    "nst": "flow",
    "mmd": "flow",
    "attention_mse": "attention",
    "attention_mse_sum": "attention",
    "attention_ce": "scores",
    "attention_ce_mean": "scores",
}
"""The match losses with a counterpart, and which tensors those take."""
MATCH: Final = ("layer_T", "layer_S", "feature", "loss", "weight", "proj")
"""The keys of an intermediate match."""

HEAD: Final = """\
# Made out of {files} by `hookbrew migrate textbrewer`.
#
# TextBrewer is given models, data and optimizer in Python, so these tables are yours to write:
#
# [teacher]
# factory = "module:callable"
# [student]
# factory = "module:callable"
# [data]
# train = {{ factory = "module:callable" }}
# [optimizer]
# lr = 5e-5
# and `epochs` or `steps` in [train]
"""


@attrs.define
class Migration:
    """What has been mapped so far, and what could not be."""

    output: str = "runs/textbrewer"
    train: dict[str, Any] = attrs.field(factory=dict)
    losses: list[dict[str, Any]] = attrs.field(factory=list)
    callbacks: list[dict[str, Any]] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)

    def text(self, files: str) -> str:
        """The TOML file."""
        tables = {"output": self.output, "train": self.train, "losses": self.losses, "callbacks": self.callbacks}
        notes = "".join(f"# {note}\n" for note in self.notes)
        head = HEAD.format(files=files) + (f"#\n# Differs, or is not mapped:\n{notes}" if notes else "")
        return head + "\n" + tomli_w.dumps({key: value for key, value in tables.items() if value or key == "output"})


def textbrewer(paths: Sequence[Path]) -> str:
    """The TOML for one or two JSON files, a DistillationConfig, a TrainingConfig, or one object with the keys of both.

    Raises ConfigError for a file that is no JSON object, or a key that TextBrewer does not have.
    """
    given: dict[str, Any] = {}
    for path in paths:
        given |= loaded(path)
    made = Migration()
    logits(made, DISTILLATION | given)
    for index, match in enumerate(given.get("intermediate_matches") or ()):
        intermediate(made, index, match)
    training(made, given)
    return made.text(" and ".join(path.name for path in paths))


def loaded(path: Path) -> dict[str, Any]:
    """One file, its keys checked."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError([Problem(str(path), f"this is no JSON file that can be read: {error}")]) from error
    if not isinstance(found, dict):
        raise ConfigError([Problem(str(path), f"expected an object, got {type(found).__name__}")])
    known = DISTILLATION | TRAINING
    said = [f"{key}: TextBrewer has no such key; {hint(key, known)}" for key in found if key not in known]
    if said:
        raise ConfigError([Problem(str(path), sentence) for sentence in said])
    return found


def logits(made: Migration, given: Mapping[str, Any]) -> None:
    """The losses between the logits, and the one on labels."""
    if weighed(given, "kd_loss_weight"):
        kind = {"ce": "kd_ce", "mse": "kd_mse"}.get(given["kd_loss_type"])
        if kind is None:
            raise ConfigError([Problem("kd_loss_type", f"{given['kd_loss_type']!r} is none; one of: ce, mse")])
        table = {"type": kind, "temperature": given["temperature"], "t_squared": False}
        made.losses.append(table | dynamic(made, given["temperature_scheduler"]))
        made.losses[-1] |= {"probability_shift": True} if given["probability_shift"] else {}
        made.losses[-1]["weight"] = weight(made, given, "kd_loss_weight")
        made.notes.append("t_squared = false: TextBrewer does not multiply by T^2; true keeps the gradient's size.")
    if weighed(given, "hard_label_weight"):
        made.losses.append({"type": "ce", "weight": weight(made, given, "hard_label_weight")})
    if given["is_caching_logits"]:
        made.notes.append("is_caching_logits: there is no cache of teacher outputs yet.")


def dynamic(made: Migration, scheduler: Any) -> dict[str, Any]:
    """The options for a temperature of each row: ["flsw", beta, gamma], ["flsw", {"beta": 1}]."""
    name, *arguments = scheduler if isinstance(scheduler, list) else [scheduler]
    if name in ("none", "constant"):
        return {}
    if name not in ("flsw", "cwsm"):
        made.notes.append(f"temperature_scheduler {name!r}: a function of your own, a loss of a plugin here.")
        return {}
    inside = arguments[0] if arguments and isinstance(arguments[0], dict) else None
    named = dict(zip(("beta", "gamma"), arguments, strict=False)) if inside is None else inside
    made.notes.append(f"{name}: temperatures are 0.1 or more here (`coldest`); TextBrewer's become negative.")
    return {"dynamic": name, **named}


def weighed(given: Mapping[str, Any], key: str) -> bool:
    """Whether a loss ever counts: under a schedule it does, even with a weight of 0, which the schedule replaces."""
    return bool(given[key]) or str(given[f"{key}_scheduler"]) != "none"


def weight(made: Migration, given: Mapping[str, Any], key: str) -> Any:
    """A number, or a schedule; TextBrewer's schedules take the place of the weight."""
    scheduler = given[f"{key}_scheduler"]
    if scheduler == "none":
        return given[key]
    if scheduler not in ("linear_decay", "linear_growth"):
        made.notes.append(f"{key}_scheduler {scheduler!r}: a function of your own, a schedule of a plugin here.")
        return given[key]
    if given[key] != 1:
        made.notes.append(f"{key} = {given[key]}: {scheduler} replaces it there: base is 1; here they multiply.")
    return {"type": scheduler, "base": 1.0}


def intermediate(made: Migration, index: int, match: Mapping[str, Any]) -> None:
    """One of the intermediate matches: numbers of layers become aliases."""
    place, loss = f"intermediate_matches[{index}]", match.get("loss")
    if unknown := [key for key in match if key not in MATCH]:
        said = f"TextBrewer has no such key; {hint(unknown[0], MATCH)}"
        raise ConfigError([Problem(f"{place}.{unknown[0]}", said)])
    tensors = MATCHES.get(str(loss))
    ours, theirs = match.get("layer_S"), match.get("layer_T")
    if tensors is None:
        made.notes.append(f"{place}: loss {loss!r} is not here yet, or is your own; write it as a plugin.")
        return
    if not fitting(tensors, ours) or not fitting(tensors, theirs):
        wanted = "two pairs of numbers" if tensors == "flow" else "two numbers"
        made.notes.append(f"{place}: layers {ours} and {theirs} of {loss!r} are not {wanted}.")
        return
    if match.get("feature") != ("hidden" if tensors in ("hidden", "flow") else "attention"):
        made.notes.append(f"{place}: {loss!r} on feature {match.get('feature')!r} has no counterpart.")
        return
    table: dict[str, Any] = {"type": loss, "student": selector(tensors, ours), "teacher": selector(tensors, theirs)}
    table["weight"] = match.get("weight", 1)
    if proj := match.get("proj"):
        table["projection"] = proj[0]
        if len(proj) > 3 and proj[3]:
            table["optimizer"] = proj[3]
    made.losses.append(table)
    if tensors == "scores":
        made.notes.append(f"{place}: {loss!r} takes scores; your adaptor may have given probabilities.")


def fitting(tensors: str, layers: Any) -> bool:
    """Whether a match names what its loss takes: a layer, or two of them."""
    if tensors != "flow":
        return isinstance(layers, int)
    return isinstance(layers, list) and len(layers) == 2 and all(isinstance(layer, int) for layer in layers)


def selector(tensors: str, layer: Any) -> str | list[str]:
    """The alias for an entry of an adaptor's list: of hidden states the first is the embeddings', in both."""
    if tensors == "flow":
        return [f"hidden[{number}]" for number in layer]
    name = "hidden" if tensors == "hidden" else "attention"
    return f"{name}[{layer}]" + (":scores" if tensors == "scores" else "")


def training(made: Migration, given: Mapping[str, Any]) -> None:
    """What TrainingConfig says."""
    made.output = given.get("output_dir", made.output)
    made.train["accumulate"] = given.get("gradient_accumulation_steps", 1)
    if "device" in given:
        made.train["device"] = given["device"]
    if given.get("fp16"):
        made.train["precision"] = "fp16"
    if given.get("log_dir"):
        made.callbacks.append({"type": "tensorboard"})
        made.notes.append("log_dir: tensorboard writes into the run folder, tb/.")
    if given.get("ckpt_steps"):
        made.callbacks.append({"type": "checkpoint", "every": given["ckpt_steps"]})
    elif given.get("ckpt_epoch_frequency", 1) > 1:
        made.callbacks.append({"type": "checkpoint", "epochs": given["ckpt_epoch_frequency"]})
    elif given.get("ckpt_frequency", 1) > 1:
        made.callbacks.append({"type": "checkpoint", "per_epoch": given["ckpt_frequency"]})
    for key, why in {
        "data_parallel": "DataParallel is refused; give the student as DistributedDataParallel from Python",
    }.items():
        if given.get(key):
            made.notes.append(f"{key}: {why}.")
    if given.get("local_rank", -1) != -1:
        made.notes.append("local_rank: torchrun sets it.")
