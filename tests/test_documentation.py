"""The snippets of README and documentation run from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> list[str]:
    return SNIPPET.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: p.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    namespace: dict[str, object] = {}
    try:
        for i, snippet in enumerate(snippets(page)):
            exec(compile(snippet, f"{page.name}, snippet {i}", "exec"), namespace)
    finally:
        torch.set_rng_state(state)


def test_readme_has_snippets() -> None:
    assert len(snippets(ROOT / "README.md")) >= 5
