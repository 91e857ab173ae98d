"""The peers, which `tox run -e parity` installs: there a missing one is a failure, elsewhere nothing is collected."""

import os
import warnings
from importlib.util import find_spec

import pytest

if "HOOKBREW_PARITY" in os.environ or (find_spec("textbrewer") and find_spec("torchdistill")):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # `is not 'none'` in the source of TextBrewer's release
        import textbrewer.distiller_utils
        import torchdistill.losses.mid_level  # noqa: F401
else:
    collect_ignore_glob = ["test_*.py"]


class Scalars(dict):
    """Stands for TextBrewer's writer of tensorboard: the values of each tag, one a micro-batch."""

    def add_scalar(self, tag, value, step):
        self.setdefault(tag.removeprefix("scalar/"), []).append(value)


@pytest.fixture
def brewed(tmp_path):
    """brewed(teacher, student, adaptor, ...): a distiller of TextBrewer, and the scalars that it will write."""

    def make(teacher, student, adaptor, *matches, kind="General", accumulate=1, **distillation):
        training = textbrewer.TrainingConfig(
            device="cpu", output_dir=str(tmp_path), ckpt_steps=1000, gradient_accumulation_steps=accumulate
        )
        config = textbrewer.DistillationConfig(**distillation)
        distiller = textbrewer.Distillers[kind](training, config, teacher, student, adaptor, adaptor, *matches)
        distiller.tb_writer = scalars = Scalars()
        return distiller, scalars

    return make
