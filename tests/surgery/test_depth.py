"""Students of fewer layers: equal to what is saved and loaded, sharing nothing with the teacher, or refused."""

import copy
import re
from itertools import combinations

import pytest
import torch
from torch import nn

from hookbrew.errors import SurgeryError
from hookbrew.surgery.depth import kept
from hookbrew.surgery.rebuild import tensors
from tests.surgery.conftest import CASES

GENERATIVE = ["gpt2", "llama", "qwen3", "mixtral", "gemma2", "t5", "bart"]


def pointers(model):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(model).values() if tensor.numel()}


def snapshot(model):
    return {name: (id(tensor), tensor.clone()) for name, tensor in tensors(model).items()}


@pytest.mark.parametrize(("name", "path", "count"), CASES)
def test_all_layers_are_the_teacher(transformer, logits, name, path, count):
    teacher, inputs = transformer(name)
    student = kept(teacher, {path: range(count)})
    assert torch.equal(logits(student, inputs), logits(teacher, inputs))
    assert list(tensors(student)) == list(tensors(teacher))
    assert not pointers(student) & pointers(teacher)


@pytest.mark.parametrize(("name", "path", "count"), CASES)
def test_a_student_loads_as_it_was_saved(transformer, logits, loaded, name, path, count):
    teacher, inputs = transformer(name)
    before, state = snapshot(teacher), copy.deepcopy(teacher.config.to_dict())
    student = kept(teacher, {path: [0, count - 1]})
    again = loaded(student)
    assert len(again.get_submodule(path)) == 2
    assert torch.equal(logits(student, inputs), logits(again, inputs))
    if count > 2:
        assert not torch.equal(logits(student, inputs), logits(teacher, inputs))
    for new, old in enumerate([0, count - 1]):
        mine, theirs = student.get_submodule(f"{path}.{new}"), teacher.get_submodule(f"{path}.{old}")
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert teacher.config.to_dict() == state
    assert [id(tensor) for tensor in tensors(teacher).values()] == [key for key, _ in before.values()]
    assert all(torch.equal(tensor, before[name][1]) for name, tensor in tensors(teacher).items())
    assert not pointers(student) & pointers(teacher)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path", "count"), CASES)
def test_any_layers_load_as_they_were_saved(transformer, logits, loaded, name, path, count):
    teacher, inputs = transformer(name)
    for number in range(count):
        for rest in combinations(range(1, count), number):
            student = kept(teacher, {path: [0, *rest]})
            assert torch.equal(logits(student, inputs), logits(loaded(student), inputs))


@pytest.mark.parametrize("name", GENERATIVE)
def test_generation_is_the_same_with_and_without_a_cache(transformer, loaded, name):
    teacher, inputs = transformer(name)
    teacher.generation_config.max_new_tokens, teacher.generation_config.decoder_start_token_id = 9, 1
    (path, count) = next((path, count) for n, path, count in CASES[::-1] if n == name)
    student = kept(teacher, {path: [0, count - 1]})
    assert student.generation_config.max_new_tokens == 9
    assert student.generation_config is not teacher.generation_config

    def told(model, cache):
        ids = inputs["input_ids"]
        return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=cache)

    cached = told(student, True)
    assert torch.equal(cached, told(student, False))
    assert torch.equal(cached, told(loaded(student), True))


def test_layers_of_another_kind_bring_their_kind(transformer):
    student = kept(transformer("gemma2")[0], {"model.layers": [1, 3]})
    assert student.config.layer_types == ["full_attention", "full_attention"]
    assert [layer.attention_type for layer in student.model.layers if hasattr(layer, "attention_type")] in (
        [],
        ["full_attention", "full_attention"],
    )
    student = kept(transformer("modernbert")[0], {"model.layers": [0, 1, 3]})
    assert student.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_both_lists_of_an_encoder_and_a_decoder(transformer, logits, loaded):
    teacher, inputs = transformer("t5")
    student = kept(teacher, {"encoder.block": [0], "decoder.block": [0, 2]})
    assert (student.config.num_layers, student.config.num_decoder_layers) == (1, 2)
    assert torch.equal(logits(student, inputs), logits(loaded(student), inputs))


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_ties_stay(transformer, name):
    teacher, _ = transformer(name)
    path = next(path for n, path, _ in CASES if n == name)
    student = kept(teacher, {path: [0, 1]})

    def tied(model):
        names = {}
        for key, tensor in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(key)
        return [keys for keys in names.values() if len(keys) > 1]

    assert tied(student) == tied(teacher)


def test_mode_and_dtype_are_the_teachers(transformer):
    teacher, _ = transformer("llama")
    teacher = teacher.to(torch.bfloat16).train()
    teacher.requires_grad_(False)
    student = kept(teacher, {"model.layers": [0, 2]})
    assert student.training
    assert {tensor.dtype for tensor in student.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(student.model.rotary_emb.inv_freq, teacher.model.rotary_emb.inv_freq)


def test_the_attention_implementation_is_the_teachers(transformer):
    teacher, _ = transformer("bert")
    teacher.set_attn_implementation("eager")
    assert kept(teacher, {"bert.encoder.layer": [0]}).config._attn_implementation == "eager"


def test_no_random_number_is_drawn(transformer):
    teacher, _ = transformer("bert")
    before = torch.get_rng_state()
    kept(teacher, {"bert.encoder.layer": [0, 2]})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_around_a_transformer(transformer):
    class Scored(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.first = inner.bert.encoder.layer[0]
            self.score = nn.Linear(3, 1)
            self.score.weight = inner.classifier.bias

        def forward(self, ids):
            return self.inner(ids).logits @ self.score.weight

    inner, inputs = transformer("bert")
    teacher = Scored(inner).eval()
    student = kept(teacher, {"inner.bert.encoder.layer": [0, 3]})
    assert student.inner.config.num_hidden_layers == 2
    assert student.first is student.inner.bert.encoder.layer[0]
    assert student.score.weight is student.inner.classifier.bias
    assert not pointers(student) & pointers(teacher)
    full = kept(teacher, {"inner.bert.encoder.layer": range(4)})
    assert torch.equal(full(inputs["input_ids"]), teacher(inputs["input_ids"]))


@pytest.mark.parametrize("path", ["layers", "inner.bert.encoder.layer"])
@pytest.mark.parametrize("first", [False, True])
def test_any_name_of_a_list_of_a_transformer_changes_its_configuration(transformer, path, first):
    teacher, (inner, _) = nn.Module(), transformer("bert")
    for name in ("layers", "inner") if first else ("inner", "layers"):
        teacher.add_module(name, inner if name == "inner" else inner.bert.encoder.layer)
    student = kept(teacher, {path: [0, 3]})
    assert student.inner.config.num_hidden_layers == 2
    assert student.layers is student.inner.bert.encoder.layer
    assert len(student.layers) == 2


def test_what_is_around_a_frozen_transformer_is_trained_too(transformer):
    teacher = nn.ModuleDict({"inner": transformer("bert")[0], "head": nn.Linear(3, 2)}).requires_grad_(False)
    student = kept(teacher, {"inner.bert.encoder.layer": [0, 3]})
    assert all(parameter.requires_grad for parameter in student.parameters())
    teacher["head"].weight.requires_grad_()
    assert not kept(teacher, {"inner.bert.encoder.layer": [0]})["head"].bias.requires_grad


def test_a_list_that_is_named_twice_is_refused():
    teacher = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(4))})
    teacher["same"] = teacher["blocks"]
    with pytest.raises(SurgeryError, match=r"keep: 'same' is another name of 'blocks'; name one of them"):
        kept(teacher, {"blocks": [0, 1, 2], "same": [0, 2]})


def test_a_model_like_those_of_timm(vit):
    teacher, images = vit
    student = kept(teacher, {"blocks": [0, -1]})
    assert (student.depth, [layer.layer_idx for layer in student.blocks]) == (2, [0, 1])
    assert [layer.layer_idx for layer in teacher.blocks] == [0, 1, 2, 3]
    assert torch.equal(kept(teacher, {"blocks": range(4)})(images), teacher(images))
    expected = teacher.patch_embed(images).flatten(2).mT
    expected = teacher.head(teacher.blocks[3](teacher.blocks[0](expected)).mean(1))
    assert torch.equal(student(images), expected)
    assert not pointers(student) & pointers(teacher)
    assert isinstance(student.blocks, nn.Sequential)


def test_torch_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    teacher = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    student = kept(teacher, {"layers": [0, 2]})
    x = torch.randn(2, 5, 8)
    assert student.num_layers == 2
    assert torch.equal(student(x), teacher.layers[2](teacher.layers[0](x)))


def test_a_sequential_by_itself():
    teacher = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2))
    names = ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight", "1.bias"]
    assert list(kept(teacher, {"0": [0, 2]}).state_dict()) == names


REFUSED = {
    "a near miss": ("bert", {"bert.encoder.layers": [0]}, "keep: BertForSequenceClassification has no"
                    " 'bert.encoder.layers'; did you mean 'bert.encoder.layer'?"),
    "the end of a path": ("bert", {"layer": [0]}, "did you mean 'bert.encoder.layer'?"),
    "no list": ("bert", {"bert.pooler": [0]}, "keep: 'bert.pooler' is a BertPooler, no list of layers"),
    "nothing": ("bert", {"bert.encoder.layer": []}, "keep: no layer of 'bert.encoder.layer' is named;"
                " name one or more of its 4"),
    "out of range": ("bert", {"bert.encoder.layer": [0, 4]}, "keep: 'bert.encoder.layer' has no layer 4;"
                     " it has 4: 0 to 3"),
    "below the range": ("bert", {"bert.encoder.layer": [-5]}, "has no layer -5"),
    "twice": ("bert", {"bert.encoder.layer": [0, 1, 1]}, "keep: layer 1 of 'bert.encoder.layer' is named twice;"
              " a student has each once"),
    "twice from the end": ("bert", {"bert.encoder.layer": [3, -1]}, "keep: layer 3 of 'bert.encoder.layer' is named"
                           " twice"),
    "out of order": ("bert", {"bert.encoder.layer": [2, 0]}, "keep: layers of 'bert.encoder.layer' stay in the"
                     " teacher's order; write [0, 2]"),
    "no first block": ("t5", {"decoder.block": [1, 2]}, "keep: layer 1 of 'decoder.block' would be layer 0, which needs"
                       " layer.0.SelfAttention.relative_attention_bias.weight; layer 0 alone has it: keep that as"
                       " layer 0"),
    "no place": ("modernbert", {"model.layers": [1, 2]}, "keep: layer 1 of 'model.layers' would be layer 0, which has"
                 " no place for its attn_norm.weight"),
    "no setting": ("t5", {"encoder.block.1.layer": [0]}, "keep: no setting of T5Config says how many layers"
                   " 'encoder.block.1.layer' has, so it cannot be cut"),
    "inside": ("t5", {"encoder.block": [0], "encoder.block.0.layer": [0]}, "keep: 'encoder.block.0.layer' is inside"
               " 'encoder.block'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(transformer, case):
    name, keep, message = REFUSED[case]
    with pytest.raises(SurgeryError, match=re.escape(message)):
        kept(transformer(name)[0], keep)


def test_a_model_without_lists_is_refused():
    with pytest.raises(SurgeryError, match=r"keep: Linear has no 'layers'; its lists: none"):
        kept(nn.Linear(2, 2), {"layers": [0]})


def test_layers_that_know_their_number_are_refused(transformer):
    teacher, _ = transformer("gpt2")
    config = copy.deepcopy(teacher.config)
    config.scale_attn_by_inverse_layer_idx = True
    teacher = type(teacher)(config)
    with pytest.raises(SurgeryError, match=r"layer 3 of 'transformer.h' would be another as layer 1: attn.scal"):
        kept(teacher, {"transformer.h": [0, 3]})


def test_weights_that_only_the_configuration_ties_are_refused(transformer):
    teacher, _ = transformer("gpt2")
    teacher.lm_head.weight = nn.Parameter(torch.randn_like(teacher.lm_head.weight))
    with pytest.raises(SurgeryError, match=r"the configuration ties lm_head.weight"):
        kept(teacher, {"transformer.h": [0]})


def test_an_edited_teacher_is_refused(transformer):
    teacher, _ = transformer("bert")
    teacher.bert.pooler.extra = nn.Linear(2, 2)
    with pytest.raises(SurgeryError, match=r"BertForSequenceClassification has no place for bert.pooler.extra.weight"):
        kept(teacher, {"bert.encoder.layer": [0]})
