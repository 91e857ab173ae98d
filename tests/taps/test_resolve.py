"""Selectors against models: what matches, in which order, and every mistake found at set-up time."""

import re

import pytest
import torch
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, parse, unwrap
from hookbrew.taps.resolve import resolve


def paths(model, text):
    return list(resolve(model, parse(text)))


def mistake(model, text):
    with pytest.raises(SelectorError) as caught:
        Taps(model, {"a": text})
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer[2]", ["layer.2"]),
        ("layer.2", ["layer.2"]),
        ("layer[-1]", ["layer.5"]),
        ("layer[0,3,-1]", ["layer.0", "layer.3", "layer.5"]),
        ("layer[1:3]", ["layer.1", "layer.2"]),
        ("layer[4:99]", ["layer.4", "layer.5"]),
        ("layer[::-2]", None),
        ("layer[::3]", ["layer.0", "layer.3"]),
        ("layer.?", [f"layer.{i}" for i in range(6)]),
        ("layer.{4,1}", ["layer.1", "layer.4"]),
        ("layer[*][0]", [f"layer.{i}.0" for i in range(6)]),
        ("layer[0].*", ["layer.0.0", "layer.0.1"]),
        ("heads.self", ["heads.self"]),
        ("heads.{self,output}", ["heads.self", "heads.output"]),
        ("**.{output,self}", ["heads.self", "heads.output"]),
        ("**.logits", ["logits"]),
        ("logits:out", ["logits"]),
        ("logits", [""]),
        (":in", [""]),
        ("f*", ["first"]),
        ("{first,layer.}", None),
        ("{layer,heads}.*", [*(f"layer.{i}" for i in range(6)), "heads.self", "heads.output"]),
        ("{l?yer,f*rst}[0]", ["layer.0", "first.0"]),
        ("layer[0].**", ["layer.0.0", "layer.0.1"]),
        ("**.**.output", ["heads.output"]),
        ("**.0", ["layer.0", *(f"layer.{i}.0" for i in range(6)), "first.0"]),
    ],
)
def test_matches_in_the_models_order(stack, text, expected):
    model, _ = stack
    if expected is None:
        with pytest.raises(SelectorError):
            paths(model, text)
    else:
        assert paths(model, text) == expected


def test_a_module_with_two_names_is_found_under_both(stack):
    model, _ = stack
    assert resolve(model, parse("first"))["first"] is resolve(model, parse("layer[0]"))["layer.0"]


def test_near_miss_and_stop_point(transformer):
    model, _ = transformer("bert")
    assert mistake(model, "bert.encoder.layers[*]") == (
        "selector 'bert.encoder.layers[*]' matches no module of BertForSequenceClassification."
        " Stopped at 'bert.encoder': no child 'layers'; did you mean 'layer'?"
    )
    assert mistake(model, "brt.encoder") == (
        "selector 'brt.encoder' matches no module of BertForSequenceClassification."
        " Stopped at the model: no child 'brt'; did you mean 'bert'?"
    )
    assert mistake(model, "bert.encoder.layer[*].attention.slef") == (
        "selector 'bert.encoder.layer[*].attention.slef' matches no module of BertForSequenceClassification."
        " Stopped at 'bert.encoder.layer.0.attention' and 3 more module(s): no child 'slef'; did you mean 'self'?"
    )
    assert mistake(model, "**.qurey") == (
        "selector '**.qurey' matches no module of BertForSequenceClassification."
        " Stopped at the model and 86 more module(s): no child 'qurey'; did you mean 'query'?"
    )
    assert mistake(model, "bert.x*") == (
        "selector 'bert.x*' matches no module of BertForSequenceClassification."
        " Stopped at 'bert': no child 'x*'; one of: embeddings, encoder, pooler"
    )
    assert mistake(model, "classifier.weight") == (
        "selector 'classifier.weight' matches no module of BertForSequenceClassification."
        " Stopped at 'classifier': no child 'weight'; there are none"
    )


@pytest.mark.parametrize(
    ("written", "alias"), [("hiden[1]", "hidden"), ("hidden", "hidden"), ("atention[-1]:q", "attention")]
)
def test_an_alias_that_is_misspelt_or_has_no_index(transformer, written, alias):
    model, _ = transformer("bert")
    name = written.partition("[")[0]
    assert mistake(model, written) == (
        f"selector '{written}' matches no module of BertForSequenceClassification."
        f" Stopped at the model: no child '{name}'; did you mean the alias '{alias}[i]', with an index?"
    )


def test_a_star_does_not_cross_dots(transformer):
    model, _ = transformer("bert")
    assert mistake(model, "*.attention.self") == (
        "selector '*.attention.self' matches no module of BertForSequenceClassification: 4 module(s) end like that,"
        " e.g. 'bert.encoder.layer.0.attention.self': write '**.attention.self' or the full path."
    )
    assert paths(model, "**.attention.self") == [f"bert.encoder.layer.{i}.attention.self" for i in range(4)]
    assert paths(model, "bert.encoder.*[*]") == [f"bert.encoder.layer.{i}" for i in range(4)]


def test_a_beginning_or_a_middle_that_is_missing(transformer):
    model, _ = transformer("bert")
    assert mistake(model, "encoder.layer[0:2]:in") == (
        "selector 'encoder.layer[0:2]:in' matches no module of BertForSequenceClassification: 2 module(s) end like"
        " that, e.g. 'bert.encoder.layer.0': write '**.encoder.layer[0:2]:in' or the full path."
    )
    assert mistake(model, "bert.layer[0]") == (
        "selector 'bert.layer[0]' matches no module of BertForSequenceClassification: 1 module(s) end like that,"
        " e.g. 'bert.encoder.layer.0': write 'bert.**.layer[0]' or the full path."
    )


def test_a_beginning_that_is_too_much(transformer):
    model, _ = transformer("bert")
    assert mistake(model, "module.bert.encoder.layer[*]") == (
        "selector 'module.bert.encoder.layer[*]' matches no module of BertForSequenceClassification:"
        " paths start inside the model; write 'bert.encoder.layer[*]'."
    )


def test_every_alternative_of_a_brace_has_to_match(transformer):
    model, _ = transformer("bert")
    assert mistake(model, "bert.encoder.layer[0].attention.self.{query,valu}") == (
        "selector 'bert.encoder.layer[0].attention.self.{query,valu}' matches no module of"
        " BertForSequenceClassification. Stopped at 'bert.encoder.layer.0.attention.self': no child 'valu';"
        " did you mean 'value'?"
    )


def test_one_dead_selector_among_live_ones(stack):
    model, _ = stack
    with pytest.raises(SelectorError, match=r"^selector 'layr' matches no module of Stack"):
        Taps(model, {"a": "layer[0]", "b": "layr", "c": "first"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("layer[7]", "index [7] out of range: 'layer' has 6 children (0..5)"),
        ("layer[-7]", "index [-7] out of range: 'layer' has 6 children (0..5)"),
        ("layer[0,6]", "index [6] out of range: 'layer' has 6 children (0..5)"),
        ("layer[6:]", "index [6:] selects nothing: 'layer' has 6 children (0..5)"),
        ("*[7]", "index [7] out of range: 'layer' has 6 children (0..5)"),
        (
            "layer[3,0]",
            "index [3,0] is out of order, but matches come in the model's own order; write [0,3]",
        ),
        (
            "layer[-1,0,0]",
            "index [-1,0,0] is out of order, but matches come in the model's own order; write [0,5]",
        ),
        ("layer[::-1]", "index [::-1] goes backwards, but matches come in the model's own order"),
        (
            "heads[0]",
            "[0] needs a container with numbered children; 'heads' is a ModuleDict with self, output",
        ),
        (
            "logits[0]",
            "[0] needs a container with numbered children; 'logits' is a Linear with no children",
        ),
        ("layer", "'layer' is a ModuleList, which is never called; write 'layer[*]'"),
        ("layer:in", "'layer' is a ModuleList, which is never called; write 'layer[*]:in'"),
        ("heads", "'heads' is a ModuleDict, which is never called; write 'heads.*'"),
        ("*", "'layer' is a ModuleList, which is never called; write '*[*]'"),
    ],
)
def test_containers_and_indices(stack, text, problem):
    model, _ = stack
    assert mistake(model, text) == f"selector '{text}': {problem}"


def test_a_container_that_is_the_model_or_has_no_children():
    model = nn.ModuleList([nn.Linear(2, 2), nn.ParameterList([torch.zeros(1)])])
    assert mistake(model, ":out") == "selector ':out': the model is a ModuleList, which is never called; write '*'"
    assert mistake(model, "1") == "selector '1': '1' is a ParameterList, which is never called"


def test_names_that_a_selector_cannot_write():
    model = nn.ModuleDict({"a:b [0]": nn.Linear(2, 2)})
    assert paths(model, "a?b??0?") == ["a:b [0]"]


@pytest.fixture
def process():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process")
def test_no_prefix_for_wrapped_models(stack):
    model, x = stack
    wrapped = torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager")
    assert unwrap(wrapped) is model
    assert Taps(wrapped, {"a": "layer[0]"}).paths == {"a": ["layer.0"]}
    parallel = nn.parallel.DistributedDataParallel(model)
    with Taps(parallel, {"a": "layer[0]"}) as taps:
        assert taps.run(x).grad_fn is not None
    torch.testing.assert_close(taps["a"], model.layer[0](x), rtol=0, atol=0)


def test_data_parallel_is_refused(stack):
    model, _ = stack
    assert mistake(nn.DataParallel(model), "layer[0]") == (
        "DataParallel runs replicas on several threads, and a tap would see one of them;"
        " use DistributedDataParallel, or tap the model inside"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_script_modules_are_refused():
    inner = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    assert mistake(inner, ":out") == "a ScriptModule runs without Python hooks; tap the model that it was made from"
    assert re.fullmatch(
        r"selector '0': '0' is a \w+, which runs without Python hooks", mistake(nn.Sequential(inner), "0")
    )
