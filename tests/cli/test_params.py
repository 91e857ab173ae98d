"""`hookbrew params` on folders of transformers: one model, two, as JSON, and mistakes."""

import json

import pytest
from click.testing import CliRunner

from hookbrew.cli import main

transformers = pytest.importorskip("transformers")


@pytest.fixture
def params(tmp_path, monkeypatch):
    """params("small", ...): the command, in a folder with configurations of models and not one weight."""
    for name, depth in [("small", 2), ("large", 6)]:
        sizes = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.BertConfig(**sizes, num_hidden_layers=depth, num_labels=3)
        config.architectures = ["BertForSequenceClassification"]
        config.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *arguments: CliRunner().invoke(main, ["params", *arguments], prog_name="hookbrew")


def built(depth):
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(**sizes, num_hidden_layers=depth, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def test_one_model(params):
    done = params("small", "--depth", "1")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    total = sum(parameter.numel() for parameter in built(2).parameters())
    assert lines[1][:3] == ["model", "BertForSequenceClassification", f"{total:,}"]
    assert [line[0] for line in lines] == ["module", "model", "bert", "classifier"]


def test_two_models(params):
    done = params("small", "large", "--depth", "0")
    sizes = [sum(parameter.numel() for parameter in built(depth).parameters()) for depth in (2, 6)]
    assert done.stdout.splitlines()[1].split() == [
        "parameters",
        *(f"{size:,}" for size in sizes),
        f"{sizes[1] / sizes[0]:.2f}",
    ]
    found = json.loads(params("small", "large", "--json").stdout)
    assert [each["rows"][0]["parameters"] for each in found] == sizes


def test_mistakes(params):
    for arguments, problem in [
        (["smal"], "did you mean the folder 'small'?"),
        (["none.toml"], "error: none.toml: there is no file of this name"),
        (["small", "-s", "seed=1"], "Error: -s is for a configuration file"),
        (["small", "--depth", "-1"], "-1 is not in the range x>=0."),
    ]:
        done = params(*arguments)
        assert done.exit_code == 2
        assert problem in done.stderr
