"""README and documentation: snippets run, figures agree with what was measured."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

import curvop

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "_gen" not in str(p))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PEERS = ("curvlinops", "hessian_eigenthings", "pyhessian")  # the extra `migration`


def snippets(page: Path) -> list[str]:
    return SNIPPET.findall(page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=name_of)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name != "README.md" and "CURVOP_EXAMPLES" not in os.environ:
        pytest.skip("takes long: make examples")
    code = snippets(page)
    peers = [p for p in PEERS if any(f"import {p}" in s or f"from {p}" in s for s in code)]
    missing = [p for p in peers if importlib.util.find_spec(p) is None]
    if missing and "CURVOP_PEERS" not in os.environ:
        pytest.skip(f"{', '.join(missing)} not installed: see `make migration`")
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    namespace: dict[str, object] = {"__name__": "snippets"}
    try:
        with warnings.catch_warnings():
            if page.parent.name == "migrate":
                warnings.simplefilter("ignore")  # those of the peers
            for i, snippet in enumerate(code):
                exec(compile(snippet, f"{page.name}, snippet {i}", "exec"), namespace)
    finally:
        torch.set_rng_state(state)
        plt.close("all")


def test_readme_has_snippets() -> None:
    assert len(snippets(ROOT / "README.md")) >= 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\((?!http|#)([^)#\s]+)", text)
    files = re.findall(r"`((?:examples|benchmarks|docs|src)/[\w/.-]+\.\w+)`", text)
    for link in links:
        assert (page.parent / link).exists(), link
    for file in files:
        written = file.startswith("examples/output/")
        assert written or (ROOT / file).exists(), file


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    documented = {
        name.rpartition(".")[2]
        for name in re.findall(
            r"\.\. auto(?:class|function|exception|module|data):: ([\w.]+)", text
        )
    }
    assert set(curvop.__all__) - {"__version__"} <= documented


# ------------------------------------------------------------------ figures measured


def speed_rows() -> list[dict[str, Any]]:
    return json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))["rows"]


def one_vector(row: dict[str, Any]) -> bool:
    what = (row["what"], row["columns"], row["clock"])
    return what == ("product", 1, "CPU time, one thread")


def speed_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speed_page", DOCS / "speed_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_has_the_measured_figures() -> None:
    summary = (RESULTS / "summary.md").read_text(encoding="utf-8").strip()
    assert summary in (ROOT / "README.md").read_text(encoding="utf-8")
    rows = (r for r in speed_rows() if one_vector(r) and r["matrix"] == "Hessian")
    measured = {r["title"]: r for r in rows}
    for line in summary.splitlines()[2:]:
        title, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
        names = ["curvlinops", "curvop", "curvop, linearised"]
        for name, cell in zip(names, cells, strict=True):
            figures = measured[title]["contenders"][name]
            if "gradients" in figures:
                shown = float(cell.split(" ")[0])
                assert shown == pytest.approx(figures["gradients"], rel=0.05, abs=0.006)
            else:
                assert cell == "refuses"


def test_how_fast_agrees_with_the_results() -> None:
    page = speed_page()
    text = page.targets((RESULTS / "targets.md").read_text(encoding="utf-8"))
    contender = {
        "one vector, nothing kept": "curvop",
        "one vector, linearised": "curvop, linearised",
    }
    seen = 0
    for section in text.split("### ")[1:]:
        title, _, head, _, *lines = section.strip().splitlines()
        networks = [cell.strip() for cell in head.strip("| ").split(" | ")][2:]
        measure = "gradients" if title == "In gradients" else "ratio"
        for line in lines:
            figure, matrix, *cells = (
                cell.strip() for cell in line.strip("| ").split(" | ")
            )
            shown = dict(zip(networks, cells, strict=True))
            for row in filter(one_vector, speed_rows()):
                cell = shown[page.SHORT.get(row["title"], row["title"])]
                if figure in contender and row["matrix"] == matrix and cell != "–":
                    value = float(cell.replace("*", "").split("\xa0")[0])
                    measured = row["contenders"][contender[figure]][measure]
                    assert value == pytest.approx(measured, rel=0.06)
                    seen += 1
    assert seen > 30
    assert "_generated/targets.md" in (DOCS / "speed.md").read_text(encoding="utf-8")


def test_all_measurements_are_shown() -> None:
    text = speed_page().measured() + (DOCS / "measured.md").read_text(encoding="utf-8")
    for path in RESULTS.glob("*.md"):
        last = path.read_text(encoding="utf-8").strip().splitlines()[-1]
        included = path.stem in ("speed", "summary", "targets")  # by name, here or there
        assert included or last in text
    assert "results/speed.md" in text


def test_targets_that_are_not_understood_are_an_error() -> None:
    table = "| figure |\n| --- |\n| a | Hessian | gradients | MLP: many | none |\n"
    with pytest.raises(ValueError, match="not understood"):
        speed_page().targets(table)


# -------------------------------------------------------------------------- examples


def examples() -> list[str]:
    return sorted(p.stem for p in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", examples())
def test_gallery_has_every_example(name: str) -> None:
    gallery = (DOCS / "examples.md").read_text(encoding="utf-8")
    assert f"examples/{name}.py" in gallery
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    if f"{name}.png" in source:
        assert f"pictures/{name}.png" in gallery
        assert (DOCS / "pictures" / f"{name}.png").stat().st_size < 250_000
