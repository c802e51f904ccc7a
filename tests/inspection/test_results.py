"""The table, the plain data and the HTML."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from curvop.inspection import Caution, Forecast, Preflight, Reference, Trial
from curvop.inspection.wording import scientific, seconds, size_of, some, times
from tests.inspection import models

FIXED = Preflight(
    model="Net",
    num_parameters=12_345,
    dtype="float32",
    device="cpu",
    loss="CrossEntropyLoss",
    reduction="mean",
    sample_size=8,
    num_data=60_000,
    num_batches=469,
    gradient_seconds=0.00123,
    gradient_bytes=456_789,
    references=(
        Reference("Hessian", "finite differences", "float64", error=3e-10),
        Reference("GGN", "finite differences", "float32", error=2e-4),
        Reference("EF", None, None, "two steps differ"),
    ),
    trials=(
        Trial(
            "Hessian",
            "func",
            "right",
            None,
            error=2.4e-7,
            asymmetry=1e-8,
            noise=0.0,
            seconds=0.003,
            gradients=2.44,
            peak_bytes=1_000_000,
            peak_gradients=2.19,
            is_chosen=True,
        ),
        Trial("Hessian", "differences", "unchecked", "not proven: why", noise=0.0),
        Trial("Hessian", "rows", "declined", "a Hessian has no rows"),
        Trial("Hessian", "factored", "declined", "a Hessian has no rows"),
        Trial(
            "GGN",
            "graphs",
            "rough",
            "rounding leaves 1 digit; in float64 it is right",
            error=0.02,
            asymmetry=0.0,
            noise=float("nan"),
            seconds=0.4,
            gradients=325.2,
            setup_seconds=0.0321,
            kept_bytes=12_345_678,
        ),
        Trial("EF", "func", "undefined", "no terms"),
        Trial("EF", "backpack", "undefined", "no terms"),
    ),
    forecasts=(
        Forecast(
            "Hessian", "func", "recorded", None, 123.4, 45.6, 7_890_000, "proven to 3e-07"
        ),
        Forecast("GGN", None, None, "NonDeterministicError: two passes differ"),
    ),
    cautions=(
        Caution("stop", "dropout is on", ("a", "b", "c", "d", "e", "f"), "model.eval()"),
        Caution("note", "tied parameters", (), "nothing to do"),
    ),
    seconds=1.5,
)

SUMMARY = 3  # its line
TABLE = """\
Preflight of Net: 12,345 parameters, float32 on cpu; CrossEntropyLoss (mean)
Tried on 8 of 60,000 data in 469 batches; the unit is their gradient: 1.23 ms, 457 kB.

Not ready: dropout is on.

Hessian       verdict      error  asymmetry   noise     time   memory    set-up      kept
─────────────────────────────────────────────────────────────────────────────────────────
→ func        right        2e-07      1e-08       0    2.4 ×    2.2 ×
  differences unchecked                           0
              not proven: why
  rows        declined   a Hessian has no rows
  factored    declined   as rows
  The operator takes func, proven to 3e-07

GGN           verdict      error  asymmetry   noise     time   memory    set-up      kept
─────────────────────────────────────────────────────────────────────────────────────────
  graphs      rough        2e-02          0     nan    325 ×            32.1 ms   12.3 MB
              rounding leaves 1 digit; in float64 it is right
  Compared with finite differences in float32

EF            verdict      error  asymmetry   noise     time   memory    set-up      kept
─────────────────────────────────────────────────────────────────────────────────────────
  undefined: no terms
  Compared with nothing: two steps differ

→ the automatic choice. error: against differences of first derivatives in float64; of
these, at least their own estimate. asymmetry: of uᵀAv and vᵀAu. noise: of two products.
time, memory: of a product, in gradients. set-up, kept: once, to linearize.

Needs care
─────────────────────────────────────────────────────────────────────────────────────────
✗ dropout is on [a, b, c, d and 2 more]
    model.eval()
· tied parameters
    nothing to do

100 products over all data
─────────────────────────────────────────────────────────────────────────────────────────
            each a pass        takes    linearized         takes       keeps
Hessian     func             2.1 min    recorded          45.6 s     7.89 MB
GGN         NonDeterministicError: two passes differ
"""


def test_table() -> None:
    assert str(FIXED).splitlines() == TABLE.splitlines()


@pytest.mark.parametrize("name", ["mlp", "wrong", "broken"])
def test_table_fits(name: str) -> None:
    if name == "mlp":
        found = models.of_mlp()
    elif name == "wrong":
        found = models.looked_at(models.around(models.WrongCube))
    else:
        found = models.of(models.Broken())
    lines = str(found).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert not any(line != line.rstrip() for line in lines)


# ------------------------------------------------------------------- plain data


def test_json() -> None:
    data = FIXED.to_dict()
    assert json.loads(FIXED.to_json()) == data
    assert json.loads(FIXED.to_json(indent=None)) == data
    json.dumps(data, allow_nan=False)
    assert data["schema"] == 1
    assert data["is_ready"] is False
    assert data["trials"][0]["error"] == 2.4e-7
    assert data["trials"][4]["noise"] is None  # not a number has no form in JSON
    assert data["cautions"][0]["where"] == ["a", "b", "c", "d", "e", "f"]
    assert {t["verdict"] for t in data["trials"]} == {t.verdict for t in FIXED.trials}


def test_json_of_a_run() -> None:
    found = models.of_mlp()
    data = json.loads(found.to_json())
    assert data["is_ready"] is True
    assert len(data["trials"]) == 21
    assert data["model"] == "Sequential"


def test_schema_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "preflight.md").read_text("utf-8")
    for kind in (Preflight, Trial, Forecast, Caution, Reference):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in page, (kind, field.name)


def test_results_are_frozen() -> None:
    for value in (FIXED, FIXED.trials[0], FIXED.forecasts[0], FIXED.cautions[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.seconds = 0


def test_ready_or_not() -> None:
    """Plain ways must be right; a form must only not be known to be wrong."""

    def is_ready(plain: str, form: str, severity: str = "note") -> bool:
        trials = (
            Trial("GGN", "func", plain, is_chosen=True),
            Trial("GGN", "backpack", "fails", "an error"),
            Trial("GGN", "recorded", form, is_chosen=True),
            Trial("EF", "func", "undefined"),
        )
        caution = Caution(severity, "what", (), "remedy")
        return dataclasses.replace(FIXED, trials=trials, cautions=(caution,)).is_ready

    assert is_ready("right", "right")
    assert is_ready("rough", "skipped", "care")
    assert not is_ready("right", "right", "stop")
    for bad in ("wrong", "random", "not finite", "fails"):
        assert not is_ready(bad, "right")
        assert not is_ready("right", bad)
    assert not is_ready("unchecked", "right")
    assert not is_ready("skipped", "right")


def test_lookup() -> None:
    assert FIXED.trial("Hessian", "func").error == 2.4e-7
    assert FIXED.forecast("Hessian").form == "recorded"
    with pytest.raises(KeyError, match="recorded"):
        FIXED.trial("GGN", "recorded")
    with pytest.raises(KeyError, match="EF"):
        FIXED.forecast("EF")


# ------------------------------------------------------------------------- HTML


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[int] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += int(dict(attrs).get("colspan", 1))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html() -> None:
    cautious = dataclasses.replace(FIXED, model="<script>", cautions=FIXED.cautions)
    text = cautious._repr_html_()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    widths = tags.rows
    assert widths == [10] * 13 + [6] * 3  # trials, reasons and notes; then forecasts
    for told in ("not proven: why", "The operator takes func, proven to 3e-07"):
        assert told in text
    assert "dropout is on" in text


# ----------------------------------------------------------------------- wording


def test_numbers() -> None:
    assert [seconds(x) for x in (3.21e-5, 0.0123, 1.0, 89.0, 120.0, 7200.0)] == [
        "32.1 µs",
        "12.3 ms",
        "1 s",
        "89 s",
        "2.0 min",
        "2.0 h",
    ]
    assert [size_of(n) for n in (12, 1234, 12.3e6, 4e9)] == [
        "12 B",
        "1.23 kB",
        "12.3 MB",
        "4 GB",
    ]
    assert [scientific(x) for x in (None, 0.0, 1.23e-8)] == ["", "0", "1e-08"]
    assert [times(x) for x in (None, 1.26, 123.4)] == ["", "1.3 ×", "123 ×"]
    assert some(("a", "b")) == "a, b"


def test_summary_names_the_reason() -> None:
    def says(model: nn.Module, pattern: str, **options: Any) -> None:
        line = str(models.looked_at(model, **options)).splitlines()[SUMMARY]
        assert re.match(pattern, line), line

    assert str(models.of_mlp()).splitlines()[SUMMARY] == (
        "Ready: the automatic choice is right for Hessian, GGN and EF."
    )
    says(models.mlp(), "Not ready: the automatic choice for Hessian, func, is skipped")
    says(models.Broken(), "Not ready: loss and gradient cannot be computed: RuntimeErr")
