"""No step asks the device for a number: only a row of metrics, an evaluation and a checkpoint may wait for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hookbrew as hb
from hookbrew.loop.update import Update

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
"""What `.item()`, `bool()`, `float()` and `.tolist()` of a tensor call, and boolean indexing: the host waits."""
LAYERS = {"student": "blocks[*]", "teacher": "blocks[*]"}
PROJECTED = hb.loss("hidden_mse", projection="linear", **LAYERS)
FADING = hb.loss("ce", weight=hb.schedule("linear_decay"))
COOLING = hb.loss("kd_ce", temperature=hb.schedule("cosine", base=4.0, end=0.5))


class Reads(TorchDispatchMode):
    """Keeps the steps in which a tensor was read as a number."""

    def __init__(self):
        super().__init__()
        self.inside, self.steps, self.found = False, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.inside and func in READS:
            self.found.append((self.steps, str(func)))
        return func(*args, **(kwargs or {}))


class Opens:
    """Stands first: what the others do in `step_start` is inside."""

    def __init__(self, reads):
        self._reads = reads

    def step_start(self, state):
        self._reads.inside = True
        self._reads.steps += 1


class Shuts:
    """Stands last: what the others do in `step_end` is inside, a row that is due then is not."""

    def __init__(self, reads):
        self._reads = reads

    def step_end(self, state):
        self._reads.inside = False


@pytest.fixture
def read(pack, tagger, batches, monkeypatch):
    """read(losses, ...): the reads within the steps of a training that goes the way of a GPU."""
    monkeypatch.setattr(Update, "deferred", lambda self, state: True)

    def make(losses, *, callbacks=(), **options):
        student, reads = tagger(8), Reads()
        optimizer = torch.optim.AdamW(student.parameters(), 1e-2, fused=True)
        run = hb.Distillation(tagger(12), student, losses, catalogue=pack)
        watched = [Opens(reads), *callbacks, Shuts(reads)]
        data = batches([3, 2], [4, 1], [2, 2], [1, 5])
        with reads:
            run.fit(data, epochs=2, optimizer=optimizer, callbacks=watched, log_every=3, evaluate=data[:1], **options)
        assert reads.steps == 8 // options.get("accumulate", 1)
        return reads.found

    return make


@pytest.mark.parametrize(
    ("losses", "options"),
    [
        pytest.param([hb.loss("kd_ce"), hb.loss("ce"), PROJECTED], {}, id="losses"),
        pytest.param([COOLING, FADING], {"lr_schedule": hb.schedule("cosine")}, id="schedules"),
        pytest.param([hb.loss("kd_ce")], {"accumulate": 2, "clip_grad_norm": 0.1}, id="accumulate, clip"),
        pytest.param([hb.loss("kd_ce"), hb.loss("ce")], {"precision": "fp16"}, id="fp16"),
        pytest.param([hb.loss("kd_ce"), hb.loss("ce")], {"precision": "bf16"}, id="bf16"),
        pytest.param([PROJECTED], {"nonfinite": "skip"}, id="skip"),
        pytest.param([hb.loss("kd_ce")], {"callbacks": [hb.callback("ema")]}, id="ema"),
        pytest.param([hb.loss("kd_ce")], {"callbacks": [hb.callback("evaluate")], "evaluate_every": 2}, id="evaluate"),
    ],
)
def test_a_step_reads_no_tensor(read, losses, options):
    assert read(losses, **options) == []


def test_an_update_that_is_left_out_is_not_asked_about(read):
    class Spoil:
        def backward_end(self, state):
            if state.step == 2:
                state.student.head.bias.grad[0] = float("inf")

    assert read([hb.loss("kd_ce")], callbacks=[Spoil()], nonfinite="skip", clip_grad_norm=1.0) == []


def test_a_callback_that_reads_the_loss_is_found(read):
    class Curious:
        def loss_end(self, state):
            if state.step == 2:
                float(state.loss.detach())

    assert read([hb.loss("kd_ce")], callbacks=[Curious()]) == [(2, "aten._local_scalar_dense.default")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_a_gpu(tagger, batches, pack):
    """torch itself raises for whatever would make the host wait."""

    class Strict:
        def step_start(self, state):
            torch.cuda.set_sync_debug_mode("error")

        def step_end(self, state):
            torch.cuda.set_sync_debug_mode("default")

    student, losses = tagger(8), [hb.loss("kd_ce"), hb.loss("ce"), PROJECTED]
    # pinned, so that copies need not wait
    data = [{k: v.pin_memory() for k, v in batch.items()} for batch in batches([3, 2], [4, 1], [2, 2])]
    try:
        run = hb.Distillation(tagger(12), student, losses, catalogue=pack)
        state = run.fit(data, epochs=2, device="cuda", callbacks=[Strict()], clip_grad_norm=1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.step == 6
