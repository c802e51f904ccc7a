"""Run every example and put its figure here, small enough to be committed.

``python docs/pictures/refresh.py`` for all, or name some: ``refresh.py quickstart``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"


def main(names: list[str]) -> None:
    """Run the named examples, or all."""
    for name in names or sorted(p.stem for p in EXAMPLES.glob("*.py")):
        subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], check=True)
        figure = EXAMPLES / "output" / f"{name}.png"
        if not figure.exists():
            continue  # it ends in a table
        picture = Image.open(figure).convert("RGB")
        picture.thumbnail((1400, 1600))
        picture.quantize(64).save(HERE / figure.name, optimize=True)
        print(f"{HERE / figure.name}: {(HERE / figure.name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
