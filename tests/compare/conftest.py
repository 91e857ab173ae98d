"""Models that are small enough to check by hand, and batches with padding."""

import pytest
import torch
from torch import nn


class Net(nn.Module):
    """Embeds tokens, (B, L), and scores 4 classes: of each sample, or of each token."""

    def __init__(self, width=6, tokens=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 4)
        self.tokens = tokens

    def forward(self, input_ids, attention_mask):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden)) + hidden
        mask = attention_mask[..., None]
        return self.head(3 * hidden if self.tokens else 3 * (hidden * mask).sum(1) / mask.sum(1))


def made(batches=5, size=7, width=0, tokens=False, seed=3):
    """Batches whose samples have 2 to 6 tokens; width: how much padding there is beyond."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        lengths = torch.randint(2, 7, (size,), generator=draw)
        ids = torch.randint(1, 20, (size, 6), generator=draw)
        labels = torch.randint(0, 4, (size, 6) if tokens else (size,), generator=draw)
        mask = (torch.arange(6) < lengths[:, None]).long()
        if width:
            filled = torch.randint(1, 20, (size, width), generator=torch.Generator().manual_seed(99))
            ids, mask = torch.cat([ids, filled], 1), torch.cat([mask, torch.zeros(size, width, dtype=torch.long)], 1)
            if tokens:
                labels = torch.cat([labels, torch.full((size, width), 2)], 1)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


@pytest.fixture
def batches():
    return made


@pytest.fixture
def net():
    return Net
