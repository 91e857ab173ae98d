"""Models of fewer tokens, and of the tokens of another tokenizer."""

import pytest
import torch

from hookbrew.errors import SurgeryError
from hookbrew.surgery.tokens import mapped
from hookbrew.surgery.vocabulary import occurring, respelt

transformers = pytest.importorskip("transformers")

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, **SPECIAL,
}  # fmt: skip
SIDES = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BUILDERS = {
    "bert": lambda t: t.BertForMaskedLM(t.BertConfig(**SIZES)),
    "distilbert": lambda t: t.DistilBertForMaskedLM(
        t.DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24)
    ),
    "roberta": lambda t: t.RobertaForMaskedLM(t.RobertaConfig(**SIZES)),
    "gpt2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, **SPECIAL)
    ),
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=1)),
    "t5": lambda t: t.T5ForConditionalGeneration(
        t.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "bart": lambda t: t.BartForConditionalGeneration(
        t.BartConfig(
            vocab_size=40, d_model=16, **SIDES, encoder_ffn_dim=24, decoder_ffn_dim=24, **SPECIAL,
            max_position_embeddings=32, decoder_start_token_id=2, forced_eos_token_id=2,
        )
    ),
}  # fmt: skip
KEPT = [0, 39, 2, 1, *range(7, 31, 2)]
"""Padding stays where it is; the others move."""


@pytest.fixture(scope="session")
def speller():
    """speller(name): a model of 40 tokens, all its tensors random."""

    def build(name):
        torch.manual_seed(0)
        model = BUILDERS[name](transformers).eval()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor += 0.1 * torch.randn_like(tensor)
        return model

    return build


def texts(model, ids):
    """Inputs of these ids, to whatever reads them."""
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {})


@pytest.mark.parametrize("name", BUILDERS)
def test_a_student_says_the_same_of_the_tokens_that_it_has(speller, logits, loaded, name):
    model = speller(name)
    student = respelt(model, KEPT)
    new = torch.randint(3, len(KEPT), (3, 6))
    old = torch.tensor(KEPT)[new]
    ours, theirs = logits(student, texts(student, new)), logits(model, texts(model, old))
    torch.testing.assert_close(ours, theirs[..., KEPT], rtol=1e-5, atol=1e-6)
    assert student.config.vocab_size == len(KEPT) == ours.shape[-1]
    assert torch.equal(logits(loaded(student), texts(student, new)), ours)
    assert torch.equal(student.get_input_embeddings().weight, model.get_input_embeddings().weight[KEPT])
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (student.get_input_embeddings().weight is student.get_output_embeddings().weight)


def test_special_ids_are_translated(speller):
    model = speller("bart")
    model.generation_config.suppress_tokens = [9, 10]
    model.generation_config.bad_words_ids = [[9, 11], [10]]
    student = respelt(model, KEPT)
    for config in (student.config, student.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 3, 2)
    assert student.generation_config.decoder_start_token_id == student.generation_config.forced_eos_token_id == 2
    assert student.generation_config.suppress_tokens == [KEPT.index(9)]
    assert student.generation_config.bad_words_ids == [[KEPT.index(9), KEPT.index(11)]]
    assert model.generation_config.suppress_tokens == [9, 10]


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
def test_a_student_generates_what_the_teacher_does_among_its_tokens(speller, name):
    model = speller(name)
    dropped = [[token] for token in range(40) if token not in KEPT]
    new = torch.randint(3, len(KEPT), (2, 5))
    given = {"max_new_tokens": 6, "do_sample": False}
    ours = respelt(model, KEPT).generate(input_ids=new, **given)
    theirs = model.generate(input_ids=torch.tensor(KEPT)[new], bad_words_ids=dropped, **given)
    assert torch.equal(torch.tensor(KEPT)[ours], theirs)


def test_tokens_of_several_pieces_are_their_mean(speller):
    model = speller("bert")
    pieces = {0: 0, 1: [1], 2: 2, 3: [5, 6, 7], 4: [5], 5: 9}
    student = respelt(model, pieces)
    old, new = model.get_input_embeddings().weight, student.get_input_embeddings().weight
    torch.testing.assert_close(new[3], old[5:8].mean(0))
    assert torch.equal(new[[4, 5]], old[[5, 9]])
    torch.testing.assert_close(student.cls.predictions.bias[3], model.cls.predictions.bias[5:8].mean())
    assert student.get_output_embeddings().weight is new


@pytest.mark.parametrize(
    ("name", "ids", "told"),
    [
        ("bert", [1, 2, 5], "pad_token_id = 0 is dropped, and the model needs it; keep the id 0"),
        ("bert", [0, 1, 2, 5, 5], "id 5 is there twice"),
        ("bert", [0, 1, 2, 40], "id 40 is not in the teacher's vocabulary of 40"),
        ("bert", [], "there is no id to keep"),
        ("bert", {0: 0, 2: 1}, "new ids have to be 0 to 1, and 1 is not there"),
        ("bert", {0: 0, 1: 1, 2: 2, 3: []}, "new id 3 is made of no old one; give it that of the unknown token"),
        ("roberta", [5, 0, 1, 2, 6, 7, 8], "RobertaForMaskedLM gives other outputs for the same tokens once their ids"),
    ],
)
def test_refused(speller, name, ids, told):
    with pytest.raises(SurgeryError) as caught:
        respelt(speller(name), ids)
    assert told in str(caught.value)


def test_models_without_a_vocabulary_are_refused():
    with pytest.raises(SurgeryError, match="Linear has no config of transformers"):
        respelt(torch.nn.Linear(2, 2), [0])
    vit = transformers.ViTModel(transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(SurgeryError, match="ViTConfig says no vocab_size"):
        respelt(vit, [0])


def test_a_special_id_outside_of_the_vocabulary_is_refused(speller):
    model = speller("gpt2")
    model.config.bos_token_id = 50256
    with pytest.raises(SurgeryError, match="bos_token_id = 50256 is not in the teacher's own vocabulary of 40"):
        respelt(model, KEPT)


def test_what_occurs(speller):
    batches = [{"input_ids": torch.tensor([[5, 7], [7, 9]])}, {"input_ids": [[30]], "labels": [[-100, 31]]}]
    model = speller("bert")
    assert occurring(model, batches) == [0, 1, 2, 5, 7, 9, 30]
    assert occurring(model, batches, ["input_ids", "labels"]) == [0, 1, 2, 5, 7, 9, 30, 31]
    with pytest.raises(SurgeryError, match="no batch has any of tokens"):
        occurring(model, batches, ["tokens"])


class Letters:
    """A tokenizer of single letters and some words, with the methods of those of transformers."""

    def __init__(self, tokens, **special):
        self.tokens = tokens
        for name, token in special.items():
            setattr(self, name, token)

    def get_vocab(self):
        return {token: place for place, token in enumerate(self.tokens)}

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return [self.tokens.index(letter) for letter in text if letter in self.tokens]


def test_tokens_of_another_tokenizer():
    old = Letters(["<pad>", "<unk>", "a", "b", "c", "ab"], pad_token="<pad>", unk_token="<unk>")
    new = Letters(["[PAD]", "abc", "ab", "b", "x", "[UNK]"], pad_token="[PAD]", unk_token="[UNK]")
    assert mapped(old, new) == {0: [0], 1: [2, 3, 4], 2: [5], 3: [3], 4: [1], 5: [1]}
    with pytest.raises(SurgeryError, match="token 'x' has no piece in the old tokenizer, which has no unknown token"):
        mapped(Letters(["[PAD]", "a", "b", "c", "ab"], pad_token="[PAD]"), new)
