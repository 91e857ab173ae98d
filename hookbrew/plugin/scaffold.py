"""A new plugin: an installable package with one loss, its tests, and nothing of ours to copy later."""

from __future__ import annotations

import builtins
import keyword
import re
from pathlib import Path
from string import Template

from hookbrew.errors import FolderError, PluginError

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")

TAKEN = frozenset(
    {*keyword.kwlist, *dir(builtins), "Callable", "Tensor", "options", "partial", "positive", "torch", "valid_mean"}
    | {"plugins"}
)
"""Words that a module of the package uses already, and the one that would name it hookbrew_plugins, as ours is."""

FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "The loss $name for hookbrew"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["hookbrew>=0.1"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.hookbrew]
$name = "$module"

[tool.hatch.build.targets.wheel]
packages = ["$module"]
""",
    "README.md": """\
# $distribution

The loss `$name` for hookbrew.

```console
$$ python -m pip install -e '.[test]'
$$ hookbrew plugins show $name
$$ python -m pytest
```

```toml
[[losses]]
type = "$name"
scale = 1.0
```
""",
    "$module/__init__.py": '''\
"""The entry module: it only registers names, and imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hookbrew.plugin import hookimpl

if TYPE_CHECKING:
    from hookbrew.plugin import Register


@hookimpl
def hookbrew_register_losses(register: Register) -> None:
    """Imported when a configuration, `hookbrew plugins show` or a test names it."""
    register("$name", "$module.loss:$cls")
''',
    "$module/loss.py": '''\
"""A loss: a pure function on tensors, and its options beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from hookbrew.objective import valid_mean
from hookbrew.plugin import options, positive
from torch import Tensor


@options
class $cls:
    """Squared difference of the class probabilities of student and teacher."""

    scale: float = positive(1.0)
    """Multiplies the loss."""

    def build(self) -> Callable[..., Tensor]:
        """The function, with its options filled in."""
        return partial($name, scale=self.scale)


def $name(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """scale * sum_c (softmax(student)_c - softmax(teacher)_c)^2, the mean over valid positions, a scalar.

    student, teacher: logits (B, C) or (B, L, C); mask: bool (B,) or (B, L), True where a position counts.
    """
    if mask is not None:  # blank before any arithmetic: 0 * nan is nan, in the gradient too
        hole = ~mask.unsqueeze(-1)
        student, teacher = student.masked_fill(hole, 0.0), teacher.masked_fill(hole, 0.0)
    wide = torch.promote_types(student.dtype, torch.float32)
    q, p = student.softmax(-1, dtype=wide), teacher.detach().softmax(-1, dtype=wide)
    return scale * valid_mean((q - p).square().sum(-1), mask)
''',
    "tests/test_$name.py": '''\
"""The plugin is found, and its loss has the properties of a distillation loss."""

from hookbrew.plugin import catalogue
from hookbrew.testing import check_loss

from $module.loss import $cls


def test_installed_and_listed():
    assert "$name" in catalogue().names("losses")


def test_properties():
    check_loss($cls())
''',
}
"""Path -> text, with the names filled in by `scaffold`."""


def component(name: str) -> str:
    """The name of the loss in the package `hookbrew-NAME`. Raises PluginError for a name that cannot be one."""
    loss = name.replace("-", "_")
    if not NAME.fullmatch(name):
        reason = "a name is made of a-z and 0-9, with single - or _ between, and begins with a letter"
        raise PluginError(f"{name!r} is not a name for a plugin: {reason}")
    if loss.startswith("hookbrew"):
        raise PluginError(f"{name!r}: leave out 'hookbrew', the package gets it by itself: hookbrew-NAME")
    if loss in TAKEN or titled(loss) in TAKEN:
        raise PluginError(f"{name!r} means something else in the package that would be written; choose another name")
    return loss


def titled(loss: str) -> str:
    """The name of the class for a loss: `attention_plus` -> `AttentionPlus`."""
    return "".join(word.capitalize() for word in loss.split("_"))


def scaffold(name: str, parent: Path) -> Path:
    """Write the package `hookbrew-NAME` into the folder `parent`, and return its path.

    Raises PluginError for a bad name and FolderError if the folder exists; nothing is overwritten.
    """
    loss = component(name)
    names = {
        "name": loss,
        "cls": titled(loss),
        "module": f"hookbrew_{loss}",
        "distribution": f"hookbrew-{loss.replace('_', '-')}",
    }
    package = parent / names["distribution"]
    try:
        package.mkdir(parents=True)
        for path, text in FILES.items():
            file = package / Template(path).substitute(names)
            file.parent.mkdir(exist_ok=True)
            file.write_text(Template(text).substitute(names), encoding="utf-8")
    except FileExistsError as error:
        raise FolderError(f"{package} exists already; nothing was written") from error
    except OSError as error:
        raise FolderError(f"cannot write {package}: {error.strerror or error}") from error
    return package
