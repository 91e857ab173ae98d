"""`hookbrew taps` on models of transformers: by folder, by name, and two of them."""

import json
import sys
import tomllib

import pytest
import torch
from click.testing import CliRunner

from hookbrew import hub
from hookbrew.cli import main
from hookbrew.errors import HookbrewError
from hookbrew.taps import discover

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


def bert(depth, **sizes):
    config = transformers.BertConfig(**{**SIZES, **sizes}, num_hidden_layers=depth, num_labels=3)
    config.architectures = ["BertForSequenceClassification"]
    return config


def bart():
    sizes = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 50}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.BartConfig(**sizes, **heads, **tokens, forced_eos_token_id=None, num_labels=3)
    config.architectures = ["BartForSequenceClassification"]
    return config


def vit(size):
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    return transformers.ViTConfig(**sizes, num_hidden_layers=2, image_size=size, patch_size=4, num_channels=1)


@pytest.fixture
def taps(tmp_path, monkeypatch):
    """taps("small", ...): the command, in a folder with configurations of models and not one weight."""
    configs = {"small": bert(2), "large": bert(6, hidden_size=12), "bart": bart(), "vit": vit(8), "flat": vit((4, 8))}
    for name, config in configs.items():
        config.save_pretrained(tmp_path / name)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *arguments: CliRunner().invoke(main, ["taps", *arguments], prog_name="hookbrew")


def mistake(done):
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    return done.stderr.strip().splitlines()[-1]


def test_a_folder(taps):
    done = taps("small")
    assert done.exit_code == 0, done.output
    first, *_ = (" ".join(line.split()) for line in done.stdout.splitlines()[1:])
    assert first.startswith("model BertForSequenceClassification ")
    assert done.stdout.splitlines()[-3:] == [
        "hidden[0:3]     bert.encoder.layer: 2 BertLayer, hidden[0] is the input of the first",
        "attention[0:2]  bert.encoder.layer[*].attention.self:attn",
        "logits          :out.logits (2, 3)",
    ]


def test_a_folder_as_json(taps):
    found = json.loads(taps("small", "--json").stdout)
    assert list(found) == ["model", "stacks", "logits", "tree"]
    assert found["stacks"][0]["blocks"][1] == {
        "spot": {"path": "bert.encoder.layer.1", "call": None},
        "attentions": [{"path": "bert.encoder.layer.1.attention.self", "call": None}],
        "shape": [2, 8, 8],
    }


def test_a_model_that_asks_for_the_values_of_its_inputs(taps):
    """The head of BART looks for the last token of a sentence, which a model without memory cannot tell."""
    done = taps("bart")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[-5:]] == [
        "model.encoder.hidden[0:3]",
        "model.encoder.attention[0:2]",
        "model.decoder.hidden[0:3]",
        "model.decoder.attention[0:2]",
        "logits",
    ]


def test_a_decoder_with_inputs_of_its_own(taps, tmp_path):
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=50)
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(tmp_path / "t5")
    stacks = json.loads(taps("t5", "--json").stdout)["stacks"]
    assert [(stack["prefix"], stack["path"]) for stack in stacks] == [
        ("encoder", "encoder.block"),
        ("decoder", "decoder.block"),
    ]


@pytest.mark.parametrize(("name", "tokens"), [("vit", 5), ("flat", 3)])
def test_images(taps, name, tokens):
    found = json.loads(taps(name, "--json").stdout)
    assert found["model"] == "ViTModel"  # no architecture is named
    assert found["stacks"][0]["blocks"][0]["shape"] == [2, tokens, 8]


def test_a_layer_map(taps):
    done = taps("small", "large")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "# uniform: the student's 2 BertLayer of width 8; the teacher's 6 BertLayer of width 12\n"
        "[[losses]]\n"
        'type = "hidden_mse"\n'
        'student = "bert.encoder.layer[0:2]"\n'
        'teacher = "bert.encoder.layer[2,5]"\n'
        'projection = "linear"\n'
    )
    last = taps("small", "large", "--map", "last")
    assert tomllib.loads(last.stdout)["losses"][0]["teacher"] == "bert.encoder.layer[4:6]"
    found = json.loads(taps("small", "large", "--map", "last", "--json").stdout)
    assert found["matches"][0]["blocks"] == [[0, 4], [1, 5]]
    assert found["losses"] == tomllib.loads(last.stdout)["losses"]


def test_a_layer_map_that_cannot_be(taps):
    assert mistake(taps("large", "small")) == (
        "error: the student is deeper: 6 blocks in 'bert.encoder.layer', and the teacher has 2 in 'bert.encoder.layer'"
    )


def test_names_that_lead_to_no_model(taps, tmp_path):
    assert mistake(taps("empty")) == "error: the folder 'empty' has no config.json, so it is no model of transformers"
    assert mistake(taps("./small/none")) == "error: there is no file or folder './small/none'"
    assert mistake(taps("a/b/c")) == "error: there is no file or folder 'a/b/c'"
    assert mistake(taps("no-such-model")).startswith("error: transformers knows no model 'no-such-model': ")
    assert mistake(taps("smal")).endswith("; did you mean the folder 'small'?")
    assert "did you mean" not in mistake(taps("no-such-model"))
    (tmp_path / "empty/config.json").write_text("{}")
    assert mistake(taps("empty")).startswith("error: transformers knows no model 'empty': Unrecognized model in empty")
    assert "did you mean" not in mistake(taps("empty"))
    (tmp_path / "empty/config.json").write_text("{")
    assert mistake(taps("empty")).startswith("error: transformers knows no model 'empty': ")
    assert mistake(taps("none.toml")) == "error: none.toml: there is no file of this name"


def test_without_transformers(taps, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert mistake(taps("small")) == (
        "error: 'small' is no .toml file; to read it as a model of transformers: pip install \"hookbrew[hf]\""
    )


def test_options_that_would_be_ignored(taps):
    assert mistake(taps("small", "--map", "last")) == (
        "Error: a layer map is of two models: hookbrew taps STUDENT TEACHER"
    )
    assert mistake(taps("small", "--model", "student")) == "Error: --model is for a configuration file"
    assert mistake(taps("small", "-s", "seed=1")) == "Error: -s is for a configuration file"
    assert mistake(taps("small", "large", "--model", "student")) == "Error: --model is for the tree of one model"


def test_what_cannot_be_made_up(taps, tmp_path):
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.WhisperConfig(d_model=8, encoder_layers=1, decoder_layers=1, **heads)
    config.architectures = ["WhisperModel"]
    config.save_pretrained(tmp_path / "whisper")
    assert mistake(taps("whisper")) == (
        "error: WhisperModel takes 'input_features', which cannot be made up;"
        " write a configuration with its data, and look at that"
    )


def test_models_that_do_not_run(taps, tmp_path):
    bert(1, vocab_size=2, max_position_embeddings=4).save_pretrained(tmp_path / "short")
    assert mistake(taps("short")).startswith("error: this model cannot be built and run from its configuration alone: ")


def test_the_look_keeps_the_random_state(taps):
    state = torch.get_rng_state()
    layouts = [hub.looked("bart", discover) for _ in range(2)]
    assert layouts[0] == layouts[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_look_takes_no_memory(taps):
    devices = []
    hub.looked("small", lambda model, run: devices.append({p.device.type for p in model.parameters()}))
    hub.looked("bart", lambda model, run: (devices.append({p.device.type for p in model.parameters()}), run()))
    assert devices == [{"meta"}, {"meta"}, {"cpu"}]


def test_errors_of_the_look_are_told_as_they_are(taps):
    def look(model, run):
        raise HookbrewError("found nothing")

    with pytest.raises(HookbrewError, match=r"^found nothing$"):
        hub.looked("small", look)


def test_tokens():
    config = bert(1, vocab_size=12, pad_token_id=0, eos_token_id=4, bos_token_id=1)
    tokens = hub.ids(config)
    assert tokens.tolist() == [[2, 3, 5, 6, 7, 8, 9, 4]] * 2
    assert hub.ids(bert(1, vocab_size=1, pad_token_id=0)).tolist() == [[0] * 8] * 2
