"""What the documents name exists: tests, files and components."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMED = [
    (page.name, *found)
    for page in PAGES
    for found in sorted(set(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8"))))
]


@pytest.mark.parametrize(("page", "file", "name"), NAMED)
def test_a_test_that_a_page_names_is_there(page, file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert not name or name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_difference_from_textbrewer_names_its_test():
    text = (ROOT / "docs/textbrewer.md").read_text(encoding="utf-8")
    for title in ("Different on purpose", "Its mistakes, as tests of ours"):
        rows = re.findall(
            r"^\| (?!---)(.*) \|$", text.partition(f"## {title}\n")[2].partition("\n## ")[0], re.MULTILINE
        )
        assert len(rows) > 10
        assert [row for row in rows[1:] if "::test_" not in row] == []


def test_every_difference_that_is_shown_beside_textbrewer_is_in_the_page():
    text = (ROOT / "docs/textbrewer.md").read_text(encoding="utf-8")
    differing = ["differences", "runs"]
    for path in (ROOT / f"tests/parity/test_textbrewer_{name}.py" for name in differing):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        assert [name for name in tests if f"{path.relative_to(ROOT)}::{name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
