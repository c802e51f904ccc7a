"""One network on one device in one precision, and one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import networks
import torch
from networks import Workload
from peers import BASELINE
from timing import CPU, GPU, WALL, Clock, Effort, Failure, Sample
from torch import Tensor

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is measured, and how."""

    network: str
    matrix: str
    device: str
    dtype: str
    workload: Workload
    effort: Effort
    widths: Sequence[int]  # numbers of columns
    threads: Sequence[int]  # of the products; all else runs with one

    @property
    def clock(self) -> Clock:
        """Of whatever is measured once."""
        return GPU if self.device == "cuda" else CPU

    @property
    def clocks(self) -> list[Clock]:
        """Of products; the second is for those that the targets are about."""
        clocks = [self.clock] if self.device == "cuda" else [CPU, WALL]
        return [clock for clock in clocks if clock.threads in self.threads]

    @property
    def tolerance(self) -> float:
        """Relative error beyond which a product is called wrong."""
        if self.dtype == "bfloat16":
            return 5e-2
        return 1e-2 if self.device == "cuda" else 1e-4  # TF32 has ten bits

    def columns(self, k: int) -> Tensor:
        """``[P, k]``; those of a smaller ``k`` come first."""
        generator = torch.Generator().manual_seed(1)
        P, p = self.workload.num_params, self.workload.params[0]
        V = [torch.randn(P, generator=generator) for _ in range(k)]
        return torch.stack(V, dim=1).to(p.device, p.dtype)

    def row(
        self,
        what: str,
        columns: int,
        clock: str,
        unit: Sample,
        results: Mapping[str, Sample | Failure],
        **details: Mapping[str, Any],
    ) -> Row:
        """One row: each contender per column in gradients, and against the baseline."""
        row = {
            "network": self.network,
            "title": self.workload.name,
            "parameters": self.workload.num_params,
            "data": self.workload.num_data,
            "device": self.device,
            "dtype": self.dtype,
            "matrix": self.matrix,
            "what": what,
            "columns": columns,
            "clock": clock,
            "gradient": asdict(unit),
            "tolerance": self.tolerance,
            "contenders": {},
        }
        baseline = results.get(BASELINE)
        for name, result in results.items():
            if isinstance(result, Failure):
                row["contenders"][name] = {"failure": result.message}
                continue
            figures = asdict(result)
            if unit.median > 0:
                figures["gradients"] = result.median / unit.median / columns
            if isinstance(baseline, Sample) and name != BASELINE:
                figures["ratio"] = result.median / baseline.median
            figures |= {key: of[name] for key, of in details.items() if name in of}
            row["contenders"][name] = figures
        return row


def make(network: str, device: str, dtype: str) -> Workload:
    """The network with its data, the same in each run."""
    torch.manual_seed(0)
    w = networks.on(device)[network]()
    return w.to(torch.device(device), getattr(torch, dtype))
