"""The Python blocks of the README and of the pages run as they are printed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
GENERATED = {"_build", "generated"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = {
    str(page.relative_to(ROOT)): blocks
    for page in PAGES
    if not GENERATED & set(page.parts) and (blocks := list(BLOCK.finditer(page.read_text(encoding="utf-8"))))
}


def test_documents_have_examples() -> None:
    assert "README.md" in DOCUMENTS and len(DOCUMENTS) > 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a document in turn, in one namespace and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / document
    text = page.read_text(encoding="utf-8")
    module = types.ModuleType("document")  # a module, so that the classes of a page can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in DOCUMENTS[document]:
        line = text.count("\n", 0, block.start(1))
        source = "\n" * line + block[1]  # so that a traceback points into the page
        exec(compile(source, str(page), "exec"), module.__dict__)
