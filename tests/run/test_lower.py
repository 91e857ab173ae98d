"""`train.teacher_precision`: the teacher in fewer bits."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.config import read
from hookbrew.errors import ConfigError
from hookbrew.lower import DTYPES, lowered
from hookbrew.plan import planned
from hookbrew.run import built, run

SHARING = """

LENT = Net(12).embed


def lent():
    net = Net(12)
    net.embed = LENT
    return net
"""


def end(known, name, *sets):
    state = run("toy.toml", [f"output=runs/{name}", *sets], catalogue=known, quiet=True)
    return torch.cat([p.detach().flatten() for p in state.student.parameters()])


def test_a_student_learns_about_the_same(toy, known):
    """Other bits come of it, and nearly the same student; what was asked for in vain would give the same bits."""
    exact = end(known, "exact")
    rounded = end(known, "rounded", "train.teacher_precision=bf16")
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_weights_of_the_teacher_alone_are_cast(toy, known):
    plan = planned(read("toy.toml", ["train.teacher_precision=fp16"]), known, quiet=True)
    with built(plan, known) as [prepared]:
        assert {p.dtype for p in prepared.distillation.teacher.parameters()} == {torch.float16}
        assert {p.dtype for p in prepared.distillation.student.parameters()} == {torch.float32}


def test_a_student_out_of_its_teacher_is_cut_from_the_whole_one(toy, known):
    text = (toy / "toy.toml").read_text()
    student = '[student]\nfrom = "teacher"\nkeep = { layers = [0, 1] }\n'
    (toy / "toy.toml").write_text(text.replace('[student]\nfactory = "toyland:Net"\n', student))
    exact, low = ([*built_student(known, f"train.teacher_precision={precision}")] for precision in ("same", "bf16"))
    assert all(torch.equal(one, other) for one, other in zip(exact, low, strict=True))


def built_student(known, *sets):
    with built(planned(read("toy.toml", sets), known, quiet=True), known) as [prepared]:
        yield from (p.detach().clone() for p in prepared.distillation.student.parameters())


def test_weights_that_the_student_has_too(toy, known):
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + SHARING)
    shared = ["teacher.factory=toyland:lent", "student.factory=toyland:lent", "train.teacher_precision=bf16"]
    text = (toy / "toy.toml").read_text()
    (toy / "toy.toml").write_text(text.replace("width = 12\n", ""))
    with pytest.raises(ConfigError, match="the student has weights of a teacher, which would be cast too"):
        run("toy.toml", shared, catalogue=known, quiet=True)


def test_in_python_a_teacher_is_cast_by_its_owner(tagger, batches):
    distillation = hb.Distillation(tagger(16), tagger(8), [hb.loss("kd_ce")])
    with pytest.raises(ConfigError, match=r"cast it before: teacher.to\(torch.bfloat16\)"):
        distillation.fit(batches([3, 2]), epochs=1, teacher_precision="bf16")


class Mixed(nn.Module):
    """Has tied weights, norms, a vector of its own, integers, and numbers that are made in fp32."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(9, 6), nn.BatchNorm1d(6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.last, self.scale = nn.LayerNorm(9), nn.Parameter(torch.rand(9))

    def forward(self, input_ids, scale):
        return self.last(self.head(self.norm(self.embed(input_ids) * torch.arange(6.0) * scale[:, None]))) * self.scale


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_cast(precision):
    torch.manual_seed(0)
    model = Mixed().eval()
    ids, scale = torch.arange(9), torch.rand(9)
    before = model(ids, scale)
    assert lowered(model, precision) is model
    assert model.head.weight is model.embed.weight
    low = {name for name, tensor in model.state_dict().items() if tensor.dtype == DTYPES[precision]}
    assert low == {"embed.weight", "head.weight"}
    torch.testing.assert_close(model(ids, scale).float(), before, atol=0.05, rtol=0.05)
    assert not torch.is_autocast_enabled("cpu")


def test_a_transformer_keeps_its_angles():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=50, max_position_embeddings=32, **sizes)
    model = lowered(transformers.LlamaForCausalLM(config).eval(), "bf16")
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.model.norm.weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == model(torch.arange(8)[None]).logits.dtype == torch.bfloat16
