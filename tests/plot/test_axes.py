"""What every picture keeps to, and what is refused."""

from __future__ import annotations

import inspect
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

import curvop
from tests.plot import results
from tests.plot.pictures import PICTURES

matplotlib.use("Agg")

DRAWN = {
    "spectrum": results.pairs(),
    "density": results.density(),
    "per_layer": results.traces(),
    "convergence": results.solution(),
    "landscape": results.landscape(),
    "monitor": results.history(),
}
DRAWING = [
    name
    for name in curvop.plot.__all__
    if inspect.isfunction(getattr(curvop.plot, name)) and name != "loss_landscape"
]
every_function = pytest.mark.parametrize("name", DRAWING)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", PICTURES)
def test_returns_the_axes_that_it_was_given(name):
    _, ax = plt.subplots()
    assert PICTURES[name](ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@every_function
def test_a_new_figure_without_axes_shown_by_nobody(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("plt.show was called"))
    before = dict(matplotlib.rcParams)
    first = getattr(curvop.plot, name)(DRAWN[name])
    second = getattr(curvop.plot, name)(DRAWN[name])
    assert first.figure is not second.figure
    assert dict(matplotlib.rcParams) == before


@every_function
def test_refuses_other_results(name):
    wrong = torch.ones(3)
    with pytest.raises(TypeError, match=r"^Expected .*, got Tensor"):
        getattr(curvop.plot, name)(wrong)


@every_function
def test_refuses_what_are_no_axes(name):
    _, several = plt.subplots(1, 2)
    with pytest.raises(TypeError, match="Expected ax as the Axes of one picture"):
        getattr(curvop.plot, name)(DRAWN[name], ax=several)


def test_refuses_what_is_empty():
    with pytest.raises(ValueError, match="at least one trace"):
        curvop.plot.per_layer({})
    with pytest.raises(ValueError, match="at least one solution"):
        curvop.plot.convergence({})
    with pytest.raises(ValueError, match="at least one measurement"):
        curvop.plot.monitor([])
    with pytest.raises(ValueError, match="4 names"):
        curvop.plot.per_layer(results.traces(), names=["a", "b"])
    with pytest.raises(TypeError, match="Expected Eigenpairs, as eigsh returns it"):
        curvop.plot.density(results.density(), pairs=torch.ones(3))


def test_names_replace_those_of_the_blocks():
    ax = curvop.plot.per_layer(results.traces(), names=["a", "b", "c", "d"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c", "d"]


@every_function
def test_says_how_to_install_matplotlib(name, monkeypatch):
    for module in list(sys.modules):
        if module.split(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "curvop\[plot\]"'):
        getattr(curvop.plot, name)(DRAWN[name])


def test_importing_curvop_does_not_import_matplotlib():
    code = (
        "import sys, curvop; curvop.plot.spectrum; "
        "sys.exit(any(m.split('.')[0] == 'matplotlib' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
