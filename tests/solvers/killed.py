"""Kill a solver again and again, with SIGKILL, until it has come to its end.

A program of its own: it forks, which a process with threads should not.

python -m tests.solvers.killed FOLDER NUM_KILLS SEED
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from curvop import LinearOperator, Solution, cg, jacobi_preconditioner
from curvop.operators import Blocks, Space
from tests.comparing import random as normal
from tests.solvers.matrices import positive

N, K = 120, 2


class Slow(LinearOperator):
    """A dense matrix whose products take time and leave a mark in a file."""

    def __init__(self, marks: Path | None) -> None:
        space = Space((torch.Size((N,)),))
        cpu = torch.device("cpu")
        super().__init__(space, space, dtype=torch.float64, device=cpu, psd=True)
        self.matrix = positive(N, 1e4)
        self.marks = marks

    def _matmat(self, M: Blocks) -> Blocks:
        if self.marks is not None:
            with open(self.marks, "ab", buffering=0) as file:
                file.write(b".")
            time.sleep(0.002)
        return [self.matrix @ M[0]]

    def _transpose(self) -> LinearOperator:
        return self


def solve(folder: Path | None = None) -> Solution:
    """The run; with a folder slowly and with a checkpoint."""
    A = Slow(None if folder is None else folder / "products")
    M = jacobi_preconditioner(A.matrix, A.matrix.diagonal())
    checkpoint = None if folder is None else folder / "cg.pt"
    return cg(A, normal(N, K), rtol=1e-10, M=M, checkpoint=checkpoint)


def main(folder: Path, num_kills: int, seed: int) -> None:
    """Run, kill, run on; the last run is left to end. Prints the number of kills."""
    torch.set_num_threads(1)
    draw, kills = random.Random(seed), 0
    while True:
        child = os.fork()
        if not child:
            try:
                torch.save(vars(solve(folder)), folder / "solution.pt")
            finally:
                os._exit(0)
        if kills < num_kills:
            time.sleep(draw.uniform(0.0, 0.05))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
