"""A run whose teacher is kept in a cache trains the student of one whose teacher runs."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hookbrew_plugins
from hookbrew.cache import Cache
from hookbrew.config import read
from hookbrew.errors import CacheError, ConfigError, PreemptedError
from hookbrew.plan import planned
from hookbrew.plugin import catalogue, hookimpl, options
from hookbrew.prepare import looped
from hookbrew.run import built, resume, run
from tests.run import striking
from tests.run.taught import CONFIG, KEPT, MODULE, TAIL


@pytest.fixture
def known():
    return catalogue(discover=False, plugins=[hookbrew_plugins, striking, sys.modules[__name__]])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    sys.modules.pop("taughtland", None)
    (tmp_path / "taughtland.py").write_text(MODULE)
    (tmp_path / "toy.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("taughtland", None)


@options
class Short:
    """Memory is short at one step for more than two samples."""

    at: int

    def build(self):
        return Cramped(self.at)


class Cramped:
    def __init__(self, at):
        self._at = at

    def batch_ready(self, state):
        if state.step == self._at and len(state.batch["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")


@hookimpl
def hookbrew_register_callbacks(register):
    register("short", Short)


@pytest.fixture
def train(folder, known):
    """train("name", *sets): how often the teacher ran in all steps of a run."""

    def make(name, *sets):
        before = runs()
        run("toy.toml", [*sets, f"output=runs/{name}"], catalogue=known, quiet=True)
        return runs() - before

    return make


def runs():
    return sys.modules["taughtland"].Table.runs if "taughtland" in sys.modules else 0


def student(name):
    """The file of a student; of transformers it is in a folder."""
    (found,) = [p for p in Path(f"runs/{name}/final").rglob("*.safetensors") if p.stem in ("student", "model")]
    return found


def difference(one, other):
    """The largest of all weights."""
    one, other = (load_file(student(name)) for name in (one, other))
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


LOOKS = 3
"""Forwards before the training: sizes are measured, then the cache looks at a whole batch and at a half."""


def test_the_student_is_the_same_bit_for_bit(train):
    assert train("plain") == 1 + 18
    assert train("first", KEPT) == LOOKS + 6  # 24 samples in batches of 4: those of one epoch
    assert train("second", KEPT) == LOOKS
    assert difference("plain", "first") == difference("plain", "second") == 0


def test_another_batch_size_order_and_seed_of_the_data_are_served(train):
    train("first", KEPT)
    # the seed draws the teacher's weights too
    sets = ["data.batch_size=5", "data.shuffle=false", "train.accumulate=2"]
    assert train("other", KEPT, *sets) == LOOKS
    train("plain", *sets)
    assert difference("plain", "other") == 0


def test_only_what_is_missing_is_added(train, folder):
    train("first", KEPT, "data.train.number=20")
    before = len(Cache(folder / "kept"))
    assert 0 < train("more", KEPT) - LOOKS < 6  # the batches with at least one of the four new samples
    assert before == 20
    assert len(Cache(folder / "kept")) == 24
    train("plain")
    assert difference("plain", "more") == 0


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_rounded_numbers_are_the_same_however_they_are_had(train, dtype, most):
    """What the teacher says is rounded when it is written, also for the step that has it from the teacher."""
    train("plain")
    assert train("first", KEPT, f"cache.dtype={dtype}") == LOOKS + 6
    assert train("second", KEPT, f"cache.dtype={dtype}") == LOOKS
    assert difference("first", "second") == 0
    assert 0 < difference("plain", "second") < most


def test_the_likeliest_classes_are_all_that_topk_tail_reads(train, folder):
    train("plain", TAIL)
    assert train("first", TAIL, KEPT, "cache.kind=topk") == LOOKS + 6
    assert train("second", TAIL, KEPT, "cache.kind=topk") == LOOKS
    assert difference("first", "second") == 0
    assert difference("plain", "second") < 1e-5
    assert Cache(folder / "kept").facts["stored"]["k"] == 2


TOKENS = [
    "teacher.factory='taughtland:Headed'",
    "student.factory='taughtland:Tagger'",
    "losses=[{type='kl', temperature=2}, {type='jsd'}]",
]


def test_the_head_is_applied_again(train, folder):
    last = "cache.kind=last_hidden"
    train("plain", *TOKENS)
    assert train("full", *TOKENS, "cache.folder=full") == LOOKS + 6
    assert train("first", *TOKENS, KEPT, last) == LOOKS + 6
    assert train("second", *TOKENS, KEPT, last) == LOOKS
    assert difference("first", "second") == difference("plain", "second") == difference("plain", "full") == 0
    assert Cache(folder / "full").size > 5 * Cache(folder / "kept").size
    assert Cache(folder / "kept").facts["stored"]["head"] == "head"
    train("half", *TOKENS, "cache.folder=half", last, "cache.dtype=fp16")
    assert 0 < difference("plain", "half") < 2e-3


def test_the_head_of_a_teacher_in_fewer_bits_is_applied_as_in_its_forward(train):
    sets = [TOKENS[1], "teacher.factory='taughtland:Normed'", TOKENS[2], "train.teacher_precision=bf16"]
    train("plain", *sets)
    assert train("first", *sets, KEPT, "cache.kind=last_hidden") == LOOKS + 6
    assert train("second", *sets, KEPT, "cache.kind=last_hidden") == LOOKS
    assert difference("first", "second") == difference("plain", "second") == 0


def test_a_head_that_a_loss_names_is_applied_again(train):
    """The forward ends there, where the cache listens too."""
    sets = [*TOKENS[:2], "losses=[{type='kl', student='head', teacher='head'}]"]
    train("plain", *sets)
    for name, ran in {"first": 6, "second": 0}.items():
        assert train(name, *sets, KEPT, "cache.kind=last_hidden") == LOOKS + ran
    assert difference("plain", "first") == difference("plain", "second") == 0


def test_losses_in_chunks_read_no_logits_that_other_kinds_could_keep(train):
    sets = [*TOKENS[:2], "losses=[{type='kd_ce'}]", "train.chunked=true", KEPT]
    for kind in ("last_hidden", "sampled"):
        assert refused(train, *sets, f"cache.kind={kind}", error=ConfigError).endswith(
            f"cache.kind: '{kind}' is for logits, and train.chunked = true reads what goes into the heads, which "
            "'full' keeps; write 'full'"
        )
    assert train("first", *sets) - train("second", *sets) == 6
    assert difference("first", "second") == 0


def test_a_head_that_is_not_all_is_refused(train):
    text = refused(train, *TOKENS, KEPT, "cache.kind=last_hidden", "teacher.soft=true", error=ConfigError)
    assert text.endswith(
        "cache.kind: 'last_hidden' is for logits that a linear layer gives, and logits of teacher is none: "
        "its last linear layer is head; write 'full'"
    )
    text = refused(train, KEPT, "cache.kind=last_hidden", error=ConfigError)
    assert "and layers.0 of teacher is none: it has no linear layer; write 'full'" in text
    text = refused(train, *TOKENS, KEPT, "cache.kind=last_hidden", "train.compile=teacher", error=ConfigError)
    assert "train.compile: 'last_hidden' listens to the head of a teacher, which is not heard in one that is" in text


def test_draws_stand_for_probabilities(train, folder):
    sets = ["losses=[{type='kd_ce', temperature=2}]", "cache.kind=sampled"]
    train("plain", sets[0])
    assert train("first", *sets, KEPT, "cache.k=200") == LOOKS + 6
    assert train("second", *sets, KEPT, "cache.k=200", "cache.missing=refuse") == LOOKS
    assert difference("first", "second") == 0
    train("many", *sets, "cache.folder=many", "cache.k=20000")  # a tenth of the deviation
    assert 0 < 3 * difference("plain", "many") < difference("plain", "second")
    assert Cache(folder / "kept").facts["stored"]["draws"] == 200
    for wrong in ("{type='kl'}", "{type='kd_ce', standardize=true}"):
        text = refused(train, KEPT, sets[1], f"losses=[{wrong}]", error=ConfigError)
        assert "is not linear in the teacher's probabilities; write 'full'" in text
    assert "cache.dtype: 'sampled' is not kept in fp16; " in refused(
        train, KEPT, *sets, "cache.dtype=fp16", error=ConfigError
    )


@pytest.mark.parametrize("sets", [[], [*TOKENS, "cache.kind=last_hidden"]])
def test_bytes_with_a_scale_for_each_row(train, folder, sets):
    train("plain", *sets[:3])
    small = "cache.dtype=int8"
    assert train("first", *sets, KEPT, small) == LOOKS + 6
    assert train("second", *sets, KEPT, small) == LOOKS
    assert difference("first", "second") == 0
    assert 0 < difference("plain", "second") < 0.02
    assert {part.dtype for part in Cache(folder / "kept").parts} == {"int8", "fp32"}


ATTENDED = [
    "teacher.factory='taughtland:bert'",
    "student.factory='taughtland:bert'",
    "losses=[{type='attention_mse', student='attention[-1]', teacher='attention[-1]'}, "
    "{type='value_relation', student='attention[0]:v', teacher='attention[0]:v'}, "
    "{type='hidden_mse', student='hidden[*]', teacher='hidden[*]'}]",
    "optimizer={type='SGD', lr=0.1}",  # AdamW steps as far for a gradient that is only rounding
]


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 1e-2)])
def test_attention_is_kept_without_padding_in_each_dimension(train, folder, dtype, most):
    ran = runs()
    train("plain", *ATTENDED)
    for name in ("first", "second"):
        train(name, *ATTENDED, KEPT, f"cache.dtype={dtype}")
    train("other", *ATTENDED, KEPT, f"cache.dtype={dtype}", "data.batch_size=6", "cache.missing=refuse")
    assert runs() == ran
    assert difference("first", "second") == 0
    assert difference("plain", "second") < most
    axes = {part.name: part.axes for part in Cache(folder / "kept").parts if not part.name.endswith(" scale")}
    assert sorted(axes.values()) == [(), (), (), (1,), (1, 2)]


def test_memory_that_is_short_halves_what_was_stored_too(train):
    train("first", KEPT)
    assert train("second", KEPT, "train.out_of_memory=halve", "callbacks=[{type='short', at=4}]") == LOOKS
    assert train("third", KEPT) == LOOKS
    assert difference("second", "third") < 1e-6


def refused(train, *sets, error=CacheError):
    with pytest.raises(error) as caught:
        train("refused", *sets)
    return str(caught.value)


def test_another_teacher_tap_or_kind_is_refused(train, folder):
    train("first", KEPT)
    text = refused(train, KEPT, "seed=4")
    assert text.startswith(f"the cache {folder / 'kept'} is of something else: weights ")
    assert text.endswith(" now; name another folder, or remove this one")
    assert "structure" in refused(train, KEPT, "teacher.width=11")
    assert 'taps ["logits", "layers.0", "layers.1"] before, ["logits"] now' in refused(
        train, KEPT, "losses=[{type='kd_ce'}]"
    )
    assert "stored.parts" in refused(train, KEPT, "cache.dtype=fp16")
    assert "precision fp32 before, bfloat16 now" in refused(train, KEPT, "train.precision=bf16")


def test_another_tokenizer_is_refused(train, folder):
    (folder / "words").mkdir()
    (folder / "words/vocab.txt").write_text("a\nb\n")
    sets = [KEPT, "cache.tokenizer=words"]
    train("first", *sets)
    (folder / "words/vocab.txt").write_text("b\na\n")
    assert "is of something else: tokenizer " in refused(train, *sets)
    assert "now none" not in refused(train, KEPT)
    assert refused(train, KEPT, "cache.tokenizer=nowhere").startswith(f"{folder / 'nowhere'} has no tokenizer")


def test_other_texts_are_refused_where_the_teacher_may_not_run(train, folder):
    never = "cache.missing=refuse"
    assert refused(train, KEPT, never, error=ConfigError) == (
        f"-s cache.folder=kept: cache.folder: there is no cache in {folder / 'kept'}; "
        "build it with `hookbrew cache build`"
    )
    train("first", KEPT)
    assert train("second", KEPT, never) == LOOKS
    assert refused(train, KEPT, never, "data.train.seed=9") == (
        f"the cache {folder / 'kept'} lacks 4 of 4 examples of a batch: it was built of other data; "
        "add them with `hookbrew cache build`, or write cache.missing = 'build'"
    )
    assert len(Cache(folder / "kept")) == 24


MISTAKES = {
    "cache.kind=topk": [
        "cache.kind: 'topk' keeps the likeliest classes, and loss 'kd_ce' (losses[0]) reads all; write 'full'",
        "cache.kind: 'topk' keeps the likeliest classes, and loss 'hidden_mse' (losses[1]) reads all; write 'full'",
        "cache.kind: 'topk' keeps one tensor of logits, (B, C) or (B, L, C); write 'full'",
    ],
    "cache.k=3": ["cache.k: the kind 'full' keeps all classes; leave this key out"],
    "cache.kindd=full": ["cache.kindd: unknown key; did you mean 'kind'?"],
    "cache.dtype=fp61": ["cache.dtype: the string 'fp61' is not a choice; did you mean 'fp16'?"],
    "augments=[{type='mixup'}]": [
        "augments: examples that augments make are new ones each time, and hardly ever in the cache; "
        "cache.augmented = true keeps them nonetheless"
    ],
    "cache.augmented=true": ["cache.augmented: there are no augments; leave this key out"],
    "train.shard=both": [
        "train.shard: a sharded teacher cannot be told from another; with a [cache] write 'student'",
    ],
    "losses[1].mask=false": [
        "losses[1].mask: with a [cache], nothing is kept of padding, which this loss may count; leave this key out"
    ],
    "teacher.mixing=true": ["cache: what teacher says of an example depends on the others of its batch, by "],
    "losses=[{type='ce'}]": ["cache: no loss compares with a teacher, so there is nothing to keep"],
}


@pytest.mark.parametrize("setting", MISTAKES)
def test_what_cannot_be_kept_is_refused_before_training(train, setting, folder):
    text = refused(train, KEPT, setting, error=ConfigError)
    for message in MISTAKES[setting]:
        assert message in text
    assert not (folder / "kept").exists()


def test_topk_is_of_one_temperature(train):
    two = "losses=[{type='topk_tail', k=2}, {type='topk_tail', k=3, temperature=2}]"
    assert "'topk' is of one temperature, and the losses have 1 and 2; write 'full'" in refused(
        train, KEPT, "cache.kind=topk", two, error=ConfigError
    )
    assert "cache.k: a loss reads 2 classes; write so many, or leave it out" in refused(
        train, KEPT, "cache.kind=topk", "cache.k=1", TAIL, error=ConfigError
    )
    moving = "losses=[{type='topk_tail', temperature={type='linear', base=2}}]"
    assert "'topk' is of one temperature, and temperature of losses[0] needs all logits" in refused(
        train, KEPT, "cache.kind=topk", moving, error=ConfigError
    )


def test_a_cache_without_a_teacher_is_refused(folder, known):
    text = CONFIG.replace('[teacher]\nfactory = "taughtland:Table"\n', "").partition("[[losses]]")[0]
    (folder / "alone.toml").write_text(text + '[[losses]]\ntype = "ce"\n[cache]\nfolder = "kept"\n')
    with pytest.raises(ConfigError, match="cache: there is no teacher, so there is nothing to keep"):
        planned(read("alone.toml"), known)


def test_the_path_is_relative_to_the_file(train, folder, known, tmp_path_factory, monkeypatch):
    (folder / "toy.toml").write_text(CONFIG + '\n[cache]\nfolder = "kept"\n')
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    run(folder / "toy.toml", catalogue=known, quiet=True)
    assert len(Cache(folder / "kept")) == 24


def test_a_damaged_record_is_computed_again(train, folder):
    train("plain")
    train("first", KEPT)
    (data,) = (folder / "kept").glob("*.data")
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    assert train("second", KEPT) == LOOKS + 1
    assert difference("plain", "second") == 0
    assert train("third", KEPT) == LOOKS
    assert difference("plain", "third") == 0


def test_a_disk_that_is_full_ends_no_run(train, folder, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    wide = "teacher.width=1000"  # records of 50 kB, and checkpoints of less than 300
    train("plain", wide)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        ran = train("first", KEPT, wide)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran > LOOKS + 6
    assert 0 < len(Cache(folder / "kept")) < 24
    assert difference("plain", "first") == 0
    (told,) = [record.getMessage() for record in caplog.records if "the run goes on" in record.getMessage()]
    assert told == (
        f"the cache {folder / 'kept'} cannot be written: File too large; what is in it stays; "
        "the run goes on, and the teacher runs where nothing was kept"
    )


def test_a_run_that_is_resumed_goes_on_from_the_cache(folder, known, train):
    """What was added after the checkpoint is read now, and was rounded before: the student is the same."""
    import hookbrew_plugins
    from hookbrew.plugin import catalogue
    from tests.run import striking

    known = catalogue(discover=False, plugins=[hookbrew_plugins, striking])
    sets = [KEPT, "cache.dtype=bf16"]
    train("whole", "cache.folder=other", "cache.dtype=bf16", "callbacks=[{type='checkpoint', every=2}]")
    callbacks = "callbacks=[{type='strike', at=[5]}, {type='checkpoint', every=2}]"
    with pytest.raises(PreemptedError):
        run("toy.toml", [*sets, callbacks, "output=runs/struck"], catalogue=known, quiet=True)
    resume("runs/struck", ["callbacks=[{type='checkpoint', every=2}]"], catalogue=known, quiet=True)
    assert difference("whole", "struck") == 0


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.2])
def test_a_run_that_is_killed_leaves_all_that_it_wrote(folder, forked, train, pause):
    sets = ["data.train.number=400", "data.batch_size=2"]
    words = [argument for text in (KEPT, "output=runs/killed", *sets) for argument in ("-s", text)]
    process = forked("from hookbrew.cli import main; main()", "run", "toy.toml", "--quiet", *words)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not [p for p in folder.glob("kept/*.index") if p.stat().st_size]:
        time.sleep(0.005)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    found = Cache(folder / "kept")
    assert found.verify() == []
    assert len(found) > 0
    before = len(found)
    train("whole", KEPT, *sets)
    after = Cache(folder / "kept")
    rows = sum(len(shard.rows) for shard in after.shards.values())
    assert rows == len(after), "what was there was written again"
    assert rows >= before
    train("plain", *sets)
    assert difference("plain", "whole") == 0


def test_data_that_is_drawn_anew_is_told_once(train, caplog):
    train("steady", KEPT)
    assert not [r for r in caplog.records if "as many as the first" in r.getMessage()]
    assert train("first", KEPT, "data.train.factory='taughtland:noisy'", "train.epochs=4") == LOOKS + 24
    (told,) = [r.getMessage() for r in caplog.records if "as many as the first" in r.getMessage()]
    assert told == (
        "the second epoch added 24 examples to the cache, as many as the first: the data seems to draw them anew each "
        "time, and the cache grows by each epoch"
    )


def test_scores_that_a_mask_hides_are_not_kept_in_bytes(train):
    """Told before the training, by the first batch."""
    scores = "losses=[{type='attention_mse', student='attention[-1]:scores', teacher='attention[-1]:scores'}]"
    text = refused(train, *ATTENDED[:2], scores, KEPT, "cache.dtype=int8", error=ConfigError)
    assert text.endswith("scores' holds infinite numbers, which int8 has none for; write fp16")


def test_no_cache_is_no_call(folder, known, train):
    """A run without one asks nobody."""
    plan = planned(read("toy.toml", ["output=runs/x"]), known)
    with built(plan, known) as (made,):
        assert made.lessons is None
        assert made.distillation.objective.ask is None


def test_hooks_and_answers_are_gone_afterwards(folder, known):
    plan = planned(read("toy.toml", [KEPT, "output=runs/x"]), known, quiet=True)
    with built(plan, known) as (made,):
        made.experiment.output.mkdir(parents=True)
        looped(made, made.experiment.output).run()
        assert made.distillation.objective.ask is None
        assert torch.is_grad_enabled()
        assert not [m for m in made.distillation.teacher.modules() if m._forward_hooks]


TASKS = """
output = "runs/toy"
pythonpath = ["."]
seed = 3

[student]
factory = "taughtland:Net"

[tasks.one.teacher]
factory = "taughtland:Table"

[tasks.one.data]
train = { factory = "taughtland:samples" }
batch_size = 4
pad = { input_ids = 0, attention_mask = 0 }

[[tasks.one.losses]]
type = "kd_ce"

[tasks.two.teachers.big]
factory = "taughtland:Table"

[tasks.two.teachers.small]
factory = "taughtland:Table"
width = 4

[tasks.two.data]
train = { factory = "taughtland:samples", seed = 1, number = 12 }
batch_size = 4
pad = { input_ids = 0, attention_mask = 0 }

[[tasks.two.losses]]
type = "kl"

[train]
epochs = 4
device = "cpu"
"""


def test_each_teacher_of_each_task_has_its_own(folder, known, train):
    (folder / "toy.toml").write_text(TASKS)
    train("plain")
    train("first", KEPT)
    assert train("second", KEPT) == 3 * LOOKS
    assert difference("plain", "first") == difference("plain", "second") == 0
    sizes = {path.parent.name: len(Cache(path.parent)) for path in folder.glob("kept/*/cache.json")}
    assert sizes == {"tasks.one.teacher": 24, "tasks.two.teachers.big": 12, "tasks.two.teachers.small": 12}


STAGES = """
[[stages]]
name = "hidden"
losses = [{ type = "hidden_mse", student = "layers[*]", teacher = "layers[*]", projection = "linear" }]
cache = { folder = "states" }

[[stages]]
name = "logits"
train = { epochs = 2 }
losses = [{ type = "kd_ce" }]
cache = { folder = "kept" }
"""


def test_each_stage_has_its_own(folder, known):
    (folder / "toy.toml").write_text(CONFIG.partition("[[losses]]")[0] + STAGES)
    for name in ("first", "second"):
        before = runs()
        run("toy.toml", [f"output=runs/{name}"], catalogue=known, quiet=True)
        ran = runs() - before
    assert ran == 2 * LOOKS
    assert difference("first/logits", "second/logits") == 0
    assert [Cache(folder / name).parts[0].name for name in ("states", "kept")] == ["layers.0", "logits"]


def test_two_stages_that_keep_something_else_need_two_folders(folder, known):
    """Told before the first one trains; the same teacher, losses and kind share one."""
    (folder / "toy.toml").write_text(CONFIG.partition("[[losses]]")[0] + STAGES.replace('"states"', '"kept"'))
    with pytest.raises(ConfigError) as caught:
        run("toy.toml", catalogue=known, quiet=True)
    assert "cache.folder: an earlier stage keeps something else in " in str(caught.value)
    assert 'taps ["layers.0", "layers.1"] before, ["logits"] now; name another folder' in str(caught.value)
    assert not (folder / "runs").exists()
    same = STAGES.replace('"states"', '"kept"').replace(
        '{ type = "kd_ce" }',
        '{ type = "hidden_mse", student = "layers[*]", teacher = "layers[*]", projection = "linear" }',
    )
    (folder / "toy.toml").write_text(CONFIG.partition("[[losses]]")[0] + same)
    before = runs()
    run("toy.toml", catalogue=known, quiet=True)
    assert runs() - before == 2 * LOOKS + 6
