"""Speed and memory side by side with the peers; results are committed.

make bench                                        everything, about forty minutes
python benchmarks/run.py --only mlp,gpt           two networks; the other rows stay
python benchmarks/run.py --parts eigenvalues      one part
python benchmarks/run.py --quick --output first   a first impression in minutes
"""

from __future__ import annotations

import os

# SciPy's vectors have one thread, as the products do: those that wait would be counted.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import record as records
import tables
import torch
from case import Case, Row, make
from measure import PARTS
from memory import limit_memory
from networks import on
from peers import MATRICES
from timing import Effort

RESULTS = Path(__file__).parent / "results"
QUICK = Effort(repetitions=3, fewest=1, seconds=5)


def main() -> None:
    args = _arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit_memory()
    record = records.load(args.output)
    try:
        if not args.tables:
            _measure(args, record)
    finally:
        tables.write(record, args.output)


def _measure(args: argparse.Namespace, record: records.Record) -> None:
    """All that was asked for; saved after each row."""
    run = records.begin(record)
    dtypes = ("float32", "bfloat16") if args.device == "cuda" else ("float32",)
    for network, dtype in itertools.product(args.only or on(args.device), dtypes):
        w = make(network, args.device, dtype)
        for matrix in args.matrices:
            case = Case(
                network=network,
                matrix=matrix,
                device=args.device,
                dtype=dtype,
                workload=w,
                effort=args.effort,
                widths=args.columns or w.columns,
                threads=args.threads,
            )
            for part in args.parts:
                for row in _until_broken(PARTS[part](case)):
                    print(tables.line(row), flush=True)
                    records.add(record, row | {"run": run})
                    records.save(record, args.output)


def _until_broken(rows: Iterator[Row]) -> Iterator[Row]:
    """One part that breaks must not stop the others; contenders are caught further in."""
    try:
        yield from rows
    except Exception:
        traceback.print_exc()


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",")]

    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--only", type=names, help="networks: " + ", ".join(on("cpu")))
    parser.add_argument("--matrices", type=names, default=MATRICES)
    parser.add_argument("--parts", type=names, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--columns", type=numbers, help="numbers of columns")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" * cuda or "cpu")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="of the products")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument(
        "--seconds", type=float, default=30, help="per row, after which three runs must do"
    )
    parser.add_argument("--quick", action="store_true", help="three repetitions at most")
    parser.add_argument("--tables", action="store_true", help="write them anew, only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a folder")
    args = parser.parse_args()
    for given, known in [
        (args.only or [], on(args.device)),
        (args.matrices, MATRICES),
        (args.parts, PARTS),
    ]:
        if unknown := set(given) - set(known):
            parser.error(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
    full = Effort(args.repetitions, seconds=args.seconds)
    args.effort = QUICK if args.quick else full
    return args


if __name__ == "__main__":
    main()
