"""maps: what is drawn of which layers and tokens, when, and that nothing of the training knows of it."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hookbrew as hb
from hookbrew.cka import alike, pooled, rows
from hookbrew.errors import CallbackError, ConfigError, FolderError, ObjectiveError, SelectorError
from hookbrew.report.pictures import image
from hookbrew_plugins.callbacks.attended import attended
from hookbrew_plugins.callbacks.maps import Maps
from hookbrew_plugins.callbacks.sitter import first, named, sitting


class Attention(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def products(self, x):
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x, mask):
        q, k, v = self.products(x)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention, self.drop = Attention(width), nn.Dropout(0.2)

    def forward(self, x, mask):
        return x + self.drop(self.attention(x, mask))


class Encoder(nn.Module):
    """Embeds tokens, (B, L), mixes them in blocks with attention, and scores 3 classes."""

    def __init__(self, width=8, depth=2):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)
        self.calls = 0

    def forward(self, input_ids, attention_mask=None):
        self.calls += 1
        x = self.embed(input_ids)
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x[:, 0])


def fit(folder, data, *callbacks, student=None, teacher=None, steps=None, losses=None, **options):
    """A training of one step for each batch, with maps."""
    torch.manual_seed(0)
    student = Encoder() if student is None else student
    teacher = Encoder(12, 3) if teacher is None else teacher
    run = hb.Distillation(teacher, student, losses or [hb.loss("kd_ce")])
    listed = [hb.callback("maps", **options), *callbacks]
    return run.fit(data, steps=steps or len(data), callbacks=listed, output=folder)


def names(folder):
    return sorted(path.name for path in (folder / "images").iterdir())


def said(folder, name):
    """What a drawing says of itself."""
    return image(name, (folder / f"images/{name}.png").read_bytes()).text


def oracle(x, y):
    """Linear CKA by centred kernels (Kornblith et al. 2019, equations 2 and 3), in float64."""
    x, y = (np.asarray(side, dtype=np.float64) for side in (x, y))
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = (centre @ side @ side.T @ centre for side in (x, y))
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


@pytest.mark.parametrize("number", [3, 9, 40])
def test_similarity_against_kernels_in_float64(number):
    """With fewer rows than features, and with more."""
    torch.manual_seed(number)
    base = torch.randn(number, 6)
    student = [
        base @ torch.randn(6, width) + 3 + torch.randn(number, width) * noise for width, noise in [(5, 1), (8, 0.1)]
    ]
    teacher = [torch.tanh(base @ torch.randn(6, width)) * 100 for width in (12, 7, 4)]
    found = alike(student, teacher)
    expected = [[oracle(s, t) for t in teacher] for s in student]
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert float(alike(student[:1], [student[0] * 7 - 2])) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("number", [3, 40])
def test_a_layer_that_does_not_vary_is_like_nothing(number):
    x = torch.randn(number, 5)
    found = alike([x, torch.full((number, 5), 0.3)], [x])
    assert found[0].item() == pytest.approx(1, abs=1e-5)
    assert found[1].isnan()


def test_padding_is_in_no_row():
    """What stands there changes nothing; a token counts if both sides have it."""
    student, teacher = [torch.randn(3, 4, 5)], [torch.randn(3, 4, 6), torch.randn(3, 4, 2)]
    masks = (torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]), torch.tensor([[0, 1, 1, 1]] * 3))
    ours, theirs, over = rows(student, teacher, masks)
    assert torch.equal(ours[0], student[0][0, 1:3])
    assert [torch.equal(found, layer[0, 1:3]) for found, layer in zip(theirs, teacher, strict=True)] == [True, True]
    assert over == "2 tokens"
    ours, _, over = rows(student, teacher, (masks[0], None))
    assert torch.equal(ours[0], student[0][masks[0].bool()])
    assert over == "4 tokens"
    assert rows(student, teacher, (None, None))[2] == "12 tokens"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_without_common_tokens_are_compared_sample_by_sample(dtype):
    tokens, other = torch.randn(3, 4, 5).to(dtype), torch.randn(3, 7, 5).to(dtype)
    maps, flat = torch.randn(3, 2, 4, 4), torch.randn(3, 9)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    ours, theirs, over = rows([tokens], [other, maps, flat], (mask, None))
    expected = torch.stack([tokens[0, :3].float().mean(0), tokens[1, 0].float(), tokens[2].float().mean(0)])
    torch.testing.assert_close(ours[0], expected)
    torch.testing.assert_close(theirs[0], other.float().mean(1))
    assert [tuple(one.shape) for one in theirs] == [(3, 5), (3, 32), (3, 9)]
    assert over == "3 samples"
    assert torch.equal(pooled(tokens, torch.zeros(3, 4))[0], torch.zeros(5)), "nothing is there"


def test_what_cannot_be_compared():
    with pytest.raises(ObjectiveError) as caught:
        rows([torch.randn(3, 4, 5)], [torch.randn(3, 4, 5)], (torch.ones(3, 6), None))
    assert str(caught.value) == (
        "the mask is (3, 6) and does not fit a layer (3, 4, 5); name the right key of the batch with "
        'mask = "...", or write mask = "" if every token counts'
    )
    with pytest.raises(ObjectiveError, match=r"layers are of other samples, student \(3, 5\), teacher \(4, 5\); name"):
        rows([torch.randn(3, 5)], [torch.randn(4, 5)], (None, None))
    with pytest.raises(ObjectiveError, match=r"attention is \(samples, .*, and this is \(1, 4, 5\); name one"):
        attended(torch.randn(1, 4, 5), None)


def test_attention_is_the_models_own_cut_to_tokens(batches):
    """Of the first sample, a mean over heads, in evaluation mode."""
    (batch,) = batches([3, 6])
    model = Encoder().eval()
    one = sitting("student", model, "blocks[*]", "attention[*]")
    one.given = (), {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        side = one.attend(batch["attention_mask"])
        x = model.embed(batch["input_ids"][:1, :3])
        expected = []
        for block in model.blocks:
            q, k, _ = block.attention.products(x)
            expected.append((q @ k.mT / 2).softmax(-1)[0].mean(0))
            x = block(x, None)
    assert side.paths == ["blocks.0.attention", "blocks.1.attention"]
    assert [tuple(found.shape) for found in side.maps] == [(3, 3), (3, 3)]
    for found, wanted in zip(side.maps, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_map_is_cut_where_the_mask_is_as_long():
    attention, mask = torch.rand(1, 2, 3, 4), torch.tensor([[0, 1, 1, 0]])
    mean = attention[0].mean(0)
    assert torch.equal(attended(attention, mask), mean[:, 1:3])
    assert torch.equal(attended(attention.mT, mask), mean.T[1:3])
    assert torch.equal(attended(attention, torch.zeros(1, 4)), mean), "a sample of padding is left as it is"
    assert torch.equal(attended(attention, torch.ones(1, 9)), mean)


def test_the_first_sample_of_what_a_model_is_given():
    ids, places, scale = torch.ones(4, 3), torch.ones(1, 3), torch.ones(())
    given = (ids, [ids, "x"]), {"places": places, "scale": scale, "inner": {"ids": ids}, "n": 4}
    (one, (two, word)), named_ = first(given)
    assert [tuple(t.shape) for t in (one, two, named_["places"], named_["scale"])] == [(1, 3), (1, 3), (1, 3), ()]
    assert (word, named_["n"], tuple(named_["inner"]["ids"].shape)) == ("x", 4, (1, 3))
    assert first(((), {})) == ((), {})


@pytest.mark.parametrize(("every", "steps"), [(3, [1, 3, 6]), (1, [1, 2, 3, 4, 5, 6, 7]), (100, [1])])
def test_drawn_at_the_first_step_and_every_so_many(tmp_path, batches, every, steps):
    data = batches(*[[3, 2]] * 7)
    student = Encoder()
    state = fit(tmp_path / "run", data, every=every, student=student)
    assert names(tmp_path / "run") == sorted(f"{n}-{s:08}.png" for n in ("attention", "similarity") for s in steps)
    assert not state.degraded
    # one to measure, one to find the layers for each of the two, one of the batch and one of its first sample
    assert student.calls == 7 + 1 + 2 + 2 * len(steps)
    assert not (tmp_path / "run/images").joinpath(".similarity-00000001.png.new").exists()


def test_what_a_drawing_says(tmp_path, batches):
    data = batches([5, 3, 2])
    fit(tmp_path / "run", data)
    text = said(tmp_path / "run", "similarity-00000001")
    assert text.startswith("3 student layers with 4 teacher layers, over 10 tokens. Nearest: 0:in to ")
    text = said(tmp_path / "run", "attention-00000001")
    assert text.startswith("student: 2 layers, 5 tokens; teacher: 3 layers, 5 tokens. The highest of all is 0.")
    fit(tmp_path / "more", data, mask="", student_attention="", teacher_attention="blocks[0].attention:attn")
    assert "over 15 tokens" in said(tmp_path / "more", "similarity-00000001")
    assert said(tmp_path / "more", "attention-00000001").startswith("teacher: 1 layer, 5 tokens.")
    fit(tmp_path / "none", data, student_attention="", teacher_attention="")
    assert names(tmp_path / "none") == ["similarity-00000001.png"]


def test_tensorboard_has_the_images(tmp_path, batches):
    fit(tmp_path / "run", batches(*[[3, 2]] * 4), every=2)
    board = EventAccumulator(str(tmp_path / "run/tb/maps"), size_guidance={"images": 0}).Reload()
    assert sorted(board.Tags()["images"]) == ["maps/attention", "maps/similarity"]
    for tag in board.Tags()["images"]:
        found = board.Images(tag)
        assert [one.step for one in found] == [1, 2, 4]
        file = tmp_path / f"run/images/{tag.removeprefix('maps/')}-00000004.png"
        assert found[-1].width == image("", file.read_bytes()).width
        assert found[-1].encoded_image_string.startswith(b"\x89PNG")


class Torn(nn.Module):
    """A model of rows, (B, 3), that draws, has running means, and is in the middle of its own modes."""

    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.head = nn.Linear(width, 2)
        self.body[2].eval()

    def forward(self, x):
        return self.head(self.body(x) + torch.randn(len(x), 1))


def test_the_bytes_of_the_student_do_not_know_of_it(tmp_path):
    """Weights, running means, and what is drawn afterwards; with it and without it."""

    def trained(*callbacks):
        torch.manual_seed(0)
        student, teacher = Torn(), Torn(6)
        data = [{"x": torch.randn(5, 3)} for _ in range(6)]
        run = hb.Distillation(teacher, student, [hb.loss("kd_ce")])
        state = run.fit(data, epochs=2, accumulate=2, callbacks=callbacks, output=tmp_path / str(len(callbacks)))
        assert not state.degraded
        modes = [m.training for model in (student, teacher) for m in model.modules()]
        hooks = [h for model in (student, teacher) for m in model.modules() for h in m._forward_pre_hooks]
        return {**student.state_dict(), "next": torch.rand(3)}, modes, hooks

    one, modes, _ = trained()
    layers = {"student": "body[*]", "teacher": "body[*]", "student_attention": "", "teacher_attention": ""}
    other, after, hooks = trained(hb.callback("maps", every=1, **layers))
    assert len(names(tmp_path / "1")) == 6
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert after == modes
    assert hooks == []


READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten._to_copy.default)


def test_steps_that_are_not_drawn_ask_nothing_of_the_device(tmp_path, batches):
    class Reads(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found, self.step = set(), None

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if self.step is not None and func in READS:
                self.found.add((self.step, str(func)))
            return func(*args, **(kwargs or {}))

    class Around:
        """Stands behind maps: what that does at the end of a step is inside."""

        priority = 1000

        def optimizer_end(self, state):
            reads.step = state.step

        def step_end(self, state):
            reads.step = None

    reads = Reads()
    with reads:
        fit(tmp_path / "run", batches(*[[3, 2]] * 4), Around(), every=4)
    assert {step for step, _ in reads.found} == {1, 4}


def test_it_is_of_the_batch_that_was_augmented_and_of_each_models_own_part(tmp_path):
    """Whatever the keys of a batch are called: what the models were called with is what counts."""
    ids = torch.randint(1, 20, (4, 6))
    data = [
        {
            "student.input_ids": ids[:, :3],
            "student.attention_mask": torch.tensor([[1, 1, 0]] * 4),
            "teacher.input_ids": ids,
            "teacher.attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * 4),
        }
    ]
    fit(tmp_path / "run", data)
    assert "over 4 samples" in said(tmp_path / "run", "similarity-00000001")
    text = said(tmp_path / "run", "attention-00000001")
    assert text.startswith("student: 2 layers, 2 tokens; teacher: 3 layers, 4 tokens.")


def test_several_teachers(tmp_path, batches):
    fit(tmp_path / "run", batches([3, 2]), teacher={"large": Encoder(12, 4), "small": Encoder(10)})
    assert names(tmp_path / "run") == [
        "attention-00000001.png",
        "similarity-large-00000001.png",
        "similarity-small-00000001.png",
    ]
    assert "with 5 teacher layers" in said(tmp_path / "run", "similarity-large-00000001")
    assert "; teacher large: 4 layers, 3 tokens; teacher small" in said(tmp_path / "run", "attention-00000001")


def test_teachers_of_several_tasks():
    one, two, three = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    several = nn.ModuleDict({"large": one, "small": two})
    assert [*named(one)] == [("teacher", one)]
    assert [*named(several)] == [("large", one), ("small", two)]
    tasks = nn.ModuleDict({"trec/teacher": several, "mood/teacher": three, "same/teacher": three})
    assert [*named(tasks)] == [("trec/large", one), ("trec/small", two), ("mood/teacher", three)]


def test_tasks_draw_the_teacher_that_was_called(tmp_path, batches):
    torch.manual_seed(0)
    data = batches([3, 2])
    tasks = {name: hb.Task(teacher=Encoder(12, 3), losses=[hb.loss("kd_ce")]) for name in ("trec", "mood")}
    run = hb.Distillation(None, Encoder(), tasks=tasks)
    loaders = {"trec": data * 3, "mood": data * 3}
    seen = []

    class Look:
        def step_end(self, state):
            seen.append(f"similarity-{state.task}-{state.step:08}.png")

    run.fit(loaders, epochs=1, callbacks=[hb.callback("maps", every=1), Look()], output=tmp_path / "run")
    assert len({name.split("-")[1] for name in seen}) == 2
    assert [name for name in names(tmp_path / "run") if name.startswith("similarity")] == sorted(seen)


class Picture(nn.Module):
    """A stack of convolutions over pictures, (B, 3, 8, 8)."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)])
        self.head = nn.Linear(2 * width, 2)

    def forward(self, pixels):
        for layer in self.layers:
            pixels = torch.relu(layer(pixels))
        return self.head(pixels.mean((2, 3)))


def test_pictures_have_no_attention_which_is_told_once(tmp_path, caplog):
    data = [{"pixels": torch.randn(6, 3, 8, 8)}] * 2
    fit(tmp_path / "run", data, student=Picture(3), teacher=Picture(4), every=1)
    assert names(tmp_path / "run") == ["similarity-00000001.png", "similarity-00000002.png"]
    assert "3 student layers with 3 teacher layers, over 6 samples." in said(tmp_path / "run", "similarity-00000002")
    told = "callback 'maps' draws no attention of the %s: selector 'attention[*]': no attention was found in 'layers.0'"
    assert caplog.messages == [told % who for who in ("student", "teacher")]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch, in its own compiler
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_run_as_the_python_they_were_made_from(tmp_path, batches, whole):
    """A hook that comes after the first call of compiled code may never run, and nothing is compiled for a drawing."""

    def compilations(*callbacks):
        made, student = [], Encoder()

        def backend(graph, inputs):
            made.append(graph)
            return graph.forward

        for block in () if whole else student.blocks:
            block.compile(backend=backend)
        torch.manual_seed(0)
        model = torch.compile(student, backend=backend) if whole else student
        run = hb.Distillation(Encoder(12, 3), model, [hb.loss("kd_ce")])
        state = run.fit(batches([3, 2], [3, 2]), steps=2, callbacks=callbacks, output=tmp_path / str(len(callbacks)))
        assert not state.degraded
        torch.compiler.reset()
        return len(made)

    layers = {"student": "blocks[*].attention", "teacher": "blocks[*].attention"}
    assert compilations() == compilations(hb.callback("maps", every=2, **layers)) > 0
    assert len(names(tmp_path / "1")) == 4


def test_a_layer_that_runs_several_times(tmp_path, batches):
    class Looped(Encoder):
        def forward(self, input_ids, attention_mask=None):
            x = self.embed(input_ids)
            for _ in range(3):
                x = self.blocks[0](x, None)
            return self.head(x[:, 0])

    fit(tmp_path / "run", batches([3, 2]), student=Looped(), student_attention="")
    assert "4 student layers" in said(tmp_path / "run", "similarity-00000001")


def test_mistakes_are_found_before_the_first_step(tmp_path, batches, pack):
    data = batches([3, 2])
    with pytest.raises(SelectorError) as caught:
        fit_options(tmp_path / "1", data, student="blocs[*]")
    assert str(caught.value).startswith("callback 'maps', student: selector 'blocs[*]'")
    assert "did you mean 'blocks'?" in str(caught.value)
    with pytest.raises(SelectorError, match=r"callback 'maps', teacher: selector 'block\[\*\]:attn'"):
        fit_options(tmp_path / "2", data, teacher_attention="block[*]:attn")
    for name, value in {"student": "", "teacher_attention": "blocks[", "student_attention": "x:nothing"}.items():
        with pytest.raises(ConfigError) as caught:
            fit_options(tmp_path / "3", data, **{name: value})
        assert str(caught.value).startswith(f"callback 'maps': {name}: selector '{value}'")
    with pytest.raises(ConfigError, match=r"callback 'maps': every: must be >= 1: 0"):
        fit_options(tmp_path / "3", data, every=0)
    run = hb.Distillation(None, Encoder(), [hb.loss("ce")])
    with pytest.raises(CallbackError, match="callback 'maps' compares with a teacher, and there is none"):
        run.fit(data, steps=1, callbacks=[hb.callback("maps")], output=tmp_path / "4")
    with pytest.raises(FolderError, match="callback 'maps' writes into the run folder, and there is none"):
        fit_options(None, data)


def fit_options(folder, data, **options):
    """`fit` with options of the callback that have names of its arguments."""
    run = hb.Distillation(Encoder(12, 3), Encoder(), [hb.loss("kd_ce")])
    return run.fit(data, steps=1, callbacks=[hb.callback("maps", **options)], output=folder)


def test_a_mistake_that_only_a_batch_shows_costs_the_maps_alone(tmp_path, batches):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

        def forward(self, input_ids):
            return self.head(self.embed(input_ids)[:, 0])

    state = fit(tmp_path / "run", batches([3, 2], [3, 2]), student=Flat())
    (told,) = state.degraded
    assert (state.step, told["callback"], told["event"], told["step"]) == (2, "maps", "step_end", 1)
    assert told["error"].startswith("SelectorError: selector 'hidden[*]': no stack of equal blocks was found in Flat; ")
    assert not [hook for module in state.student.modules() for hook in module._forward_pre_hooks]


def test_a_mask_that_says_nothing_of_tokens(tmp_path, batches):
    """Padding would be compared in silence."""
    (batch,) = batches([3, 2])
    state = fit(tmp_path / "1", [batch], mask="attention_mas")
    told = "DataError: callback 'maps': mask: the batch has no key 'attention_mas'; did you mean 'attention_mask'?"
    assert [one["error"] for one in state.degraded] == [told]
    state = fit(tmp_path / "2", [batch], mask="labels")
    assert state.degraded[0]["error"] == (
        "DataError: callback 'maps': the mask 'labels' is (2,) and not (batch, tokens); name another, or write "
        'mask = "" if every token counts'
    )
    del batch["attention_mask"]
    assert not fit(tmp_path / "3", [batch]).degraded, "there is no padding without a mask"


def test_a_place_that_cannot_be_written_costs_the_maps_alone(tmp_path, batches):
    class InTheWay:
        def run_start(self, state):
            (state.folder / "images").touch()

    state = fit(tmp_path / "run", batches([3, 2], [3, 2]), InTheWay(), every=1)
    assert state.step == 2
    assert [told["error"] for told in state.degraded] == [
        f"FolderError: {tmp_path}/run/images/similarity-00000001.png cannot be written: File exists"
    ]


def test_a_forward_that_fails_leaves_no_hook(tmp_path, batches):
    class Failing(Encoder):
        def forward(self, input_ids, attention_mask=None):
            if self.calls == 2:
                raise RuntimeError("it fell")
            return super().forward(input_ids, attention_mask)

    student = Failing()
    with pytest.raises(RuntimeError, match="it fell"):
        fit(tmp_path / "run", batches([3, 2], [3, 2]), student=student, every=1, student_attention="")
    assert not [hook for module in student.modules() for hook in module._forward_pre_hooks]


def test_without_matplotlib(monkeypatch):
    """Found when options are checked; the line says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"drawing needs matplotlib, which is not installed: pip install \"hookb"):
        Maps()


def test_nothing_of_matplotlib_stays(tmp_path, batches):
    """Neither its settings nor pyplot, whose figures would be kept for ever."""
    import matplotlib

    asked = [key for key in matplotlib.rcParams if key != "backend"]
    before, there = [matplotlib.rcParams[key] for key in asked], "matplotlib.pyplot" in sys.modules
    fit(tmp_path / "run", batches([3, 2]))
    assert [matplotlib.rcParams[key] for key in asked] == before
    assert ("matplotlib.pyplot" in sys.modules) == there


def test_the_report_shows_them(tmp_path, batches):
    from pathlib import Path

    from hookbrew.report import page, read

    fit(tmp_path / "run", batches([3, 2]))
    (tmp_path / "run/status.json").write_text(json.dumps({"status": "done", "step": 1}))
    text = page(read([Path(tmp_path / "run")]))
    assert text.count("data:image/png;base64,") == 2
    assert "<b>Layer similarity, step 1</b>" in text
    assert 'alt="Attention, mean over heads, first sample, step 1 of run run. student: 2 layers, 3 tokens; ' in text
