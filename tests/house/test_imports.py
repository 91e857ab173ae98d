"""Who imports whom: one direction, no cycles, and no torch where a command must be fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ORDER = [
    ("errors", "words"),
    ("options",),
    ("config",),
    ("plugin",),
    ("chance", "heap", "ranks"),
    ("lower", "modes", "progress", "shield", "folder", "store", "migrate", "cka", "drawing"),
    ("report",),
    ("taps",),
    ("surgery",),
    ("objective", "size"),
    ("loop",),
    ("cache", "profile"),
    ("request",),
    ("factory", "groups", "earlier", "fitting"),
    ("distillation",),
    ("hub",),
    ("plan", "operate"),
    ("feeds",),
    ("models",),
    ("prepare",),
    ("resume", "signals"),
    ("run",),
    ("check", "keeping", "outline"),
    ("export",),
    ("compare",),
    ("estimate",),
    ("testing",),
    ("cli",),
    ("__main__",),
]
"""The rows of the design: each imports from the rows above it, and from itself only inside a package."""

RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
LAZY = ["hookbrew", "hookbrew.config", "hookbrew.plugin", "hookbrew.cli", "hookbrew.report", "hookbrew_plugins"]
SLOW = ("matplotlib", "torch._dynamo", "torch.nn.attention.bias", "torchmetrics", "transformers")
"""Seconds of every command; a function that needs one imports it."""


def imports(path):
    """Modules that a file imports when it is imported itself: functions and TYPE_CHECKING blocks left out."""
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def modules(top):
    for path in sorted((ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def row(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def test_every_module_has_a_row():
    assert {row(name) for name, _ in modules("hookbrew")} - {None} == set(RANK)


def test_rows_import_only_from_above():
    wrong = []
    for name, path in modules("hookbrew"):
        if row(name) is None:
            continue
        for target in imports(path):
            there = row(target) if target.split(".")[0] == "hookbrew" else None
            if there in RANK and there != row(name) and RANK[there] >= RANK[row(name)]:
                wrong.append(f"{name} imports {target}")
            if target.split(".")[0] == "hookbrew_plugins":
                wrong.append(f"{name} imports the standard pack")
    assert not wrong


def test_config_and_plugin_do_not_know_each_other():
    for here, there in (("config", "plugin"), ("plugin", "config")):
        for _, path in modules(f"hookbrew/{here}"):
            assert not [t for t in imports(path) if t.startswith(f"hookbrew.{there}")], path


def test_no_cycles():
    graph = {name: set() for top in ("hookbrew", "hookbrew_plugins") for name, _ in modules(top)}
    for top in ("hookbrew", "hookbrew_plugins"):
        for name, path in modules(top):
            graph[name] = {t for t in imports(path) if t in graph and t != name}
    done, walking = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in walking, " -> ".join([*walking[walking.index(name) :], name])
        walking.append(name)
        for target in graph[name]:
            # a package's __init__ re-exports its own modules, which import each other by full name
            if not name.startswith(target + "."):
                visit(target)
        walking.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("module", LAZY)
def test_imports_no_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_slow_is_imported_before_it_is_needed():
    found = [
        (name, t) for top in ("hookbrew", "hookbrew_plugins") for name, path in modules(top) for t in imports(path)
    ]
    assert ("hookbrew.taps.watch", "torch.nn") in found
    assert not [f"{name} imports {t}" for name, t in found if any(f"{t}.".startswith(f"{slow}.") for slow in SLOW)]


def test_the_pack_uses_public_names_only():
    import importlib

    wrong = []
    for name, path in modules("hookbrew_plugins"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hookbrew"):
                continue
            home = importlib.import_module(node.module)
            public = [*getattr(home, "__all__", ()), "words"]
            if node.module in ("hookbrew.errors", "hookbrew.words"):  # public modules, every plain name of them
                public = [n for n in vars(home) if not n.startswith("_")]
            wrong += [f"{name}: {node.module}.{alias.name}" for alias in node.names if alias.name not in public]
    assert not wrong
