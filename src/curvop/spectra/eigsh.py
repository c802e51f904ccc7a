"""Eigenpairs of a symmetric operator."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from curvop.arguments import integer, tolerance
from curvop.checkpoint import Checkpoint
from curvop.eigenpairs import Eigenpairs
from curvop.generators import source
from curvop.operators import BlockDiagonalLinearOperator
from curvop.spectra import eigenproblem
from curvop.spectra.basis import Basis
from curvop.spectra.lanczos import JOINED, Aim, Lanczos
from curvop.spectra.lobpcg import LOBPCG
from curvop.spectra.residuals import ResidualCheck, RitzPairs
from curvop.spectra.resumable import Interrupts, Products, carry_out
from curvop.spectra.spectral_transformation import SpectralTransformation


def eigsh(
    A: Any,
    k: int,
    *,
    which: Literal["LA", "SA", "LM", "SM", "BE"] = "LM",
    tol: float = 0.0,
    v0: Tensor | None = None,
    M: Any = None,
    P: Any = None,
    method: Literal["lanczos", "lobpcg"] = "lanczos",
    ncv: int | None = None,
    maxiter: int = 10_000,
    block_size: int = 1,
    inverse: Any = None,
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    generator: Generator | None = None,
    progressbar: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Eigenpairs:
    r"""Some eigenvalues and eigenvectors of a symmetric matrix, or of a pair of them.

    .. math:: A v_i = λ_i v_i, \qquad \text{or} \qquad A v_i = λ_i P v_i

    Thick-restart Lanczos with full reorthogonalisation (Wu and Simon, "Thick-restart
    Lanczos method for large symmetric eigenvalue problems", 2000). A Krylov space contains
    only one eigenvector of a multiple eigenvalue. Before the run ends, a second Krylov
    space, from a random vector in the complement of the first, is searched for the others;
    one is overlooked with a probability of 1e-3 at most.

    The residuals are those of the Lanczos relation ``A X = X Θ + F C``, if one more
    product, with a random combination of the eigenvectors, agrees with it up to rounding;
    otherwise all eigenvectors are multiplied.

    Args:
        A: A symmetric operator, or anything that :func:`as_operator` accepts.
        k: Number of eigenpairs, ``1 <= k <= N``.
        which: The largest (``"LA"``), the smallest (``"SA"``), the largest in magnitude
            (``"LM"``), half from each end (``"BE"``, one more from the top if ``k`` is
            odd), or those next to zero (``"SM"``: of a psd matrix, or with ``inverse``).
        tol: Largest residual, relative to ``‖A‖``; 0 means rounding. The error of a value
            is at most its residual, and for separated values of the order of its square.
        v0: Start ``[N]``, or ``[N, block_size]``; for LOBPCG ``[N, k]``. By default
            drawn from ``generator``.
        M: Preconditioner for LOBPCG: an operator close to ``A⁻¹`` for ``"SA"``, close to
            ``P⁻¹`` for ``"LA"``, symmetric positive definite.
        P: Positive definite operator of a generalised problem. Lanczos needs a
            :class:`DiagonalLinearOperator` and works with ``P^(-1/2) A P^(-1/2)``;
            LOBPCG takes any, and multiplies with it.
        method: ``"lanczos"``, or ``"lobpcg"`` for one end of the spectrum with a
            preconditioner.
        ncv: Vectors in the Lanczos basis, by default ``max(2k + 1, 20)``. At most
            ``ncv + 10`` vectors are in memory at a time.
        maxiter: Most products, by default 10,000.
        block_size: Columns of each product of Lanczos: a larger block needs more
            products, in fewer passes over the data.
        inverse: An operator of ``A⁻¹``, for ``"SM"``.
        basis_dtype: Type in which the basis is stored, by default that of ``A``. Residuals
            do not get below its rounding.
        basis_device: Where the basis is stored, by default that of ``A``.
        generator: Source of random vectors. By default one with a fixed seed, since the
            result does not depend on them; no global generator is touched.
        progressbar: Whether to show products, converged pairs, and the residual.
        checkpoint: A file from which a run that was interrupted is continued, with the
            same result. It is written every few products.

    Returns:
        The eigenpairs, values ascending. After Ctrl-C those that had converged, with the
        status ``"interrupted"``.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If ``A`` is not tagged as symmetric, or its products show that it is
            not; if a product is not finite; if something else does not fit; or if the
            checkpoint is of another problem.

    >>> A = torch.diag(torch.tensor([3.0, -5.0, 3.0, 1.0]))
    >>> eigsh(A, 3).values.round(decimals=3)
    tensor([-5.,  3.,  3.])
    """
    A = eigenproblem.symmetric(A)
    N = A.shape[0]
    k = integer(k, "k", 1, N)
    tol = tolerance(tol)
    P = eigenproblem.companion(P, "P", A)
    M = eigenproblem.companion(M, "M", A)
    inverse = eigenproblem.companion(inverse, "inverse", A)
    end = eigenproblem.end(which, psd=A.psd, inverse=inverse is not None)
    maxiter = integer(maxiter, "maxiter", 1)
    draw = source(generator, seed=0)
    settings = {
        "algorithm": f"eigsh, {method}",
        "k": k,
        "which": which,
        "tol": tol,
        "maxiter": maxiter,
        "v0": v0,
        "generator": None if generator is None else generator.get_state(),
    }

    run: Lanczos | LOBPCG
    if method == "lanczos":
        if M is not None:
            raise ValueError("M is a preconditioner for method='lobpcg'; Lanczos has none.")
        b = integer(block_size, "block_size", 1, N)
        ncv = eigenproblem.basis_size(ncv, k, b, N)
        transform = SpectralTransformation.of(A, P, inverse)
        V = transform.start(eigenproblem.start(v0, A, b))
        basis = Basis(
            N,
            first=k,
            capacity=ncv + b + JOINED,
            dtype=A.dtype,
            device=A.device,
            basis_dtype=basis_dtype,
            basis_device=basis_device,
        )
        aim = Aim(k, end, tol, ncv, maxiter)
        run = Lanczos(basis, V, b, transform, aim, draw)
        storage = (basis.basis_dtype, basis.basis_device)
        settings |= {"ncv": ncv, "block_size": b, "storage": storage}
        if transform.size != 1:
            settings["the matrix P"] = transform.size
    elif method == "lobpcg":
        run = LOBPCG(
            A,
            eigenproblem.start(v0, A, k),
            k,
            largest=eigenproblem.largest(end, psd=A.psd, inverse=inverse is not None),
            P=P,
            M=M,
            tol=tol,
            maxiter=maxiter,
            generator=draw,
        )
    else:
        raise ValueError(f"Expected method='lanczos' or 'lobpcg', got {method!r}.")

    given = [B for B in (A, P, M, inverse) if B is not None]
    file = Checkpoint(checkpoint, BlockDiagonalLinearOperator(given), settings)
    with Interrupts() as interrupts:
        products = partial(
            Products, interrupts=interrupts, progressbar=progressbar, label="eigsh"
        )
        pairs, count = _search(run, products, file)
        if pairs.done < len(pairs.X):
            multiply = products(A, count)
            # the results of an interrupted search are not the state to continue from
            to = Checkpoint(None) if pairs.status == "interrupted" else file
            status = carry_out(ResidualCheck(pairs, P), multiply, to, "proof")
            count = multiply.count
            if status == "interrupted":
                pairs = pairs.known()
    X, values, residuals = pairs.X, pairs.values, pairs.residuals
    order = values.argsort(stable=True)
    if not torch.equal(order, torch.arange(len(order))):
        X, values, residuals = X[order.to(X.device)], values[order], residuals[order]
    return Eigenpairs(
        values.to(X),
        X.T.to(A.dtype),
        residuals.to(X),
        pairs.status,
        count + file.num_matvecs,
    )


def _search(
    run: Lanczos | LOBPCG, products: Callable[..., Products], file: Checkpoint
) -> tuple[RitzPairs, int]:
    """The pairs, computed or read from a checkpoint, and the number of products so far."""
    stored = file.load(finite=True)
    if stored is not None and stored.pop("stage") == "proof":
        count = stored.pop("count")
        stored["X"] = stored["X"].to(run.matrix.device)
        return RitzPairs(**stored), count
    if stored is not None:
        run.resume(stored)
    multiply = products(run.matrix, 0 if stored is None else stored["count"])
    status = carry_out(run, multiply, file, "search")
    return run.finish(status, multiply), multiply.count
