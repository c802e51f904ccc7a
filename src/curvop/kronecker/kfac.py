"""KFAC: what is summed over the data for the parameters of a layer, and its block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, final

import torch
from torch import Size, Tensor

from curvop.kronecker.blocks import Block, KroneckerBlock, Members
from curvop.kronecker.gram import PatchGram, add_gram, mirror, repeats
from curvop.kronecker.layer_sums import LayerSums
from curvop.layers import Call, Convolution, Embedding, MatrixCall, Norm

# Scales and shifts with more features get the diagonal of their block.
SMALL = 4096


def _sums(sizes: dict[str, Sequence[int]], like: Tensor) -> dict[str, Tensor]:
    return {name: like.new_zeros(size) for name, size in sizes.items()}


@final
class MatrixSums(LayerSums[MatrixCall]):
    r"""Kronecker factors of a linear layer or convolution.

    expand: ``A = Σ z zᵀ / M`` over the ``M`` positions of all data and calls, and
    ``B = Σ g gᵀ / Z``. reduce: the same with the mean of ``z`` and the sum of ``g`` over
    the positions of a datum, and ``M = N``.

    Args:
        weight: Position of the weight, if it is one of the parameters.
        bias: Position of the bias.
        call: The first call.
        num_outputs: Entries of the bias, where it is apart.
        reduce: Whether positions are reduced.
        joint: Whether the bias is a column of the weight.
        forward_only: Whether ``B`` is the identity.
        like: A tensor of the dtype and device to sum in.
    """

    def __init__(
        self,
        weight: int | None,
        bias: int | None,
        call: MatrixCall,
        *,
        num_outputs: int,
        reduce: bool,
        joint: bool,
        forward_only: bool,
        like: Tensor,
    ):
        self._weight, self._bias = weight, bias
        self._shape, self._groups, self._transposed = (
            call.weight_shape,
            call.groups,
            call.transposed,
        )
        self._forward_only, self._reduce = forward_only, reduce
        self._joint = joint and weight is not None and bias is not None
        d = call.input_size
        self._num_outputs = num_outputs // self._groups  # of a group
        if weight is not None:
            self._num_outputs = self._shape.numel() // (self._groups * d)
        self._num_inputs = 0 if weight is None else d + self._joint
        self.tensors = _sums({"count": ()}, like)
        self._patches: PatchGram | None = None
        self._pending: Tensor | None = None

    def _sum(self, name: str, n: int) -> Tensor:
        """Made when the first terms arrive: gradients do when activations have gone."""
        if name not in self.tensors:
            G = self._groups
            self.tensors[name] = self.tensors["count"].new_zeros(G, n, n)
        return self.tensors[name]

    def _B(self) -> Tensor:
        return self._sum("B", self._num_outputs)

    def _A(self) -> Tensor:
        return self._sum("A", self._num_inputs)

    def complete(self) -> None:
        """Where nothing has arrived, the sum is zero."""
        self._B()
        A = self._A()
        if self._patches is not None:
            d = self._num_inputs - self._joint
            A[:, :d, :d] += self._patches.unfolded()
            self._patches = None

    def receive(self, call: MatrixCall, g: Tensor, N: int) -> None:
        """``Σ g gᵀ``."""
        at = call.gradients_of_bias if self._weight is None else call.output_gradients
        g = at(g[None], N)[0]  # [G, N, T, m]
        if not self._reduce:
            add_gram(self._B(), g.permute(0, 3, 1, 2).flatten(2))
            return
        total = g.sum(2)
        self._pending = total if self._pending is None else self._pending + total

    def end_column(self) -> None:
        """The outer product of what was reduced."""
        if self._pending is not None:
            add_gram(self._B(), self._pending.mT)
            self._pending = None

    def start(self, calls: Sequence[MatrixCall], N: int) -> None:
        """``Σ z zᵀ``."""
        if self._weight is None:
            return
        for call in calls:
            call.check_version()
        if self._reduce:
            T = sum(call.num_positions(N) for call in calls)
            first, *others = (call.input_sums(N).mT for call in calls)
            self._add_inputs(sum(others, first) / T)
            return
        for call in calls:
            if isinstance(call, Convolution) and repeats(call, N):
                self._add_patches(call, N)
                continue
            for _, z in call.input_chunks(N):
                self._add_inputs(z.permute(0, 3, 1, 2).flatten(2))

    def _add_patches(self, call: Convolution, N: int) -> None:
        if self._patches is None:
            self._patches = PatchGram(call, like=self.tensors["count"])
        self._patches.add(call, N)
        positions = N * call.num_positions(N)
        if self._joint:
            total = call.input_sums(N).sum(1)
            A = self._A()
            A[:, :-1, -1] += total
            A[:, -1, :-1] += total
            A[:, -1, -1] += positions
        self.tensors["count"] += positions

    def _add_inputs(self, z: Tensor) -> None:
        """``z``, ``[G, d, m]``, with a one below where the bias belongs to the weight."""
        if self._joint:
            z = torch.cat([z, z.new_ones(len(z), 1, z.shape[-1])], 1)
        add_gram(self._A(), z)
        self.tensors["count"] += z.shape[-1]

    def blocks(self, Z: Tensor) -> list[Block]:
        """One for weight and bias, or one for each."""
        weight, bias = self._weight, self._bias
        G, m = self._groups, self._num_outputs
        B = mirror(self._B()).div_(Z)
        if self._forward_only:
            B = B.new_ones(G, m)
        A = mirror(self._A()).div_(self.tensors["count"].clamp_min(1))
        o = Size((G * m,))
        if self._joint:
            both = Members((cast(int, weight), cast(int, bias)), (self._shape, o), G, m)
            return [KroneckerBlock(both, B, A)]
        found: list[Block] = []
        if weight is not None:
            left, right = (A, B) if self._transposed else (B, A)
            members = Members((weight,), (self._shape,), G, left.shape[1])
            found.append(KroneckerBlock(members, left, right))
        if bias is not None:
            found.append(KroneckerBlock(Members((bias,), (o,), G, m), B, None))
        return found


@final
class TableSums(LayerSums[Embedding]):
    """Kronecker factors of an embedding, whose inputs are unit vectors.

    ``A`` is diagonal: the share of each token among the positions of all data. Positions
    of the padding token do not count.
    """

    def __init__(self, call: Embedding, *, forward_only: bool, like: Tensor):
        self._forward_only = forward_only
        V, D = call.weight_shape
        self._member = Members((cast(int, call.weight),), (call.weight_shape,), 1, V)
        self.tensors = _sums({"counts": (V,), "right": (1, D, D)}, like)

    def receive(self, call: Embedding, g: Tensor, N: int) -> None:
        """``Σ g gᵀ``."""
        rows = call.output_gradients(g[None], N)[0].flatten(1, 2)  # [1, N·T, D]
        add_gram(self.tensors["right"], rows.mT)

    def start(self, calls: Sequence[Embedding], N: int) -> None:
        """How often each token comes."""
        counts = self.tensors["counts"]
        for call in calls:
            n = torch.bincount(call.z.flatten(), minlength=len(counts))
            if call.padding is not None:
                n[call.padding] = 0
            counts += n

    def blocks(self, Z: Tensor) -> list[Block]:
        """One."""
        counts = self.tensors["counts"]
        left = (counts / counts.sum().clamp_min(1))[None]
        right = mirror(self.tensors["right"]).div_(Z)
        if self._forward_only:
            right = right.new_ones(right.shape[:2])
        return [KroneckerBlock(self._member, left, right)]


@final
class ScaleSums(LayerSums[Norm]):
    """The exact blocks of scale and shift of a normalisation.

    ``Σ_n j_n j_nᵀ / Z`` with ``j = Σ_t g ∘ x̂`` for the scale and ``Σ_t g`` for the shift;
    of many features the diagonal.
    """

    def __init__(
        self,
        weight: int | None,
        bias: int | None,
        shape: Size,
        *,
        forward_only: bool,
        like: Tensor,
    ):
        self._has = (weight is not None, bias is not None)
        self._of = [i for i in (weight, bias) if i is not None]
        self._shape, self._forward_only = shape, forward_only
        n = shape.numel()
        self._full = n <= SMALL and not forward_only
        size = (1, n, n) if self._full else (1, n)
        self.tensors = _sums(dict.fromkeys(map(str, self._of), size), like)
        self._pending: list[Tensor] = []

    def receive(self, call: Norm, g: Tensor, N: int) -> None:
        """``Σ_t g ∘ x̂`` and ``Σ_t g``, for each datum."""
        U, parts = g[None], []
        if self._has[0]:
            parts.append(call.weight_gradients(U, N).view(N, -1))
        if self._has[1]:
            parts.append(call.bias_gradients(U, N).view(N, -1))
        if self._pending:
            parts = [p + q for p, q in zip(self._pending, parts, strict=True)]
        self._pending = parts

    def end_column(self) -> None:
        """Their outer products."""
        for total, j in zip(self.tensors.values(), self._pending, strict=False):
            if self._full:
                add_gram(total, j.T[None])
            else:
                total += j.square().sum(0)
        self._pending = []

    def blocks(self, Z: Tensor) -> list[Block]:
        """One for each."""
        out: list[Block] = []
        for i, total in zip(self._of, self.tensors.values(), strict=True):
            members = Members((i,), (self._shape,), 1, total.shape[1])
            left = (mirror(total) if self._full else total).div_(Z)
            if self._forward_only:
                left = torch.ones_like(total)
            out.append(KroneckerBlock(members, left, None))
        return out


@final
class TiedSums(LayerSums[Call]):
    """A weight that is both an embedding and a linear layer, such as a tied head.

    The Kronecker product that is nearest to the sum of the two.

    Args:
        matrix: Sums for the linear layer.
        table: Sums for the embedding.
    """

    def __init__(self, matrix: MatrixSums, table: TableSums):
        self._matrix, self._table = matrix, table
        matrix.complete()
        self.tensors = {
            f"{kind}.{name}": t
            for kind, sums in (("matrix", matrix.tensors), ("table", table.tensors))
            for name, t in sums.items()
        }

    def receive(self, call: Call, g: Tensor, N: int) -> None:
        """To the layer that was called."""
        if isinstance(call, MatrixCall):
            self._matrix.receive(call, g, N)
        elif isinstance(call, Embedding):
            self._table.receive(call, g, N)

    def end_column(self) -> None:
        """Of both."""
        self._matrix.end_column()
        self._table.end_column()

    def start(self, calls: Sequence[Call], N: int) -> None:
        """Of both."""
        self._matrix.start([call for call in calls if isinstance(call, MatrixCall)], N)
        self._table.start([call for call in calls if isinstance(call, Embedding)], N)

    def blocks(self, Z: Tensor) -> list[Block]:
        """One."""
        both = [*self._matrix.blocks(Z), *self._table.blocks(Z)]
        return [nearest([b for b in both if isinstance(b, KroneckerBlock)])]


def nearest(terms: Sequence[KroneckerBlock]) -> KroneckerBlock:
    """The ``L ⊗ R`` that is nearest to ``Σ Lᵢ ⊗ Rᵢ`` in the Frobenius norm.

    ``L = Σ αᵢ Lᵢ`` and ``R = Σ βᵢ Rᵢ`` from the leading singular vectors of
    ``Σ vec(Lᵢ) vec(Rᵢ)ᵀ`` (Van Loan, Pitsianis, "Approximation with Kronecker products",
    1993). Of positive semi-definite terms it is positive semi-definite.
    """
    L = torch.stack([_dense(term.left) for term in terms])
    R = torch.stack([_dense(term.right) for term in terms])
    inner_L, inner_R = (F.flatten(1).double() @ F.flatten(1).double().T for F in (L, R))
    # (Σ vec(Lᵢ) vec(Rᵢ)ᵀ) (…)ᵀ vec(L) = σ² vec(L)
    values, vectors = torch.linalg.eig(inner_R @ inner_L)
    alpha = vectors[:, values.real.argmax()].real.abs()
    beta = inner_L @ alpha
    norm = (alpha @ beta).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    left, right = (
        torch.einsum("i,igab->gab", (c / norm).to(F), F) for c, F in ((alpha, L), (beta, R))
    )
    return KroneckerBlock(terms[0].members, left, right)


def _dense(factor: Tensor | None) -> Tensor:
    assert factor is not None
    return torch.diag_embed(factor) if factor.ndim == 2 else factor
