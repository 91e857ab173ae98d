"""Layers of two factors: the best approximation, ties, and what loads afterwards."""

import copy

import pytest
import torch
from torch import nn

from hookbrew.errors import SelectorError, SurgeryError
from hookbrew.loop.save import save
from hookbrew.surgery.rank import LowEmbedding, factorised, restored


class Reader(nn.Module):
    def __init__(self, *, tied=False):
        super().__init__()
        self.embed = nn.Embedding(12, 6, padding_idx=0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6, bias=False))
        self.head = nn.Linear(6, 12)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


IDS = torch.tensor([[1, 5, 11], [0, 3, 3]])


@pytest.mark.parametrize("tied", [False, True])
def test_of_full_rank_it_computes_the_same(tied):
    model = Reader(tied=tied)
    made = factorised(model, {"embed": 6, "body[0,2]": 6, "head": 6})
    torch.testing.assert_close(made(IDS), model(IDS), rtol=0, atol=1e-6)
    assert type(model.head) is nn.Linear
    assert type(model.embed) is nn.Embedding
    assert (made.head.left is made.embed.left) == tied


@pytest.mark.parametrize("path", ["embed", "body.0", "head"])
@pytest.mark.parametrize("rank", [1, 3])
def test_of_a_lower_rank_it_is_the_best(path, rank):
    model = Reader()
    made = factorised(model, {path: rank}).get_submodule(path)
    old = model.get_submodule(path)
    matrix = old.weight.detach().double()
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)  # of the Gram matrix: not by an SVD
    projector = vectors[:, -rank:] @ vectors[:, -rank:].T
    torch.testing.assert_close(made.weight.double(), matrix @ projector, rtol=0, atol=1e-6)
    error = (made.weight.double() - matrix).square().sum()
    torch.testing.assert_close(error, values[:-rank].sum(), rtol=1e-4, atol=1e-8)
    if path != "embed":
        assert made.bias is not old.bias
        assert torch.equal(made.bias, old.bias)
        x = torch.randn(4, old.in_features)
        torch.testing.assert_close(
            made(x).double(), x.double() @ (matrix @ projector).T + old.bias.double(), atol=1e-5, rtol=0
        )
    else:
        torch.testing.assert_close(made(IDS).double(), (matrix @ projector)[IDS], rtol=0, atol=1e-6)


def test_numbers_fall_and_all_of_them_learn():
    model = Reader(tied=True)
    made = factorised(model, {"embed": 2})
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, made))
    assert before - after == 12 * 6 - 2 * (12 + 6)
    made(IDS).sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    assert made.embed.left.grad[0].abs().sum() > 0  # by the head; as an embedding, padding learns nothing
    alone = factorised(Reader(), {"embed": 2})
    alone(IDS).sum().backward()
    assert alone.embed.left.grad[0].abs().sum() == 0


def test_dtype_mode_and_aliases_are_carried_over():
    model = Reader().to(torch.bfloat16).eval()
    model.same = model.head
    model.head.weight.requires_grad_(False)
    made = factorised(model, {"head": 2})
    assert made.same is made.head
    assert made.head.left.dtype == torch.bfloat16
    assert not made.head.left.requires_grad
    assert not made.head.training
    assert made.head.bias.requires_grad


def test_a_plain_model_loads_as_it_was_made(tmp_path):
    from safetensors.torch import load_model, save_model

    made = factorised(Reader(tied=True), {"embed": 2, "body[0]": 3})
    save_model(made, str(tmp_path / "student.safetensors"))
    again = factorised(Reader(tied=True), {"embed": 2, "body[0]": 3})
    load_model(again, str(tmp_path / "student.safetensors"))
    assert torch.equal(again(IDS), made(IDS))


SELECTORS = {
    "gpt2": {"transformer.h[*].mlp.c_fc": 4, "transformer.wte": 5},
    "bert": {"bert.embeddings.word_embeddings": 5, "bert.encoder.layer[*].output.dense": 4},
    "t5": {"shared": 5, "**.wo": 3},
    "bart": {"model.shared": 5, "model.decoder.layers[*].fc1": 4},
}


@pytest.mark.parametrize("name", SELECTORS)
def test_a_transformer_is_saved_so_that_nothing_loads_it_wrong(transformer, logits, tmp_path, name):
    model, batch = transformer(name)
    made = factorised(model, SELECTORS[name])
    wide = factorised(model, {path: 16 for path in SELECTORS[name]})
    torch.testing.assert_close(logits(wide, batch), logits(model, batch), rtol=1e-4, atol=1e-5)
    made.save_pretrained(tmp_path / "low")
    with pytest.raises(OSError, match="no file named"):
        type(model).from_pretrained(tmp_path / "low")
    again = restored(type(model)(type(model.config).from_pretrained(tmp_path / "low")).eval(), tmp_path / "low")
    assert torch.equal(logits(again, batch), logits(made, batch))
    made.save_pretrained(tmp_path / "given", state_dict={k: v.clone() for k, v in made.state_dict().items()})
    again = restored(type(model)(model.config).eval(), tmp_path / "given")
    assert torch.equal(logits(again, batch), logits(made, batch))
    with pytest.raises(SurgeryError, match="is saved without push_to_hub"):
        made.save_pretrained(tmp_path / "no", push_to_hub=True)
    save(made, tmp_path / "final")  # as a run does
    assert {file.name for file in (tmp_path / "final").iterdir()} >= {
        "student.safetensors",
        "factorised.json",
        "config.json",
    }
    twin = copy.deepcopy(made)
    twin.save_pretrained(tmp_path / "twin")
    with torch.no_grad():
        made.get_input_embeddings().left.zero_()
    assert twin.get_input_embeddings().left.abs().sum() > 0
    assert twin.save_pretrained.args[0] is twin


def test_a_transformer_generates(transformer):
    model, batch = transformer("gpt2")
    made = factorised(model, SELECTORS["gpt2"])
    given = {"input_ids": batch["input_ids"], "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(made.generate(**given), made.generate(**given, use_cache=False))
    assert made.lm_head.left is made.transformer.wte.left
    assert isinstance(made.get_input_embeddings(), LowEmbedding)


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ({"head": 7}, "rank: 7 for 'head', which is (12, 6); expected 1 to 6"),
        ({"head": 0}, "rank: 0 for 'head'"),
        ({"body[1]": 2}, "rank: 'body.1' is a Tanh; expected a Linear, Conv1D or Embedding"),
        ({"head": 2, "h*": 3}, "rank: 'head' is named twice, with rank 2 and 3"),
    ],
)
def test_refused(ranks, told):
    with pytest.raises(SurgeryError) as caught:
        factorised(Reader(), ranks)
    assert told in str(caught.value)


def test_layers_that_share_a_weight_have_one_rank():
    with pytest.raises(SurgeryError, match="rank: 'head' shares its weight with 'embed', and they have ranks 2 and 3"):
        factorised(Reader(tied=True), {"embed": 3, "head": 2})
    assert factorised(Reader(tied=True), {"embed": 3, "head": 3}).head.rank == 3


def test_names_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(SelectorError, match="did you mean 'head'"):
        factorised(Reader(), {"heed": 2})
    with pytest.raises(SurgeryError, match="holds no factorised model"):
        restored(Reader(), tmp_path)
