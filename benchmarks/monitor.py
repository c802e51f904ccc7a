"""CurvatureMonitor: the overhead that an outside clock sees, against the cap.

python benchmarks/monitor.py             prints the table; takes some minutes
python benchmarks/monitor.py --write     writes results/monitor.* as well
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from writing import machine, write

import curvop

CAPS = (0.05, 0.1, 0.2)
MEASUREMENTS, SECONDS = 8, 120.0  # of each training: what comes first ends it
Row = dict[str, Any]


def perceptron() -> nn.Module:
    """64-128-128-10."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def convolutional() -> nn.Module:
    """Three convolutions with batch norm, and dropout, on 8 x 8 pixels."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10)]
    return nn.Sequential(*layers, *head)


# network, training batch, number of images that the curvature is that of
CASES = {
    "perceptron, 512 images": (perceptron, 128, 512),
    "convolutional, 128 images": (convolutional, 64, 128),
}


def load_data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.from_numpy(digits.data / 16.0).float(), torch.from_numpy(digits.target)


def train(case: str, cap: float) -> Row:
    """Train for a while with stochastic gradients, and look at the clock from outside."""
    make, batch, num_images = CASES[case]
    X, y = load_data()
    torch.manual_seed(0)
    model, loss_func = make(), nn.CrossEntropyLoss()
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.02, momentum=0.9)
    data = list(zip(X[:num_images].split(256), y[:num_images].split(256), strict=True))
    monitor = curvop.CurvatureMonitor(
        model, loss_func, params, data, optimizer=optimizer, max_overhead=cap
    )
    begin, inside, steps, highest = time.perf_counter(), 0.0, 0, 0.0
    while len(monitor.history) <= MEASUREMENTS and time.perf_counter() - begin < SECONDS:
        for i in torch.randperm(len(y)).split(batch):
            optimizer.zero_grad()
            loss_func(model(X[i]), y[i]).backward()
            optimizer.step()
            before = time.perf_counter()
            record = monitor.step()
            after = time.perf_counter()
            inside += after - before
            steps += 1
            if record is not None:
                highest = max(highest, inside / (after - begin - inside))
    total = time.perf_counter() - begin
    later = monitor.history[1:]
    row = {
        "case": case,
        "cap": cap,
        "overhead": inside / (total - inside),
        "highest": highest,
        "told": monitor.overhead,
        "measurements": len(later),
        "steps": steps,
        "gradient_step_seconds": (total - inside) / steps,
        "measurement_seconds": sum(r.seconds for r in later) / max(len(later), 1),
        "products": sum(r.num_matvecs for r in later) / max(len(later), 1),
        "first_products": monitor.history[0].num_matvecs,
        "setup_seconds": monitor.setup_seconds,
        "load": os.getloadavg()[0],  # of the machine, in the last minute
        "converged": sum(r.status == "converged" for r in later),
    }
    print(row, flush=True)
    return row


def table(record: Row) -> str:
    """The results as Markdown."""
    lines = [
        "# Training monitor\n",
        "Digits, stochastic gradients with momentum, one thread, until there are "
        f"{MEASUREMENTS} measurements, {SECONDS:g} s at most. Overhead is the time in "
        "`CurvatureMonitor.step`, by a clock outside of it, over the time of all else in "
        "the loop: at the end, and the highest after any measurement. A measurement is "
        "the largest eigenvalue to a residual of 1e-3, the trace by 8 probes, and the "
        "gradient, on the images that are named. Set-up, before training, holds the "
        "determinism check, the first measurement, which starts from a random vector, and "
        "one more that tells what the next costs. Load is the number of processes that "
        "wanted a core in the last minute: beyond the number of cores, "
        f"{record['machine']['cores']}, times are longer and vary.\n",
        "| network, data | cap | overhead | highest | measurements | converged | "
        "products | of the first | measurement | training step | set-up | "
        "load |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        lines.append(
            f"| {r['case']} | {r['cap']:.0%} | {r['overhead']:.1%} | {r['highest']:.1%} | "
            f"{r['measurements']} | {r['converged']} | {r['products']:.0f} | "
            f"{r['first_products']} | {r['measurement_seconds']:.2f} s | "
            f"{1e3 * r['gradient_step_seconds']:.1f} ms | {r['setup_seconds']:.1f} s | "
            f"{r['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write results/monitor.*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train("perceptron, 512 images", 1.0)  # warm: imports count for nobody
    record = {
        "machine": machine(),
        "rows": [train(case, cap) for case in CASES for cap in CAPS],
    }
    print(table(record))
    if args.write:
        write("monitor", record, table(record))


if __name__ == "__main__":
    main()
