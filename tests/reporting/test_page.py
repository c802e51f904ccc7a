"""The page: its structure, and how a browser shows it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from curvop import report
from curvop.reporting import figures, sections
from curvop.reporting.target import returned
from tests.reporting import targets

VOID = {"meta", "link", "br", "img", "hr"}
WIDTHS = (390, 1280)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
]  # fmt: skip


def made(name, folder, **options):
    about = returned(getattr(targets, name)(), name)
    return report(
        about.model,
        about.loss,
        about.params,
        about.data,
        out=folder,
        optimizer=about.optimizer,
        reduction=about.reduction,
        **options,
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of what a page finds difficult, and of what it should look like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "PROBES", 3)
        patch.setattr(sections, "STEPS", 16)
        folder = tmp_path_factory.mktemp("pages")
        names = ("trained", "named_like_html", "one_parameter", "negative")
        found = {
            name: made(name, folder / name, k=4, budget=None).html.read_text("utf-8")
            for name in names
        }
        found["unfinished"] = made(
            "trained", folder / "unfinished", budget=1e-3
        ).html.read_text("utf-8")
        return found


PAGES = ("trained", "named_like_html", "one_parameter", "negative", "unfinished")


class Structure(HTMLParser):
    """Whether elements are closed in order; ids, and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "xlink:href", "data", "action"):
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", PAGES)
def test_structure(pages, name):
    page = pages[name]
    structure = Structure()
    structure.feed(page)
    structure.close()
    assert structure.open == []
    assert len(set(structure.ids)) == len(structure.ids)
    # nothing from elsewhere, nothing that runs
    assert all(link.startswith(("#", "data:")) for link in structure.links)
    inner = {link[1:] for link in structure.links if link.startswith("#")}
    used = inner | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(structure.ids)
    assert "script" not in structure.tags
    assert "@import" not in page
    assert "<h1>" in page
    for word in ("nan", "None", "inf,", "tensor("):
        assert word not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_sections_and_numbers(pages, tmp_path):
    page = pages["trained"]
    for heading in (
        "Eigenvalues", "Sharpness under the optimizer", "Spectral density",
        "Effective dimension", "Traces of the layers", "Gradient", "How it was computed",
        "Run record",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<svg") == 7
    assert page.count('role="img" aria-label="') == 7
    assert "2.weight" in page
    assert "Adam" in page
    assert page.count("sha256") == 2


def test_users_words_are_escaped(pages):
    page = pages["named_like_html"]
    assert "<script>" not in page
    assert "<b>bold" not in page
    assert html.escape("<script>alert(1)</script>") in page


def test_every_colour_is_known_in_both_schemes(pages):
    page = pages["trained"]
    body = page[page.index("<body>") :]
    assert not re.search(r"(fill|stroke): #", body)
    used = set(re.findall(r"var\((--c[0-9a-f]{6})\)", body))
    assert used
    light, dark = (figures.colours(body, dark=dark) for dark in (False, True))
    for colour in used:
        assert f"{colour}:#{colour[3:]};" in light
        assert f"{colour}:#" in dark
    assert light in page
    assert dark in page


def luminance(colour):
    """Of sRGB, as WCAG 2 has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_the_background():
    css = (Path(figures.__file__).parent / "style.css").read_text("utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", part)) for part in halves(css))
    for scheme in (light, dark):
        for ground in ("paper", "panel"):
            assert contrast(scheme["ink"], scheme[ground]) >= 7
            assert contrast(scheme["soft"], scheme[ground]) >= 4.5
        assert contrast(scheme["accent"], scheme["paper"]) >= 4.5
        assert contrast(scheme["warn"], scheme["paper"]) >= 4.5
    from curvop.plot import BLUE, GREY, ORANGE

    for colour in (BLUE, ORANGE, GREY):
        inverted = figures._on_black(colour[1:].lower())
        assert contrast(colour.lower(), light["paper"]) >= 3
        assert contrast(inverted, dark["paper"]) >= 3


def halves(css):
    at = css.index("@media screen and (prefers-color-scheme: dark)")
    return css[:at], css[at:]


def test_drawing_leaves_matplotlib_as_found(tmp_path):
    before = dict(mpl.rcParams)
    figures.picture("name", "words", lambda ax: ax.plot([1, 2]))
    assert dict(mpl.rcParams) == before


def test_pictures_are_reproducible():
    draw = [figures.picture("a", "b", lambda ax: ax.plot([1, 3, 2])) for _ in range(2)]
    assert draw[0] == draw[1]


# ----------------------------------------------------------------------------- browser


def wrapper(page, width):
    """A frame of a width, which measures what is in it."""
    return f"""<!DOCTYPE html><meta charset="utf-8">
<meta name="color-scheme" content="light dark"><body style="margin:0">
<iframe id="frame" style="border:0;width:{width}px;height:5000px"
 srcdoc="{html.escape(page)}"></iframe>
<script>
frame.onload = () => {{
  const d = frame.contentDocument, root = d.documentElement;
  const wide = [...d.body.querySelectorAll("*")].filter(e => !e.closest(".scroll, svg")
    && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML);
  const small = [...d.querySelectorAll("p, td, dd, dt, figcaption")].filter(e =>
    parseFloat(frame.contentWindow.getComputedStyle(e).fontSize) < 12).length;
  document.body.append(Object.assign(document.createElement("pre"), {{id: "found",
    textContent: JSON.stringify({{
    width: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight, small,
    wide: wide.slice(0, 3).map(s => s.slice(0, 200)),
    figures: [...d.querySelectorAll("svg")].map(e => e.getBoundingClientRect())
      .map(box => [box.width, box.height])}})}}));
}};
</script>"""


def chromium(folder, *flags):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    profile = f"--user-data-dir={folder / 'profile'}"
    return subprocess.run(
        [CHROMIUM, *FLAGS, profile, *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_browser_shows_it_without_overflow(pages, width, tmp_path):
    for name in ("trained", "named_like_html"):
        file = tmp_path / "frame.html"
        file.write_text(wrapper(pages[name], width), "utf-8")
        done = chromium(tmp_path, "--dump-dom", file.as_uri())
        assert "CONSOLE" not in done.stderr
        (text,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout)
        found = json.loads(html.unescape(text))
        assert found["width"] == width
        assert found["scroll"] == width
        assert found["wide"] == []
        assert found["small"] == 0
        assert len(found["figures"]) >= 6
        for w, h in found["figures"]:
            assert min(w, 420) >= 0.85 * min(width, 420)
            assert 100 < h < 1200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_draws_it(pages, scheme, tmp_path):
    """A screenshot has text, figures and the ground of its scheme."""
    file, shot = tmp_path / "report.html", tmp_path / "shot.png"
    file.write_text(pages["trained"], "utf-8")
    wanted = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    chromium(
        tmp_path, wanted, "--window-size=1280,3200", f"--screenshot={shot}", file.as_uri()
    )
    pixels = torch.as_tensor(mpl.image.imread(shot)[:, :, :3])  # [height, width, 3]
    assert pixels.shape[:2] == (3200, 1280)
    ground = pixels[2, 2]
    assert (float(ground.mean()) > 0.5) == (scheme == "light")
    drawn = (pixels - ground).abs().amax(-1) > 0.1
    assert 0.01 < float(drawn.double().mean()) < 0.5
    rows = drawn.double().mean(1)
    blank = (rows == 0).double()
    longest = max(map(len, "".join(str(int(b)) for b in blank.tolist()).split("0")))
    assert longest < 900  # what is below the end of the page
    colourful = (pixels.amax(-1) - pixels.amin(-1)) > 0.3
    assert float(colourful.double().mean()) > 1e-3  # curves, bars
