"""Tiny models of real architectures, with random weights, and a small network with in-place activations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}


def bert(t):
    return t.BertForSequenceClassification(t.BertConfig(**SIZES, max_position_embeddings=32, num_labels=3))


def distilbert(t):
    config = t.DistilBertConfig(vocab_size=64, dim=16, n_layers=4, n_heads=2, hidden_dim=24, num_labels=3)
    return t.DistilBertForSequenceClassification(config)


def albert(t):
    config = t.AlbertConfig(**SIZES, embedding_size=8, num_labels=3)
    return t.AlbertForSequenceClassification(config)


def gpt2(t):
    return t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def llama(t):
    return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=32))


def vit(t):
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    return t.ViTForImageClassification(t.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))


def t5(t):
    config = t.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2)
    return t.T5ForConditionalGeneration(config)


def bart(t):
    config = t.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return t.BartForConditionalGeneration(config)


def qwen3(t):
    config = t.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8, max_position_embeddings=32)
    return t.Qwen3ForCausalLM(config)


def modernbert(t):
    special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    config = t.ModernBertConfig(**SIZES, **special, max_position_embeddings=32, num_labels=3)
    return t.ModernBertForSequenceClassification(config)


def roberta(t):
    config = t.RobertaConfig(**SIZES, max_position_embeddings=34, num_labels=3, pad_token_id=0)
    return t.RobertaForSequenceClassification(config)


def mixtral(t):
    sizes = {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    return t.MixtralForCausalLM(t.MixtralConfig(**SIZES, **sizes, max_position_embeddings=32))


def deberta(t):
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}
    config = t.DebertaV2Config(**SIZES, **relative, max_position_embeddings=32, num_labels=3)
    return t.DebertaV2ForSequenceClassification(config)


BUILDERS = {
    f.__name__: f
    for f in (bert, distilbert, albert, gpt2, llama, vit, t5, bart, qwen3, modernbert, roberta, mixtral, deberta)
}


@pytest.fixture(scope="session")
def transformer():
    """transformer(name): a fresh model in eval mode and its inputs, the same each time."""
    transformers = pytest.importorskip("transformers")

    def build(name):
        torch.manual_seed(0)
        model = BUILDERS[name](transformers).eval()
        ids = torch.randint(1, 64, (2, 7))
        if name == "vit":
            return model, {"pixel_values": torch.randn(2, 3, 8, 8)}
        if name in ("t5", "bart"):
            return model, {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
        return model, {"input_ids": ids}

    return build


class Block(nn.Module):
    """The residual block of He et al. 2015: both activations change a tensor in place."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stage = nn.Sequential(Block(4), Block(4), Block(4))
        self.spare = nn.Identity()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.stage(self.stem(x)).mean((2, 3)))


@pytest.fixture
def cnn():
    """A small residual network, and images (B, 3, 6, 6)."""
    return Cnn().eval(), torch.randn(2, 3, 6, 6)


class Stack(nn.Module):
    """Blocks with the names that make paths difficult: `output`, `self`, `logits`, numbers, one module twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(6))
        self.heads = nn.ModuleDict({"self": nn.Linear(4, 4), "output": nn.Linear(4, 4)})
        self.first = self.layer[0]
        self.logits = nn.Linear(4, 2)

    def forward(self, x):
        for layer in self.layer:
            x = layer(x)
        return self.logits(self.heads["output"](self.heads["self"](x)))


@pytest.fixture
def stack():
    """Six numbered blocks and difficult names, and inputs (B, 4)."""
    return Stack(), torch.randn(3, 4)


@pytest.fixture
def hooks():
    """hooks(model): how many hooks there are on all its modules."""

    def count(model):
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    return count


class Attention(nn.Module):
    """The attention of timm: one projection to q, k and v; `fused` chooses between a kernel and a softmax."""

    def __init__(self, width, heads, *, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(0.1)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        else:
            scores = q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)
            mixed = self.attn_drop(scores.softmax(dim=-1)) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    """The pre-norm block of timm."""

    def __init__(self, width, heads, *, fused):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, fused=fused)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A vision transformer with the names of timm."""

    def __init__(self, *, fused, depth=3, width=8):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(Layer(width, 2, fused=fused) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patch_embed(x).flatten(2).mT)).mean(1))


@pytest.fixture
def timm_vit():
    """timm_vit(fused=True): a model like those of timm, and images (B, 3, 8, 8)."""

    def build(*, fused, **sizes):
        return Vit(fused=fused, **sizes).eval(), torch.randn(2, 3, 8, 8)

    return build


@pytest.fixture
def torch_encoder():
    """torch's own encoder of three layers, and inputs (B, L, D)."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 3).eval(), torch.randn(2, 5, 8)
