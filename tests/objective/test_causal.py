"""Logits of the next token: shifted once against labels and masks, and refused where nobody said so."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import hookbrew as hb
from hookbrew.errors import ConfigError, DataError


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def gpt(width=8, seed=0):
    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))


@pytest.fixture
def text(batches):
    """Six texts of uneven length, whose labels are their own tokens; one token of a prompt has none."""
    (batch,) = batches([7, 2, 4, 3, 6, 5])
    labels = batch["input_ids"].where(batch["attention_mask"].bool(), torch.tensor(-100))
    labels[2, 2] = -100
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def by_hand(student, teacher, batch):
    """Means of ce and kl at T = 2, one position after the other, and how many there are of each."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    ours, theirs = (model(**inputs).logits.detach().double() for model in (student, teacher))
    ce, kl = [], []
    for row, mask in enumerate(batch["attention_mask"].tolist()):
        for at in range(len(mask) - 1):
            if mask[at] and mask[at + 1]:
                p, q = (theirs[row, at] / 2).softmax(0), (ours[row, at] / 2).softmax(0)
                kl.append(4 * float((p * (p / q).log()).sum()))
                label = int(batch["labels"][row, at + 1])
                if label != -100:
                    ce.append(-float(ours[row, at].log_softmax(0)[label]))
    return [sum(ce) / len(ce), sum(kl) / len(kl)], [len(ce), len(kl)]


LOSSES = [hb.loss("ce"), hb.loss("kl", temperature=2)]


def test_against_a_loop_over_positions(text, objective, step):
    """A mask with a hole, so that of two neighbours either may be the one that is missing."""
    text["attention_mask"][0, 3] = 0
    student, teacher = gpt(8), gpt(16, 1)
    made = objective(student, teacher, LOSSES, text, causal=True)
    want, counts = by_hand(student, teacher, text)
    assert made.counts(text, 6, torch.device("cpu")).tolist() == counts
    assert step(made, [text])[0].tolist() == pytest.approx(want, abs=1e-6)


def test_the_loss_of_transformers(text, objective, step):
    student = gpt()
    made = objective(student, None, [hb.loss("ce")], text, causal=True)
    assert step(made, [text])[0].item() == pytest.approx(student(**text).loss.item(), abs=1e-6)


def test_labels_that_were_moved_by_one_before(text, objective, step):
    student = gpt()
    moved = {**text, "labels": nn.functional.pad(text["labels"][:, 1:], (0, 1), value=-100)}
    made = objective(student, None, [hb.loss("ce")], moved, causal=False)
    assert step(made, [moved])[0].item() == pytest.approx(student(**text).loss.item(), abs=1e-6)


def test_hidden_states_are_not_shifted(text, objective):
    """They are of the token at which they stand."""
    tables = [hb.loss("hidden_mse", student="hidden[-1]", teacher="hidden[-1]", projection="linear"), hb.loss("kl")]
    made = objective(gpt(8), gpt(16), tables, text, causal=True)
    assert made.counts(text, 6, torch.device("cpu")).tolist() == [27.0, 21.0]


def test_soft_labels_of_tokens(text, objective, step):
    """A distribution for each token is shifted as a number is."""
    student = gpt()
    rows = nn.functional.one_hot(text["labels"].clamp(min=0), 20).float() * (text["labels"] >= 0).unsqueeze(-1)
    soft = {**text, "labels": rows}
    hard = objective(student, None, [hb.loss("ce")], text, causal=True)
    made = objective(student, None, [hb.loss("ce")], soft, causal=True)
    assert made.counts(soft, 6, torch.device("cpu")).tolist() == hard.counts(text, 6, torch.device("cpu")).tolist()
    assert torch.allclose(step(made, [soft])[1], step(hard, [text])[1], rtol=0, atol=1e-7)


def test_micro_batches_and_padding(text, objective, step, split):
    made = objective(gpt(8), gpt(16, 1), LOSSES, text, causal=True)
    means, slope = step(made, [text])
    wider = {k: nn.functional.pad(v, (0, 3), value=-100 if k == "labels" else 0) for k, v in text.items()}
    for other in (split(text), [wider]):
        found, gradient = step(made, other)
        assert torch.allclose(found, means, rtol=0, atol=1e-6)
        assert torch.allclose(gradient, slope, rtol=0, atol=1e-6)


def test_pooled_logits_have_no_next_token(tagger, batches, objective, step):
    (batch,) = batches([4, 2, 3])
    student = tagger()
    means = [step(objective(student, None, [hb.loss("ce")], batch, causal=c), [batch])[0] for c in (None, True)]
    assert torch.equal(*means)


def test_nobody_said_which(text, objective):
    assert message(lambda: objective(gpt(), gpt(), LOSSES)) == (
        "data.causal: GPT2LMHeadModel predicts the next token, and loss 'ce' reads labels: write causal = true if "
        "they are those of the tokens themselves, or false if they are moved by one already"
    )
    two = {"a": gpt(), "b": gpt()}
    assert message(lambda: objective(gpt(), two, LOSSES[1:], merge={"confidence": "labels"})) == (
        "data.causal: GPT2LMHeadModel predicts the next token, and the merge of teachers reads labels: write causal = "
        "true if they are those of the tokens themselves, or false if they are moved by one already"
    )
    objective(gpt(), two, LOSSES[1:], text)  # nothing reads labels


def test_nobody_said_which_to_the_evaluation(text, objective):
    """A loss without labels does not ask, and the accuracy would be one token off."""
    made = objective(gpt(), gpt(), LOSSES[1:], text)
    with made.attached(), torch.no_grad():
        assert message(lambda: made.predict(text)) == (
            "data.causal: GPT2LMHeadModel predicts the next token, and the evaluation reads labels: write causal = "
            "true if they are those of the tokens themselves, or false if they are moved by one already"
        )
        assert made.predict({k: v for k, v in text.items() if k != "labels"})[1] is None


def test_a_classifier_is_not_asked(tagger, batches, objective):
    objective(tagger(pooled=False), None, [hb.loss("ce", labels="tags")], *batches([3, 2]))


def test_labels_of_whole_texts(text, objective):
    text["labels"] = text["labels"][:, 0]
    assert message(lambda: objective(gpt(), None, [hb.loss("ce")], text, causal=True)) == (
        "losses[0]: labels are (6,) and logits (6, 7, 20); causal = true needs one for each token"
    )
    made = objective(gpt(), gpt(), [hb.loss("kl")], text, causal=True)
    with made.attached(), torch.no_grad():
        assert message(lambda: made.predict(text), DataError) == (
            "labels are (6,); causal = true needs one for each token"
        )


def test_the_evaluation_sees_what_losses_compare(text, objective):
    """Also where labels are not -100 at padding: the mask takes it out."""
    student = gpt()
    text["labels"] = text["input_ids"].clone()
    made = objective(student, None, [hb.loss("ce")], text, causal=True)
    with made.attached(), torch.no_grad():
        logits, labels = made.predict(text)
    assert torch.equal(logits, student(text["input_ids"], attention_mask=text["attention_mask"]).logits[:, :-1])
    mask = text["attention_mask"].bool()
    there = mask[:, :-1] & mask[:, 1:]
    assert torch.equal(labels, text["input_ids"][:, 1:].where(there, torch.tensor(-100)))


def test_one_token(text, objective, step):
    """It has no next one, so nothing counts; and nothing is nan."""
    made = objective(gpt(), gpt(16, 1), LOSSES, text, causal=True)
    short = {k: v[:, :1] for k, v in text.items()}
    assert made.counts(short, 6, torch.device("cpu")).tolist() == [0.0, 0.0]
    means, slope = step(made, [short])
    assert means.tolist() == [0.0, 0.0]
    assert not slope.any()


def test_a_decoder_with_an_encoder_is_not_shifted(objective, step, text):
    """T5 is given what its logits are of; its mask of the encoder does not fit the decoder's tokens."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    student = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))
    batch = {**text, "labels": text["labels"][:, :5].contiguous()}
    batch["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(batch["labels"])
    tables = [hb.loss("ce")]
    assert message(lambda: objective(student, None, tables, batch)) == (
        "losses[0]: the mask 'attention_mask' is (6, 7) and does not fit the student's (6, 5, 20); name the right key "
        'with mask = "...", or write mask = false if every position counts'
    )
    made = objective(student, None, [hb.loss("ce", mask=False)], batch)
    assert step(made, [batch])[0].item() == pytest.approx(student(**batch).loss.item(), abs=1e-6)
    equal = {**text, "decoder_input_ids": student.prepare_decoder_input_ids_from_labels(text["labels"])}
    assert message(lambda: objective(student, None, tables, equal)) == (
        "losses[0]: the mask 'attention_mask' is of the encoder's tokens, and logits are of decoder_input_ids; name "
        'the right key with mask = "...", or write mask = false if every position counts'
    )
    with made.attached(), torch.no_grad():
        assert torch.equal(made.predict(equal)[1], text["labels"])
