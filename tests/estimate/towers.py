"""Models and a configuration whose memory can be told apart: weights, or activations, are most of it."""

MODULE = '''
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Tower(nn.Module):
    """Tokens (B, L) to 3 classes."""

    def __init__(self, width=64, depth=4, words=200):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(1))


def samples(number=64, length=32, words=200):
    ids = torch.randint(0, words, (number, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[0]) % 3} for row in ids]
'''

CONFIG = """\
output = "runs/tower"
pythonpath = ["."]

[teacher]
factory = "towers_of:Tower"
width = 96

[student]
factory = "towers_of:Tower"

[data]
train = { factory = "towers_of:samples" }
batch_size = 16

[train]
steps = 3
device = "cpu"
threads = 1

[[losses]]
type = "kd_ce"

[[losses]]
type = "hidden_mse"
student = "blocks[*]"
teacher = "blocks[*]"
projection = "linear"
"""

HEAVY = {
    "both": [],
    "weights": ["student.width=256", "student.depth=3", "teacher.depth=3", "data.batch_size=4", "data.train.length=8"],
    "activations": ["student.width=32", "data.train.length=64", "data.batch_size=32"],
    "root": ["student.words=20000", "data.batch_size=8"],
    "accumulated": ["train.accumulate=2", "student.width=128"],
    "momentum": ["optimizer.type=SGD", "optimizer.momentum=0.9", "student.width=128"],
    "bf16": ["train.precision=bf16", "student.width=128"],
}
"""What is most of the memory."""
FAST = ["weights", "activations", "accumulated"]
"""Those that are tried with two processes each time."""


def prepare(folder):
    """The files."""
    (folder / "towers_of.py").write_text(MODULE)
    (folder / "tower.toml").write_text(CONFIG)
