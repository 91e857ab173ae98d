"""TextBrewer: its distiller, its losses, adaptors over what the models return."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from typing import Any

from side import Side, logits
from torch import Tensor
from torch.nn import functional
from work import TEMPERATURE

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # `is not 'none'` in the source of its release
    import textbrewer
    from textbrewer.presets import KD_LOSS_MAP

logging.getLogger("Distillation").setLevel(logging.ERROR)


def kl(student: Tensor, teacher: Tensor, _: float) -> Tensor:
    """Its own is the cross-entropy, which is larger by the teacher's entropy."""
    log_q, log_p = (functional.log_softmax(found.flatten(0, -2), dim=-1) for found in (student, teacher))
    return functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


KD_LOSS_MAP["kl"] = kl


class Adaptors:
    """What it asks for of a batch, and of the outputs of both models."""

    def __init__(self, side: Side) -> None:
        self.work, self.batch = side.work, dict[str, Tensor]()

    def split(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Each model gets its own; what was stored takes the place of a forward of the teacher."""
        self.batch = batch
        given = {"student": {key: batch[key] for key in self.work.inputs}}
        if "stored" in batch:
            return given | {"teacher": {}, "teacher_cache": {"stored": batch["stored"]}}
        return given | {"teacher": {key: batch[key] for key in self.work.told}}

    def teacher(self, _: Any, output: Any) -> dict[str, Any]:
        """Of the teacher."""
        if isinstance(output, Mapping) and "stored" in output:
            return {"logits": output["stored"]}
        found = {"logits": logits(output)} if self.work.logits else {}
        more = {"hidden": "hidden_states", "attention": "attentions"}
        return found | {name: getattr(output, key) for name, key in more.items() if getattr(output, key, None)}

    def student(self, _: Any, output: Any) -> dict[str, Any]:
        """Of the student, with the loss of hard labels."""
        found = self.teacher(_, output)
        if self.work.logits == "labels":
            found["losses"] = functional.cross_entropy(found["logits"], self.batch["labels"])
        return found


def matches(side: Side) -> list[dict[str, Any]]:
    """Its `intermediate_matches`."""
    work, found = side.work, list[dict[str, Any]]()
    for (own, other), projection in zip(work.hidden, side.projections, strict=True):
        proj = ["linear", projection.in_features, projection.out_features]
        found.append({"layer_S": own, "layer_T": other, "feature": "hidden", "loss": "hidden_mse", "proj": proj})
    for own, other in work.maps:
        found.append({"layer_S": own, "layer_T": other, "feature": "attention", "loss": "attention_mse"})
    return [match | {"weight": 1.0} for match in found]


def train(side: Side) -> Callable[[], None]:
    """Its distiller for matches where there are some, else that for logits."""
    folder, device, adaptors = TemporaryDirectory(), side.loader.device, Adaptors(side)
    training = textbrewer.TrainingConfig(device=str(device), output_dir=folder.name, ckpt_steps=10**9)
    kl = side.work.logits == "kl"
    config = textbrewer.DistillationConfig(
        temperature=1.0 if kl else TEMPERATURE,
        kd_loss_type="kl" if kl else "ce",
        kd_loss_weight=1.0 if kl else TEMPERATURE**2,
        hard_label_weight=float(side.work.logits == "labels"),
        intermediate_matches=matches(side) or None,
    )
    kind = textbrewer.GeneralDistiller if side.work.hidden else textbrewer.BasicDistiller
    made = kind(training, config, side.teacher, side.student, adaptors.teacher, adaptors.student)
    if side.projections:
        made.projs[: len(side.projections)] = side.projections
        made.projs_group = []  # else each call would give the optimizer their parameters again
    plain = made.compute_loss

    def noted(*given: Any) -> Any:
        total, parts = plain(*given)
        side.losses.append(total.detach().clone())  # it is divided in place
        return total, parts

    made.compute_loss = noted
    optimizer, steps = side.adamw(), len(side.loader)

    def fit() -> None:
        with made:
            given = {"num_steps": steps, "batch_postprocessor": adaptors.split, **side.work.asked}
            made.train(optimizer, side.loader, **given)
        made.folder = folder  # it writes into it when it ends

    return fit
