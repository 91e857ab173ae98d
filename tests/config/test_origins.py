"""Where each value came from."""

from hookbrew.config import origin_lines, read, structure


def test_every_value_has_an_origin(folder, fake, good):
    (folder / "base.toml").write_text(good)
    (folder / "kd.toml").write_text('extends = "base.toml"\nseed = 1\ndata.pad = {input_ids = 0}\n')
    document = read("kd.toml", ["train.epochs=5"])
    lines = list(origin_lines(document, structure(document, fake)))
    origins = {key: (value, where) for key, value, where in lines}
    assert len(lines) == len(origins)
    assert origins["seed"] == ("1", "kd.toml:2")
    assert origins["data.pad.input_ids"] == ("0", "kd.toml:3")
    assert origins["train.epochs"] == ("5", "-s train.epochs=5")
    assert origins["train.precision"] == ('"auto"', "default")
    assert origins["optimizer.betas"] == ("[0.9, 0.99]", "base.toml:24")
    assert origins["losses[0].weight.base"] == ("0.5", "base.toml:33")
    assert origins["losses[0].weight.start"] == ("0.0", "default")
    assert origins["losses[1].weight"] == ("1.0", "default")
    assert origins["losses[1].projection.type"] == ('"linear"', "base.toml:39")
    assert origins['losses[1].scales."a b"'] == ("1.0", "base.toml:40")
    assert origins["augments"] == ("[]", "default")
    assert origins["output"] == (f'"{folder}/runs/sms"', "base.toml:3")


def test_lists_and_tables_are_shown_in_one_line(folder, fake):
    (folder / "kd.toml").write_text(
        'output = "o"\nstudent = {factory = "a:b", x = [1, {a = ["z"], "b c" = 2.5}]}\n'
        'data.train.factory = "a:b"\ntrain.steps = 1\nlosses = [{type = "kd"}]\n'
    )
    document = read("kd.toml")
    lines = {key: value for key, value, _ in origin_lines(document, structure(document, fake))}
    assert lines["student.x"] == '[1, {a = ["z"], "b c" = 2.5}]'


def test_a_document_lists_its_origins(folder, good):
    (folder / "kd.toml").write_text(good)
    document = read("kd.toml", ["seed=3"])
    assert document.origins["seed"] == "-s seed=3"
    assert str(document.origins["losses[0].weight.base"]) == "kd.toml:33:29"
