"""Orthonormal vectors, stored as rows and worked on in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvop.spectra.inner_products import inner_products, norm

PANEL = 32  # rows that are allocated at once
CHUNK = 2**18  # entries of the basis that are rotated at once: fits a cache


class Basis:
    """Rows ``V [capacity, N]``, orthonormal as far as they are in use.

    They are stored in panels, which are allocated when needed. The first panel has as many
    rows as there will be results, so that these need no copy.

    Args:
        N: Length of a vector.
        first: Rows of the first panel.
        capacity: Rows at most.
        dtype: Type of the matrix; for half precision, vectors are in single precision.
        device: Device of the matrix.
        basis_dtype: Type in which rows are stored.
        basis_device: Where rows are stored.
    """

    def __init__(
        self,
        N: int,
        first: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        basis_dtype: torch.dtype | None = None,
        basis_device: torch.device | str | None = None,
    ) -> None:
        self.N = N
        self.capacity = capacity
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.device = device
        self.basis_dtype = basis_dtype or self.dtype
        self.basis_device = torch.device(basis_device or device)
        # rounding of what is stored or multiplied, whichever is larger
        self.eps: float = max(torch.finfo(t).eps for t in (dtype, self.basis_dtype))
        # norm of a product, relative to ‖A‖, below which it is a rounding error
        self.noise = min(100 * self.eps, self.eps**0.75)
        self._first = first
        self.panels: list[Tensor] = []

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows for use outside the basis: a view where possible."""
        views = list(self._views(start, stop))
        if not views:
            return torch.empty(0, self.N, dtype=self.dtype, device=self.device)
        V = views[0] if len(views) == 1 else torch.cat(views)
        return V.to(self.device, self.dtype)

    def put(self, i: int, v: Tensor) -> None:
        """Store a vector as row ``i``."""
        while sum(map(len, self.panels)) <= i:
            size = PANEL if self.panels else self._first
            self.panels.append(
                torch.zeros(
                    min(size, self.capacity - sum(map(len, self.panels))),
                    self.N,
                    dtype=self.basis_dtype,
                    device=self.basis_device,
                )
            )
        next(self._views(i, i + 1))[0].copy_(v)

    def orthogonalise(self, w: Tensor, m: int) -> tuple[Tensor, float]:
        """Subtract from ``w``, in place, its part in the first ``m`` rows.

        Classical Gram-Schmidt, twice, and again while the norm drops, since ``w`` then was
        mostly a rounding error (Giraud and others, "The loss of orthogonality in
        the Gram-Schmidt orthogonalization process", 2005).

        Returns:
            The coefficients ``[m]`` in double precision on the CPU, and the remaining norm.
        """
        h = torch.zeros(m, dtype=torch.float64)
        left = norm(w)
        for sweep in range(5):
            h += self._subtract(w, m)
            before, left = left, norm(w)
            if sweep >= 1 and left > 0.5 * before:
                break
        return h, left

    def rotate(self, start: int, stop: int, S: Tensor) -> None:
        """Replace rows ``start, …, stop - 1`` by their combinations ``Sᵀ V``, in place."""
        m, p = S.shape
        if m == 0:
            return
        S = S.to(self.basis_device, self.basis_dtype)
        step = max(1, CHUNK // m)
        for i in range(0, self.N, step):
            old = [view[:, i : i + step] for view in self._views(start, stop)]
            new = S.T @ torch.cat(old)
            at = 0
            for view in self._views(start, start + p):
                view[:, i : i + step] = new[at : at + len(view)]
                at += len(view)

    def move(self, start: int, stop: int, to: int) -> None:
        """Copy rows to a place before them."""
        for i in range(start, stop):
            self.put(to + i - start, next(self._views(i, i + 1))[0])

    def leave(self, k: int) -> Tensor:
        """The first ``k`` rows; the basis cannot be used afterwards."""
        if self.panels and len(self.panels[0]) == k:
            del self.panels[1:]
        V = self.rows(0, k)
        self.panels.clear()
        return V

    def _subtract(self, w: Tensor, m: int) -> Tensor:
        parts = []
        for view in self._views(0, m):
            exact = inner_products(view, w.to(view.device, view.dtype))
            c = exact.to(view.dtype)
            if view.dtype == w.dtype and view.device == w.device:
                w.addmv_(view.T, c, alpha=-1)
            else:
                w -= (view.T @ c).to(w.device, w.dtype)
            parts.append(exact.cpu())
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def _views(self, start: int, stop: int) -> Iterator[Tensor]:
        """The stored rows ``start, …, stop - 1``, panel by panel."""
        at = 0
        for panel in self.panels:
            low, high = max(start - at, 0), min(stop - at, len(panel))
            if low < high:
                yield panel[low:high]
            at += len(panel)
