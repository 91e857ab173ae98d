"""Sizes: small modules, small functions, few positional parameters. An exception needs a reason."""

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [path for top in ("hookbrew", "hookbrew_plugins") for path in sorted((ROOT / top).rglob("*.py"))]
TOGETHER = {"hookbrew/loop/loop.py": 170, "hookbrew/taps/tap.py": 200, "hookbrew/objective/objective.py": 200}
"""Files kept short on purpose: if they outgrow this, the abstraction is wrong."""


def functions():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def test_files():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > 300} == {}
    assert statistics.median(sizes.values()) <= 130
    assert {name: sizes[name] for name, most in TOGETHER.items() if sizes[name] > most} == {}


def test_functions():
    sizes = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert {name: size for name, size in sizes.items() if size > 50} == {}
    assert statistics.median(sizes.values()) <= 12


def test_parameters():
    wrong = {}
    for name, node in functions():
        given = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
        if len(given) > 5 and not any(
            "click" in ast.unparse(d) or "config_file" in ast.unparse(d) for d in node.decorator_list
        ):
            wrong[name] = given
    assert wrong == {}


def test_names():
    forbidden = ("utils", "util", "helpers", "common", "misc", "manager", "base")
    assert [str(path) for path in FILES if path.stem in forbidden] == []
    classes = [
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in classes if name.startswith("Base") or name.endswith(("Manager", "Handler", "Impl"))] == []


def test_docstrings():
    missing = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            missing.append(str(path.relative_to(ROOT)))
        for node in [
            n for parent in [tree, *(c for c in tree.body if isinstance(c, ast.ClassDef))] for n in parent.body
        ]:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if named and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert missing == []
