"""What one of two gloo ranks does for test_ranks.py; ../rank.py runs the cases.

A difference is the largest one, over three steps of SGD,
between a rank's gradients and those of one process that averages the loss over both ranks' inputs.
"""

import copy
import warnings
from functools import partial

import torch
from conftest import bert
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as Replica

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, unwrap
from hookbrew.taps.tether import synced, tether

RANK = distributed.get_rank()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.outer(torch.tanh(self.inner(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.block = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.block:
            x = block(x)
        return {"logits": self.head(x)}


def net():
    return Net().double(), [[{"x": torch.randn(3, 4).double()} for _ in range(2)] for _ in range(3)]


def tiny_bert():
    import transformers

    ids = torch.randint(1, 64, (3, 2, 2, 7))
    return bert(transformers).double().eval(), [[{"input_ids": part} for part in step] for step in ids]


def shard(model, **options):
    """FSDP2 on each block and on the whole, as its documentation does it."""
    for block in getattr(model, "block", None) or model.bert.encoder.layer:
        fully_shard(block, **options)
    return fully_shard(model)


def gradients(model):
    """By name, whole, and zero where there is none."""
    found = {name: torch.zeros(()) if p.grad is None else p.grad for name, p in unwrap(model).named_parameters()}
    return {name: whole(grad) for name, grad in found.items()}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def descend(model):
    """SGD: later steps are right only if earlier ones were."""
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.1 * p.grad
    model.zero_grad()


def objective(taps, output, logits):
    return taps["a"].pow(2).mean() + (output["logits"].pow(2).mean() if logits else 0)


def difference(wrap, selector, *, make=net, logits=False, tie=True, steps=3):
    """Of the gradients of a wrapped model, from those of one process."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    single, data = make()
    several, worst = wrap(copy.deepcopy(single)), 0.0
    with Taps(single, {"a": selector}) as one, Taps(several, {"a": selector}) as many:
        for batches in data[:steps]:
            for batch in batches:
                output = one.run(**batch)
                (objective(one, output, logits) / 2).backward()
            output = many.run(**batches[RANK])
            loss = objective(many, output, logits)
            (tether(loss, output) if tie else loss).backward()
            expected, found = gradients(single), gradients(several)
            worst = max(worst, *((expected[name] - found[name]).abs().max().item() for name in expected | found))
            descend(single)
            descend(several)
    return worst


def failure(*args, **options):
    """The first line of a RuntimeError."""
    try:
        return f"no error, difference {difference(*args, **options)}"
    except RuntimeError as error:
        return str(error).splitlines()[0]


def dtypes(early):
    """What taps see of a block that gives float32 and computes in bfloat16, installed before and after sharding."""
    model = Net()
    taps = Taps(model, {"out": "block[1]", "in": "block[1]:in", "inner": "block[1].inner"})
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    if not early:
        shard(model, mp_policy=policy)
    with taps:
        if early:
            shard(model, mp_policy=policy)
        taps.run(torch.randn(3, 4))
    return {name: str(taps[name].dtype) for name in taps.paths}


def paths():
    return [Taps(wrap(Net()), {"a": "block[*].inner"}).paths["a"] for wrap in (Replica, shard, eager)]


def syncs():
    part = Net()
    fully_shard(part.block[0])
    models = {
        "plain": Net(),
        "compiled": torch.compile(Net(), backend="eager"),
        "ddp": Replica(Net()),
        "compiled ddp": eager(Net()),
        "fsdp": shard(Net()),
        "one block": part,
    }
    return {name: synced(model) for name, model in models.items()}


def zeros(wrap):
    """The parameters with a gradient of zeros after a loss on the second of three blocks."""
    model = wrap(Net())
    with Taps(model, {"a": "block[1]"}) as taps:
        output = taps.run(torch.randn(3, 4))
        tether(taps["a"].sum(), output).backward()
    reached = {name: p.grad for name, p in unwrap(model).named_parameters() if p.grad is not None}
    return sorted(name for name, grad in reached.items() if not grad.any())


def eager(model):
    return torch.compile(Replica(model), backend="eager")


def compiled_blocks(model):
    """FSDP2's hooks break graphs, so it is the blocks that one compiles."""
    # torch's own: dynamo looks at the .grad of the parameters that FSDP2 put into the block.
    warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
    for block in model.block:
        block.compile(backend="eager")
    return shard(model)


def stopped(wrap):
    """An early stop: the error with grad; without, which forwards stopped, and the difference of what a tap sees."""
    model, plain, x, refusal = wrap(Net()), Net(), torch.randn(3, 4), None
    plain.load_state_dict({name: whole(part) for name, part in unwrap(model).state_dict().items()})
    with Taps(model, {"a": "block[0]"}, stop=True) as taps:
        try:
            taps.run(x)
        except SelectorError as error:
            refusal = str(error)
        with torch.no_grad():
            outputs = [taps.run(x + step) is None for step in range(3)]
            seen = taps["a"]
    return refusal, outputs, (seen - plain.block[0](plain.stem(x + 2))).abs().max().item()


BERT = {"make": tiny_bert, "selector": "bert.encoder.layer[1]"}
STATIC = partial(Replica, static_graph=True)
UNUSED = partial(Replica, find_unused_parameters=True)
SMALL = partial(Replica, bucket_cap_mb=0.0001)
KEPT = partial(shard, reshard_after_forward=False)
CASES = {
    "ddp logits": lambda: difference(Replica, **BERT, logits=True, tie=False),
    "ddp logits tied": lambda: difference(Replica, **BERT, logits=True),
    "ddp tied": lambda: difference(Replica, **BERT),
    "ddp loose": lambda: failure(Replica, **BERT, tie=False),
    "ddp loose once": lambda: difference(Replica, **BERT, tie=False, steps=1),
    "ddp bypassed": lambda: difference(lambda model: Replica(model).module, **BERT, logits=True),
    "ddp small buckets tied": lambda: difference(SMALL, "block[1].inner"),
    "ddp static tied": lambda: difference(STATIC, "block[1].inner"),
    "ddp static loose": lambda: difference(STATIC, "block[1].inner", tie=False),
    "ddp unused tied": lambda: difference(UNUSED, "block[1].inner"),
    "ddp zeros": lambda: zeros(Replica),
    "ddp unused zeros": lambda: zeros(UNUSED),
    "ddp compiled tied": lambda: difference(eager, "block[1].inner"),
    "ddp compiled loose": lambda: failure(eager, "block[1].inner", tie=False),
    "fsdp bert tied": lambda: difference(shard, **BERT),
    "fsdp inner tied": lambda: difference(shard, "block[1].inner"),
    "fsdp inner loose": lambda: failure(shard, "block[1].inner", tie=False),
    "fsdp stem tied": lambda: difference(shard, "stem"),
    "fsdp stem loose": lambda: difference(shard, "stem", tie=False),
    "fsdp kept inner tied": lambda: difference(KEPT, "block[0].inner"),
    "fsdp kept inner loose": lambda: difference(KEPT, "block[0].inner", tie=False),
    "fsdp blocks compiled tied": lambda: difference(compiled_blocks, "stem"),
    "fsdp zeros": lambda: zeros(shard),
    "dtypes early": lambda: dtypes(early=True),
    "dtypes late": lambda: dtypes(early=False),
    "ddp stopped": lambda: stopped(Replica),
    "fsdp stopped": lambda: stopped(shard),
    "paths": paths,
    "synced": syncs,
}
