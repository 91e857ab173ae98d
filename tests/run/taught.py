"""A teacher out of tables: what it says of an example is the same in every batch, bit for bit; and its student."""

MODULE = '''
import torch
from torch import nn


class Table(nn.Module):
    """Logits of samples and hidden states of tokens, (B, L, D), looked up."""

    runs = 0

    def __init__(self, width=12, classes=5, mixing=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Embedding(20, width) for _ in range(2))
        self.head = nn.Embedding(20, classes)
        self.mixing = mixing

    def forward(self, input_ids, attention_mask=None):
        Table.runs += 1
        for layer in self.layers:
            layer(input_ids)
        logits = 3 * self.head(input_ids[:, 0]) + self.head(input_ids[:, 1])
        return logits + logits.mean(0) if self.mixing else logits


def bert(width=16, layers=2):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 16}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes, **none))


class Headed(nn.Module):
    """Logits of tokens, (B, L, C), by a linear head on what is looked up; soft: they are capped after it."""

    def __init__(self, width=6, classes=50, soft=False):
        super().__init__()
        self.embed, self.head, self.soft = nn.Embedding(20, width), nn.Linear(width, classes), soft

    def forward(self, input_ids, attention_mask=None):
        Table.runs += 1
        logits = self.head(self.embed(input_ids))
        return torch.tanh(logits) if self.soft else logits


class Normed(Headed):
    """Its norm gives fp32, whatever its matrices are in."""

    def forward(self, input_ids, attention_mask=None):
        Table.runs += 1
        hidden = self.embed(input_ids).float()
        return self.head(hidden / hidden.norm(dim=-1, keepdim=True))


class Tagger(nn.Module):
    """The student of Headed."""

    def __init__(self, width=4, classes=50):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, width), nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask=None):
        return self.head(torch.tanh(self.embed(input_ids)))


class Net(nn.Module):
    """Embeds tokens, (B, L), and scores 5 classes."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        mask = attention_mask[..., None]
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def samples(number=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(number):
        ids = torch.randint(1, 20, (int(torch.randint(2, 7, (), generator=generator)),), generator=generator)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": int(ids[0]) % 3})
    return made


class Noisy(list):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "input_ids": torch.randint(1, 20, sample["input_ids"].shape)}


def noisy():
    return Noisy(samples())
'''

CONFIG = """\
output = "runs/toy"
pythonpath = ["."]
seed = 3

[teacher]
factory = "taughtland:Table"

[student]
factory = "taughtland:Net"

[data]
train = { factory = "taughtland:samples" }
batch_size = 4
pad = { input_ids = 0, attention_mask = 0 }

[train]
epochs = 3
device = "cpu"
log_every = 3

[optimizer]
lr = 1e-2

[[losses]]
type = "kd_ce"
temperature = 2

[[losses]]
type = "hidden_mse"
student = "layers[*]"
teacher = "layers[*]"
projection = "linear"
"""

KEPT = "cache.folder=kept"
TAIL = "losses=[{type='topk_tail', k=2, temperature=2}]"
