"""The attention of one sample as a map. L and S tokens, H heads."""

from __future__ import annotations

from torch import Tensor

from hookbrew.errors import ObjectiveError


def attended(attention: Tensor, mask: Tensor | None) -> Tensor:
    """The map of one sample, the mean over its heads, (1, H, L, S) to (l, s): without tokens that are padding.

    mask: (1, L); it cuts queries and keys where it has as many. Raises ObjectiveError for what is no attention.
    """
    if attention.dim() != 4:
        raise ObjectiveError(
            f"attention is (samples, heads, tokens, tokens), and this is {tuple(attention.shape)}; name one as in "
            'student_attention = "encoder.layer[*].attention.self:attn"'
        )
    found = attention[0].float().mean(dim=0)
    there = None if mask is None or not mask[0].any() else mask[0].bool()
    if there is not None and len(there) == found.shape[0]:
        found = found[there]
    if there is not None and len(there) == found.shape[1]:
        found = found[:, there]
    return found
