"""`fit(cache=...)`: what teachers say is kept as in a configured run, and the student is the same."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import hookbrew as hb
from hookbrew.cache import Cache
from hookbrew.errors import CacheError, ConfigError
from hookbrew.fitting import OWN
from hookbrew.loop import Pad
from hookbrew.objective import plan

LOOKS = 3
"""Forwards of a teacher before the training: sizes are measured, then the cache looks at a batch and at a half."""
SAMPLES, SIZE = 24, 4


class Table(nn.Module):
    """Logits of samples and hidden states of tokens, (B, L, D), looked up: to the bit the same in every batch."""

    def __init__(self, width=12, classes=3):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Embedding(20, width) for _ in range(2))
        self.head = nn.Embedding(20, classes)
        self.runs, self.draws = 0, False

    def forward(self, input_ids, attention_mask=None):
        self.runs += 1
        if self.draws:
            torch.rand(1)  # what it says does not depend on it, but the student's dropout comes after it
        for block in self.blocks:
            block(input_ids)
        return 3 * self.head(input_ids[:, 0]) + self.head(input_ids[:, 1])


class Ends:
    """Raises at the beginning of a step."""

    def __init__(self, error, at):
        self.error, self.at = error, at

    def step_start(self, state):
        if state.step == self.at:
            raise self.error


def samples(number=SAMPLES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, 20, (2 + i % 5,), generator=generator) for i in range(number)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each), "labels": each[0] % 3} for each in ids]


def loader(rows=None, size=SIZE, **options):
    pad = Pad({"input_ids": 0, "attention_mask": 0})
    return DataLoader(rows or samples(), batch_size=size, collate_fn=pad, **{"shuffle": True} | options)


def losses():
    pair = {"student": "blocks[0:2]", "teacher": "blocks[0:2]"}
    return [hb.loss("kd_ce", temperature=2), hb.loss("hidden_mse", **pair, projection="linear")]


TAIL = [hb.loss("topk_tail", k=2, temperature=2)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made(tagger, pack):
    """made(...): a distillation that is the same each time."""

    def make(seed=0, dropout=0.0, terms=None, **options):
        torch.manual_seed(seed)
        student = tagger(8, dropout=dropout)
        torch.manual_seed(seed)
        options = {"catalogue": pack} | options
        return hb.Distillation(Table(), student, terms or losses(), **options)

    return make


@pytest.fixture
def fit(made):
    """fit(cache=...): the student's weights in one tensor, and how often the teacher ran."""

    def make(data=None, seed=0, terms=None, epochs=3, **options):
        run = made(seed, terms=terms)
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(run.student.parameters(), 1e-2)
        run.fit(loader() if data is None else data, optimizer=optimizer, epochs=epochs, **options)
        return weights(run), run.teacher.runs

    return make


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.student.parameters()])


def refused(call, error=ConfigError):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value).splitlines()


def test_the_student_is_the_same_and_the_teacher_runs_in_one_epoch(fit, folder):
    whole, ran = fit()
    first, filling = fit(cache="kept")
    second, served = fit(cache=folder / "kept")
    assert torch.equal(whole, first)
    assert torch.equal(whole, second)
    assert (ran, filling, served) == (1 + 18, LOOKS + 6, LOOKS)
    found = Cache(folder / "kept")
    assert (len(found), found.facts["stored"]["kind"]) == (SAMPLES, "hidden")
    assert {part.dtype for part in found.parts} == {"fp32"}


def test_another_batch_size_and_order_are_served(fit):
    fit(cache="kept", epochs=1)
    whole, _ = fit(loader(size=7, shuffle=False), accumulate=2)
    served, ran = fit(loader(size=7, shuffle=False), accumulate=2, cache={"folder": "kept", "missing": "refuse"})
    assert torch.equal(whole, served)
    assert ran == LOOKS


def test_what_looks_at_the_teacher_draws_nothing(made):
    """In the first epoch it draws as often as without a cache."""

    def trained(**options):
        run = made(dropout=0.5)
        run.teacher.draws = True
        run.fit(loader(), epochs=1, **options)
        return weights(run)

    assert torch.equal(trained(), trained(cache="kept"))


def test_the_keys_of_a_table(fit, folder):
    table = {"folder": "kept", "kind": "topk", "k": 2, "dtype": "fp16"}
    first, filling = fit(terms=TAIL, cache=table)
    second, served = fit(terms=TAIL, cache=table)
    assert torch.equal(first, second)
    assert (filling, served) == (LOOKS + 6, LOOKS)
    assert Cache(folder / "kept").facts["stored"]["k"] == 2
    assert [part.dtype for part in Cache(folder / "kept").parts] == ["fp16", "int32", "fp16"]


def test_a_path_is_of_the_folder_in_which_fit_is_called(fit, folder, monkeypatch):
    class Leaves:
        def run_start(self, state):
            monkeypatch.chdir(folder / "elsewhere")

    (folder / "elsewhere").mkdir()
    fit(cache="kept", epochs=1, callbacks=[Leaves()])
    assert len(Cache(folder / "kept")) == SAMPLES
    monkeypatch.setenv("HOME", str(folder / "home"))
    fit(cache="~/kept", epochs=1)
    assert len(Cache(folder / "home/kept")) == SAMPLES


MISTAKES = {
    "a key": ({"folder": "kept", "kindd": "topk"}, "cache.kindd: unknown key; did you mean 'kind'?"),
    "a choice": (
        {"folder": "k", "kind": "topp"},
        "cache.kind: the string 'topp' is not a choice; did you mean 'topk'?",
    ),
    "a number": ({"folder": "kept", "k": 0}, "cache.k: must be >= 1: 0"),
    "no folder": ({"kind": "full"}, "cache.folder: missing: this key is required"),
    "nowhere": ("", "cache: a path cannot be empty"),
    "no table": (True, "cache: expected a path or a table, got true"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_keys_are_checked_as_in_a_file(fit, folder, case):
    cache, message = MISTAKES[case]
    assert refused(lambda: fit(cache=cache)) == [f"fit: {message}"]
    assert not [*folder.iterdir()]


def test_what_is_of_models_and_processes_that_a_file_makes_is_refused(fit):
    told = refused(lambda: fit(shard="student", timeout=30.0))
    assert [line.partition(":")[2].partition(";")[0] for line in told] == [
        " shard: models that are given are not sharded",
        " timeout: the process group is yours",
    ]


def test_a_misspelt_word_of_fit(fit):
    assert refused(lambda: fit(cahce="kept")) == ["fit: cahce: unknown key; did you mean 'cache'?"]
    given = inspect.signature(hb.Distillation.fit).parameters.values()
    assert {p.name for p in given if p.kind is p.KEYWORD_ONLY} == {*OWN, "epochs", "steps"}


def test_a_cache_of_something_else_is_refused_before_training(fit, folder):
    fit(cache="kept", epochs=1)
    (line,) = refused(lambda: fit(seed=4, cache="kept"), CacheError)
    assert line.startswith(f"the cache {folder / 'kept'} is of something else: weights ")
    assert line.endswith(" now; name another folder, or remove this one")
    (line,) = refused(lambda: fit(terms=[hb.loss("kd_ce")], cache="kept"), CacheError)
    assert 'taps ["logits", "blocks.0", "blocks.1"] before, ["logits"] now' in line
    (line,) = refused(lambda: fit(precision="bf16", cache="kept"), CacheError)
    assert "precision fp32 before, bfloat16 now" in line


def test_what_cannot_be_kept_is_refused(made, tagger, pack, folder):
    never = "cache: there is no teacher, so there is nothing to keep"
    alone = hb.Distillation(None, tagger(8), [hb.loss("ce")], catalogue=pack)
    augmented = made(augments=[hb.augment("masking", mask_token=0, p=0.1)])
    cases = {
        never: lambda: alone.fit(loader(), epochs=1, cache="kept"),
        "cache: no loss compares with a teacher, so there is nothing to keep": lambda: made(terms=[hb.loss("ce")]).fit(
            loader(), epochs=1, cache="kept"
        ),
        "augments: examples that augments make are new ones each time, and hardly ever in the cache; "
        "cache.augmented = true keeps them nonetheless": lambda: augmented.fit(loader(), epochs=1, cache="kept"),
        f"cache.folder: there is no cache in {folder / 'kept'}; build it with `hookbrew cache build`": lambda: (
            made().fit(loader(), epochs=1, cache={"folder": "kept", "missing": "refuse"})
        ),
    }
    for message, call in cases.items():
        assert refused(call) == [message]
    assert not [*folder.iterdir()]


def test_a_teacher_that_nothing_reads_is_refused_beside_one_that_is_kept(tagger, pack):
    given = {"one": Table(), "two": Table()}
    terms = [hb.loss("hidden_mse", student="blocks[0]", teacher={"one": "blocks[0]"}, projection="linear")]
    run = hb.Distillation(given, tagger(8), terms, catalogue=pack)
    expected = refused(lambda: run.fit(loader(), epochs=1))
    assert refused(lambda: run.fit(loader(), epochs=1, cache="kept")) == expected
    assert "two" in expected[0]


def test_whole_logits_are_kept_however_large_they_are(made, folder, monkeypatch):
    monkeypatch.setattr(plan, "LARGE", 0)
    run = made(terms=[hb.loss("kd_ce")])
    run.teacher.head = nn.Linear(1, 3)
    run.teacher.forward = lambda input_ids, attention_mask=None: run.teacher.head(input_ids[:, :1].float())
    run.fit(loader(), steps=1)
    assert run.objective.plan.heads
    run.fit(loader(), steps=1, cache="kept")
    assert not run.objective.plan.heads
    assert Cache(folder / "kept").facts["taps"] == ["logits"]


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()])
def test_nothing_is_left_on_the_models(made, folder, error):
    run = made(terms=[hb.loss("kd_ce")])
    keys = [{*vars(module)} for model in (run.teacher, run.student) for module in model.modules()]
    with pytest.raises(type(error)):
        run.fit(loader(), epochs=2, cache="kept", callbacks=[Ends(error, 3)])
    assert [{*vars(m)} for model in (run.teacher, run.student) for m in model.modules()] == keys
    assert not [m for m in run.teacher.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert run.objective.ask is None
    assert torch.is_grad_enabled()
    assert len(Cache(folder / "kept")) == 2 * SIZE, "what was written stays"
    before = run.teacher.runs
    run.fit(loader(), epochs=1)
    assert run.teacher.runs == before + 1 + 6


def test_a_second_fit_goes_on_with_the_cache(made, folder):
    run = made()
    run.fit(loader(), epochs=1, cache="kept")
    before = run.teacher.runs
    run.fit(loader(size=5), epochs=2, cache="kept")
    assert run.teacher.runs == before + LOOKS
    nn.init.zeros_(run.teacher.head.weight)
    with pytest.raises(CacheError, match="is of something else: weights "):
        run.fit(loader(), epochs=1, cache="kept")


def test_a_fit_that_is_resumed_goes_on_from_the_cache(fit):
    """What was added after the checkpoint is read now, and was rounded before: the student is the same."""

    def cut(name, cache, *others):
        callbacks = [hb.callback("checkpoint", every=2), *others]
        table = {"folder": cache, "dtype": "bf16"}
        return fit(loader(shuffle=False), cache=table, callbacks=callbacks, output=name, resume=True)

    whole, ran = cut("whole", "other")
    assert ran == LOOKS + 6
    with pytest.raises(InterruptedError):
        cut("cut", "kept", Ends(InterruptedError(), 5))
    rest, ran = cut("cut", "kept")
    assert torch.equal(rest, whole)
    assert ran == LOOKS + 2


def test_each_teacher_of_each_task_has_its_own(tagger, pack, folder):
    def trained(**options):
        torch.manual_seed(0)
        teachers = {"big": Table(), "small": Table(4)}
        tasks = {
            "one": hb.Task(teacher=Table(), losses=losses()),
            "two": hb.Task(teacher=teachers, losses=[hb.loss("kl")]),
        }
        run = hb.Distillation(None, tagger(8), tasks=tasks, catalogue=pack)
        run.fit({"one": loader(), "two": loader(samples(12, seed=1))}, epochs=4, **options)
        return weights(run), sum(model.runs for task in tasks.values() for model in task.models)

    whole, _ = trained()
    first, filling = trained(cache="kept")
    second, served = trained(cache="kept")
    assert torch.equal(whole, first)
    assert torch.equal(whole, second)
    assert filling > served == 3 * LOOKS
    sizes = {path.parent.name: len(Cache(path.parent)) for path in Path("kept").glob("*/cache.json")}
    assert sizes == {"tasks.one.teacher": 24, "tasks.two.teachers.big": 12, "tasks.two.teachers.small": 12}
