"""What ``curvop report`` is pointed at: a function that builds your model and data.

Copy it, put your own model in, and run

    curvop report report_target.py:build

where curvop is installed with its ``report`` and ``examples`` extras. The page is
``curvop-report/report.html``. Run as a program, it makes the report itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import curvop

OUT = Path(__file__).parent / "output" / "report"


def build() -> tuple[nn.Module, nn.Module, Iterable[torch.Tensor], DataLoader[Any], Any]:
    """A small network trained on handwritten digits.

    Returns:
        model: Your own, loaded from its checkpoint rather than trained here. In eval mode:
            dropout would be another matrix at each product, and batch norm would depend
            on how the data is cut.
        loss: Of the training, with all its options.
        params: Those that the matrix is over; others are constants.
        data: Pairs ``(X, y)``, passed over once per product. A few thousand data are often
            enough. A loader that shuffles is fine, one that augments is not.
        optimizer: If you like, with the state of the training: for the sharpness that it
            sees.
    """
    torch.manual_seed(0)
    digits = load_digits()
    X = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    data = TensorDataset(X, torch.tensor(digits.target))

    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 10))
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(10):
        for inputs, targets in DataLoader(data, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()

    model.eval()
    return model, loss, model.parameters(), DataLoader(data, batch_size=512), optimizer


def main() -> None:
    """The same as the command, from Python."""
    model, loss, params, data, optimizer = build()
    made = curvop.report(
        model, loss, params, data, out=OUT, optimizer=optimizer, k=8, budget="40s"
    )
    values = made.record["sections"]["top"]["values"]
    print("largest eigenvalues", ", ".join(f"{value:.4f}" for value in values))
    print(f"{made.status}: {made.html}")


if __name__ == "__main__":
    main()
