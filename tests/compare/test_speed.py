"""Time in turn, memory by the tensors in use, work without blind spots: never a time itself."""

import pytest
import torch
from torch import nn

from hookbrew.compare import flops as work
from hookbrew.compare.flops import flops
from hookbrew.compare.memory import peak
from hookbrew.compare.speed import spread, timed

CPU = torch.device("cpu")
MIB = 2**20


def test_models_take_turns_on_the_same_batches():
    calls, order = {}, []
    for name in "ab":
        calls[name] = [lambda name=name, batch=batch: order.append(f"{name}{batch}") for batch in range(2)]
    found = timed(calls, 4, rounds=4, device=CPU)
    warm = len(order) - 8
    assert order[warm:] == ["a0", "b0", "b1", "a1", "b0", "a0", "a1", "b1"]
    assert {name for name in order[:warm]} == {"a0", "a1", "b0", "b1"}
    assert found["a"].ratio is None
    assert found["b"].ratio.low <= found["b"].ratio.middle <= found["b"].ratio.high
    assert found["b"].throughput == pytest.approx(4 / found["b"].latency.middle)


@pytest.mark.parametrize("count", [1, 2, 5, 20, 101])
def test_the_interval_of_a_median(count):
    found = spread([float(value) for value in reversed(range(count))])
    assert found.low <= found.middle == (count - 1) / 2 <= found.high
    if count == 101:
        assert (found.low, found.high) == (40.0, 60.0)  # ranks n/2 -+ 0.98 sqrt(n)


def test_a_ratio_is_of_rounds(monkeypatch):
    from hookbrew.compare import speed

    ticks = iter([1.0, 2.0, 20.0, 10.0, 3.0, 6.0])  # the second round is ten times slower, for both
    monkeypatch.setattr(speed, "clocked", lambda call, device: next(ticks))
    found = timed({"a": [lambda: None], "b": [lambda: None]}, 1, rounds=3, device=CPU)
    assert (found["b"].ratio.low, found["b"].ratio.middle, found["b"].ratio.high) == (2.0, 2.0, 2.0)


def test_memory_is_the_most_that_is_in_use_at_one_time():
    x = torch.zeros(MIB)  # 4 MiB, there before

    def held():
        a = x + 1
        b = a + 1
        del a
        return b + 1

    def chained():
        return x + 1 + 1 + 1 + 1 + 1 + 1

    def viewed():
        return x.view(2, -1).t().add_(0)

    assert [peak(call, CPU) // MIB for call in (held, chained, viewed)] == [8, 8, 0]
    big = nn.Linear(1024, 1024)
    assert peak(lambda: big(torch.zeros(8, 1024)), CPU) == 2 * 8 * 1024 * 4  # the input made inside, and the output


def test_memory_of_weights_is_not_of_the_forward():
    net = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512)).requires_grad_(False)
    x = torch.zeros(4, 512)
    assert peak(lambda: net(x), CPU) == 2 * 4 * 512 * 4


def test_work_of_layers_is_what_they_compute():
    with torch.no_grad():
        assert flops(nn.Linear(8, 16), {"input": torch.zeros(4, 8)}) == 2 * 4 * 8 * 16
        assert flops(nn.Conv1d(8, 16, 3), {"input": torch.zeros(2, 8, 10)}) == 2 * 2 * 16 * 8 * 3 * 8


class Attends(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_no_kernel_hides_its_work():
    assert flops(Attends(), {"x": torch.zeros(1, 2, 5, 4)}) == 2 * (2 * 2 * 5 * 5 * 4)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    alone = 2 * 5 * 8 * 8 * 4 + 2 * 5 * 8 * 16 * 2 + 2 * (2 * 5 * 5 * 8)
    assert flops(layer, {"src": torch.zeros(1, 5, 8)}) == alone
    assert flops(nn.LSTM(4, 6), {"input": torch.zeros(5, 1, 4)}) == 5 * 2 * 24 * (4 + 6)


def test_kernels_are_as_before_afterwards():
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with work.opened():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == (fast, mkldnn)
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    from hookbrew.compare import compare

    wide = {"a": 512, "b": 8}
    models = {name: nn.Sequential(nn.Linear(64, each), nn.Linear(each, 4)).cuda() for name, each in wide.items()}
    data = [{"input": torch.randn(32, 64), "labels": torch.randint(0, 4, (32,))} for _ in range(4)]
    found = compare(models, data)
    assert [speed.size for speed in found.models[1].speeds] == [1, 8, 32]
    assert found.models[0].speeds[2].memory >= 32 * 512 * 4
