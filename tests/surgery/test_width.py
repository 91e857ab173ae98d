"""Narrower students: what a width decides, what is chosen, and that the result is a model like any other."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import SurgeryError
from hookbrew.surgery.axes import surveyed
from hookbrew.surgery.importance import gauges, importance
from hookbrew.surgery.trace import weighted
from hookbrew.surgery.width import narrowed

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHARED = {**SIZES, **SPECIAL, "num_key_value_heads": 2}
PIXELS = {key: SIZES[key] for key in SIZES if key not in ("vocab_size", "max_position_embeddings")}
SIDES = {
    f"{side}_{key}": 4 if "heads" in key else 24
    for side in ("encoder", "decoder")
    for key in ("attention_heads", "ffn_dim")
}
BUILDERS = {
    "bert": lambda t: t.BertForMaskedLM(t.BertConfig(**SIZES)),
    "distilbert": lambda t: t.DistilBertForSequenceClassification(
        t.DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=24)
    ),
    "roberta": lambda t: t.RobertaForMaskedLM(t.RobertaConfig(**SIZES)),
    "gpt2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, n_inner=24, **SPECIAL)
    ),
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SHARED)),
    "qwen3": lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**SHARED, head_dim=8)),
    "vit": lambda t: t.ViTForImageClassification(t.ViTConfig(**PIXELS, image_size=8, patch_size=4, num_labels=3)),
    "t5": lambda t: t.T5ForConditionalGeneration(
        t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
    "bart": lambda t: t.BartForConditionalGeneration(
        t.BartConfig(
            vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, **SIDES, **SPECIAL,
            max_position_embeddings=32, decoder_start_token_id=2, forced_eos_token_id=None,
        )
    ),
    "mixtral": lambda t: t.MixtralForCausalLM(t.MixtralConfig(**SHARED, num_local_experts=4, num_experts_per_tok=2)),
    "modernbert": lambda t: t.ModernBertForMaskedLM(
        t.ModernBertConfig(**SIZES, **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")})
    ),
    "deberta": lambda t: t.DebertaV2ForSequenceClassification(
        t.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4)
    ),
    "albert": lambda t: t.AlbertForSequenceClassification(t.AlbertConfig(**SIZES, embedding_size=8)),
    "electra": lambda t: t.ElectraForMaskedLM(t.ElectraConfig(**SIZES, embedding_size=32)),
    "opt": lambda t: t.OPTForCausalLM(
        t.OPTConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24, **SPECIAL,
            max_position_embeddings=32, word_embed_proj_dim=32,
        )
    ),
    "neox": lambda t: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SIZES, **SPECIAL)),
    "phi3": lambda t: t.Phi3ForCausalLM(t.Phi3Config(**SHARED)),
    "gemma2": lambda t: t.Gemma2ForCausalLM(t.Gemma2Config(**SHARED, head_dim=8)),
}  # fmt: skip
REQUIRED = ("bert", "distilbert", "roberta", "gpt2", "llama", "qwen3", "vit", "t5", "bart")
DECODERS = ("gpt2", "llama", "qwen3", "t5", "bart")
HALF = {"hidden": 16, "heads": 2, "ffn": 12}


def slowly(names, *fast):
    """The names, all but some of them for the slow tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="session")
def wide():
    """wide(name): a model of four heads of 8 features, all its tensors random, and a batch with padding for it."""

    def build(name):
        torch.manual_seed(0)
        model = BUILDERS[name](transformers).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        if name == "vit":
            return model, {"pixel_values": torch.randn(3, 3, 8, 8)}
        ids = torch.randint(3, 64, (3, 7))
        mask = torch.tensor([[1] * 7, [1] * 7, [1] * 4 + [0] * 3])
        decoder = {"decoder_input_ids": ids[:, :5]} if name in ("t5", "bart") else {}
        return model, {"input_ids": ids * mask, "attention_mask": mask} | decoder

    return build


@pytest.mark.parametrize("by", slowly(["slice", "importance"], "importance"))
@pytest.mark.parametrize("name", slowly(BUILDERS, *REQUIRED))
def test_a_student_loads_as_it_was_saved(wide, logits, loaded, name, by):
    model, batch = wide(name)
    widths = {key: HALF[key] for key in HALF if (name, by, key) != ("mixtral", "importance", "ffn")}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    student = narrowed(model, **widths, by=by, batches=[batch] if by == "importance" else None)
    config = student.config
    assert (config.hidden_size, config.num_attention_heads) == (16, 2)
    assert getattr(config, "num_key_value_heads", 1) == 1
    assert logits(student, batch).shape == logits(model, batch).shape
    assert torch.equal(logits(loaded(student), batch), logits(student, batch))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not storages & {p.untyped_storage().data_ptr() for p in student.parameters()}


@pytest.mark.parametrize("name", DECODERS)
def test_generation_is_the_same_with_and_without_a_cache(wide, loaded, name):
    model, batch = wide(name)
    student = loaded(narrowed(model, **HALF, by="importance", batches=[batch]))
    inputs = {"input_ids": batch["input_ids"][:2]}
    given = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with_cache = student.generate(**inputs, **given, use_cache=True)
    assert torch.equal(with_cache, student.generate(**inputs, **given, use_cache=False))


@pytest.mark.parametrize("name", slowly(BUILDERS, *REQUIRED))
def test_all_widths_kept_is_the_teacher(wide, logits, name):
    model, batch = wide(name)
    student = narrowed(model, hidden=32, heads=4)
    assert student is not model
    assert torch.equal(logits(student, batch), logits(model, batch))


def expanded(narrow, wide):
    """The weights of a narrow model in the tensors of a wide one, so that both compute the same.

    What writes is repeated, which leaves the mean and the variance that norms see as they are; what reads has zeros
    for the repetitions. By shapes alone, and for the one fused projection by its name.
    """
    given, tied = narrow.state_dict(), narrow.config.model_type == "t5"
    with torch.no_grad():
        for name, tensor in wide.state_dict().items():
            if tied and name == "lm_head.weight":
                continue  # it is what writes, and adds all up twice where it reads
            value, module = given[name], wide.get_submodule(name.rpartition(".")[0])
            turned = type(module).__name__ == "Conv1D"
            reads = {0 if turned else 1} if name.endswith("weight") and (turned or type(module) is nn.Linear) else set()
            for dim in range(tensor.dim()):
                more = tensor.shape[dim] - value.shape[dim]
                if not more:
                    continue
                parts = value.chunk(3, dim) if "c_attn" in name and dim not in reads else [value]
                rows = [part.narrow(dim, 0, more // len(parts)) for part in parts]
                rows = [torch.zeros_like(row) if dim in reads else row for row in rows]
                value = torch.cat([piece for pair in zip(parts, rows, strict=True) for piece in pair], dim)
            tensor.copy_(value)


@pytest.mark.parametrize("name", slowly(REQUIRED, "bert", "gpt2", "t5"))
def test_a_wide_model_that_is_a_narrow_one_becomes_it(wide, logits, name):
    teacher, batch = wide(name)
    if name != "t5":  # of which the config always ties
        teacher.config.tie_word_embeddings = False  # what reads has to be zero where what writes is not
    shape = narrowed(type(teacher)(teacher.config).eval(), hidden=16, heads=2, ffn=12)
    with torch.no_grad():
        for parameter in shape.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    teacher = type(teacher)(teacher.config).eval()
    expanded(shape, teacher)
    scale = 2**0.5 if name == "t5" else 1  # tied: twice the sum, and a factor of 1 / sqrt(hidden)
    torch.testing.assert_close(logits(teacher, batch), scale * logits(shape, batch), rtol=1e-4, atol=1e-4)
    student = narrowed(teacher, hidden=16, heads=2, ffn=12)
    assert torch.equal(logits(student, batch), logits(shape, batch))


def boosted(model, axes, role, chosen):
    """Make the activations of all units of a role but some small where they are written."""
    state = model.state_dict()
    reads = {axis.tensor for axis in axes.axes if gauges(model, axes, [axis.role]) and axis.role != "hidden"}
    done = set()
    for axis in axes.axes:
        units, path = chosen.get((axis.role, axis.group)), axis.tensor.rpartition(".")[0]
        if axis.role != role or units is None or state[axis.tensor].data_ptr() in done:
            continue
        norm = role == "hidden" and path not in weighted(model)
        made = role != "hidden" and (path, "in") not in axes.ends and path not in axes.sources and axis.tensor in reads
        if norm or made:
            done.add(state[axis.tensor].data_ptr())
            shape = [1] * state[axis.tensor].dim()
            shape[axis.dim] = -1
            state[axis.tensor].mul_(torch.isin(axis.owner, units).float().clamp(min=1e-5).view(shape))


@pytest.mark.parametrize("role", ["hidden", "heads", "ffn"])
@pytest.mark.parametrize("name", slowly(["bert", "gpt2", "qwen3", "t5", "bart"], "qwen3"))
def test_importance_finds_what_is_large(wide, name, role):
    model, batch = wide(name)
    axes = surveyed(model, lambda: model(**batch))
    chosen = {
        key: torch.randperm(size)[: size // 2].sort().values for key, size in axes.sizes().items() if key[0] == role
    }
    boosted(model, axes, role, chosen)
    found = importance(model, axes, [role], [batch])
    assert found.keys() == chosen.keys()
    for key, units in chosen.items():
        assert torch.equal(found[key].topk(len(units)).indices.sort().values, units)


def test_the_units_that_are_kept_are_the_important_ones(wide):
    model, batch = wide("llama")
    axes = surveyed(model, lambda: model(**batch))
    scores = importance(model, axes, ["hidden", "heads", "ffn"], [batch])
    student = narrowed(model, **HALF, by="importance", batches=[batch])
    hidden = scores["hidden", ""].topk(16).indices.sort().values
    assert torch.equal(student.model.embed_tokens.weight, model.model.embed_tokens.weight[:, hidden])
    for old, new in zip(model.model.layers, student.model.layers, strict=True):
        path = next(path for path, module in model.named_modules() if module is old)
        neurons = scores["ffn", f"{path}.mlp.down_proj"].topk(12).indices.sort().values
        group = int(scores["heads", f"{path}.self_attn.o_proj"].argmax())
        assert torch.equal(new.mlp.up_proj.weight, old.mlp.up_proj.weight[neurons][:, hidden])
        assert torch.equal(new.self_attn.q_proj.weight, old.self_attn.q_proj.weight[group * 16 :][:16, hidden])
        assert torch.equal(new.self_attn.v_proj.weight, old.self_attn.v_proj.weight[group * 8 :][:8, hidden])
        assert torch.equal(new.self_attn.o_proj.weight, old.self_attn.o_proj.weight[hidden, group * 16 :][:, :16])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_masked_positions_are_left_out(wide, name):
    model, batch = wide(name)
    axes = surveyed(model, lambda: model(**batch))
    roles = ["hidden", "heads", "ffn"]
    padded = importance(model, axes, roles, [batch])
    ids, counts = batch["input_ids"], batch["attention_mask"].sum(1).tolist()
    cut = importance(model, axes, roles, [{"input_ids": ids[i : i + 1, :n]} for i, n in enumerate(counts)])
    whole = importance(model, axes, roles, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    for key in padded:
        torch.testing.assert_close(padded[key], cut[key], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(padded[key], whole[key], rtol=1e-3)


def test_the_decoder_has_a_mask_of_its_own(wide):
    model, batch = wide("bart")
    axes = surveyed(model, lambda: model(**batch))
    ids = batch["decoder_input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 3:] = 0
    masked = importance(model, axes, ["ffn"], [batch | {"decoder_attention_mask": mask}])
    short = importance(model, axes, ["ffn"], [batch | {"decoder_input_ids": ids[:, :3]}])
    for key in masked:
        torch.testing.assert_close(masked[key], short[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [
        ("bert", {"hidden": 20}, "hidden 20 and heads 4 do not divide: the heads of this model fill its hidden width"),
        ("bert", {"heads": 2}, "write hidden = 32, heads = 4"),
        ("gpt2", {"hidden": 16, "heads": 4}, "have 8 features, which they keep; write hidden = 16, heads = 2"),
        ("bart", {"hidden": 16, "heads": 3}, "do not divide"),
        ("llama", {"heads": 3}, "2 heads of this model share one key and value; write a multiple of 2"),
        ("t5", {"heads": 5}, "heads = 5: expected a number from 1 to the teacher's 4"),
        ("vit", {"ffn": 0}, "ffn = 0: expected a number from 1 to the teacher's 24"),
        ("vit", {"ffn": 8, "by": "size"}, "by = 'size' is no way to choose what is kept; did you mean 'slice'?"),
        ("t5", {"ffn": 8, "by": "importance"}, "by = 'importance' measures on data: give batches"),
        ("t5", {"ffn": 8, "by": "importance", "batches": []}, "batches has none"),
        ("mixtral", {"ffn": 8, "by": "importance"}, "cannot be measured: no module reads them"),
    ],
)
def test_refused(wide, name, asked, told):
    model, batch = wide(name)
    if name == "mixtral":
        asked = asked | {"batches": [batch]}
    with pytest.raises(SurgeryError) as caught:
        narrowed(model, **asked)
    assert told in str(caught.value)


def test_a_plain_model_is_refused():
    with pytest.raises(SurgeryError, match="Sequential cannot be made narrower: it has no config of transformers"):
        narrowed(nn.Sequential(nn.Linear(4, 4)), hidden=2)


class Ramped(transformers.BertForMaskedLM):
    """A model in which it matters where in the hidden width a feature stands."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("ramp", torch.linspace(0, 1, config.hidden_size), persistent=False)

    def forward(self, input_ids=None, **kwargs):
        return super().forward(inputs_embeds=self.get_input_embeddings()(input_ids) * self.ramp, **kwargs)


def test_a_model_that_knows_places_in_its_width_is_refused():
    model = Ramped(transformers.BertConfig(**SIZES)).eval()
    with pytest.raises(SurgeryError, match="Ramped cannot be made narrower: with its features, heads"):
        narrowed(model, hidden=16, heads=2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_heads_are_seen_in_either_attention(wide, attention):
    model, batch = wide("gpt2")
    model.set_attn_implementation(attention)
    axes = surveyed(model, lambda: model(**batch))
    owner = next(a.owner for a in axes.axes if a.tensor == "transformer.h.1.attn.c_attn.weight" and a.dim == 1)
    assert owner.tolist() == 3 * [head for head in range(4) for _ in range(8)]


@pytest.mark.parametrize(("ffn", "inner"), [(None, 128), (64, None), (60, 60)])
def test_a_width_that_the_config_leaves_to_another(ffn, inner):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_inner": None}
    model = transformers.GPT2Model(transformers.GPT2Config(vocab_size=64, n_positions=32, **sizes, **SPECIAL))
    student = narrowed(model, hidden=16, ffn=ffn)
    assert student.config.n_inner == inner
    assert student.h[0].mlp.c_fc.weight.shape == (16, ffn or 128)


def test_positions_that_are_computed_from_the_width_and_not_saved_are_refused():
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, **SIDES, "max_position_embeddings": 32}
    config = transformers.MarianConfig(vocab_size=64, **sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    model = transformers.MarianMTModel(config)
    with pytest.raises(SurgeryError, match=r"embed_positions\.weight' is not saved but computed from the width"):
        narrowed(model, hidden=16)


def test_batches_may_have_labels_and_what_the_model_does_not_take(wide, logits):
    model, batch = wide("gpt2")
    more = batch | {"labels": batch["input_ids"], "names": ["a", "b", "c"]}
    ours, theirs = (narrowed(model, **HALF, by="importance", batches=[given]) for given in (more, batch))
    assert torch.equal(logits(ours, batch), logits(theirs, batch))


def test_mode_and_precision_are_the_teachers(wide, logits):
    model, batch = wide("llama")
    student = narrowed(model.to(torch.bfloat16), **HALF)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert logits(student, batch).dtype == torch.bfloat16
    assert narrowed(model.train(), **HALF).training
    assert model.training


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_whole_student(wide, logits, loaded, name):
    model, batch = wide(name)
    path = {"bert": "bert.encoder.layer", "gpt2": "transformer.h"}[name]
    ids = {"keep": {path: "best:1"}, "width": HALF | {"by": "importance"}, "vocabulary": list(range(50))}
    made = hb.student(model, **ids, batches=[batch])
    inputs = batch | {"input_ids": batch["input_ids"] % 50}
    assert logits(made, inputs).shape == (3, 7, 50)
    assert torch.equal(logits(loaded(made), inputs), logits(made, inputs))
    layer = {"bert": "output.dense", "gpt2": "mlp.c_fc"}[name]
    low = hb.student(model, **ids, rank={f"{path}[0].{layer}": 12}, batches=[batch])
    torch.testing.assert_close(logits(low, inputs), logits(made, inputs), rtol=1e-4, atol=1e-5)


def test_layers_that_share_a_bias_of_their_heads_keep_the_same_heads(wide):
    model, batch = wide("t5")
    groups = surveyed(model, lambda: model(**batch)).sizes()
    heads = [group for role, group in groups if role == "heads"]
    assert len(heads) == 4  # of six attentions: those to themselves are one choice in each stack
