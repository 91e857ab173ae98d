"""Several teachers become one: the mean of their logits, or of what they hold probable. B batch, C classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hookbrew.config import Merge
from hookbrew.errors import ObjectiveError


def merged(
    teachers: Sequence[Tensor], weights: Sequence[float], merge: Merge, temperature: float, labels: Tensor | None
) -> Tensor:
    """Logits (..., C) that stand for all teachers; each of them (..., C), weighted by one number.

    by logits: sum_k w_k z_k, as TextBrewer's MultiTeacherDistiller with equal weights (You et al. 2017 average what
    comes next). by probabilities: T log sum_k w_k softmax(z_k / T), whose softmax at T is the mean of theirs.
    confidence: w_k differs from row to row, see `trusted`.

    Raises ObjectiveError when shapes differ, or labels are needed and missing.
    """
    if len(teachers) == 1:
        return teachers[0]
    if len({tensor.shape for tensor in teachers}) > 1:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in teachers)
        raise ObjectiveError(f"the teachers' logits are {shapes}; they cannot be merged")
    stacked = torch.stack([tensor.detach() for tensor in teachers])
    stacked = stacked if stacked.dtype == torch.float64 else stacked.float()
    # number by number: a tensor made of them would be copied to the device, and wait for it
    share = torch.stack([stacked.new_full(stacked.shape[1:-1], weight / sum(weights)) for weight in weights])
    if merge.confidence is not None:
        share = share * trusted(stacked, merge.confidence, labels)
        share = share / share.sum(dim=0)
    share = share.unsqueeze(-1)
    if merge.by == "logits":
        return (share * stacked).masked_fill(share == 0, 0.0).sum(dim=0)  # 0 * -inf would be nan
    found: Tensor = temperature * torch.logsumexp(torch.log_softmax(stacked / temperature, dim=-1) + share.log(), dim=0)
    return found


def trusted(teachers: Tensor, confidence: str, labels: Tensor | None) -> Tensor:
    """How far each teacher is trusted in each row, (K, ...), from logits (K, ..., C).

    labels: (1 - exp(l_k) / sum_j exp(l_j)) / (K - 1), l_k the cross-entropy of teacher k with the label: Zhang, Chen
    and Wang 2022, Confidence-Aware Multi-Teacher Knowledge Distillation, eq. 2; a row without a label trusts all alike.
    entropy: softmax over teachers of minus the entropy of each; needs no labels.

    Raises ObjectiveError when labels are missing or do not fit.
    """
    logs = torch.log_softmax(teachers, dim=-1)
    if confidence == "entropy":
        entropy = -(logs.exp() * logs.masked_fill(torch.isneginf(logs), 0.0)).sum(dim=-1)
        return torch.softmax(-entropy, dim=0)
    if labels is None or labels.shape != teachers.shape[1:-1] or labels.is_floating_point():
        what = "there are none" if labels is None else f"they are {labels.dtype} {tuple(labels.shape)}"
        raise ObjectiveError(
            f'merge.confidence = "labels" needs one label for each row of {tuple(teachers.shape[1:])}, and {what}; '
            '"entropy" needs none'
        )
    known = labels >= 0
    index = labels.clamp(min=0).expand(len(teachers), *labels.shape).unsqueeze(-1)
    loss = -logs.gather(-1, index).squeeze(-1).clamp(min=torch.finfo(logs.dtype).min)  # inf - inf would be nan
    doubt = torch.softmax(loss, dim=0)
    return torch.where(known, (1.0 - doubt) / (len(teachers) - 1), 1.0 / len(teachers))
