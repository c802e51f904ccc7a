"""One call ``a = W z + b`` of a layer: what goes in, and where the gradient arrives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Size, Tensor
from torch.autograd.graph import GradientEdge

# Numbers that the inputs by position may take at once.
NUMBERS = 2**22


@dataclass(frozen=True)
class Call(ABC):
    """One call ``a = W z + b`` of a layer that is linear in its parameters.

    Of ``N`` data each has ``T`` positions at which the weight is applied; ``G`` groups are
    layers side by side. ``N`` divides the leading axis, see :attr:`leading`: other axes,
    and frames on the leading one, are positions.

    Attributes:
        functions: The functions that call such a layer, with the names of their arguments.
        form: Of the weight: ``"matrix"``, ``"table"`` or ``"scale"``.
        bias_apart: Whether the bias has positions of its own, other than the weight's.
        function: The function that was called.
        weight: Position of ``W`` among the parameters, or ``None``.
        bias: Position of ``b``, or ``None`` where it is missing or a constant.
        weight_shape: Shape of ``W``; empty without one.
        z: What goes in.
        version: That of ``z`` when the layer was called.
        shape: The shape of ``a``.
        options: Further arguments of the function.
        edge: Where the gradient with respect to ``a`` arrives. A tensor would not do: the
            next layer may write to it in place. ``None`` without a graph.
    """

    functions: ClassVar[dict[Any, str]] = {}
    form: ClassVar[str]
    bias_apart: ClassVar[bool] = False

    function: Any
    weight: int | None
    bias: int | None
    weight_shape: Size
    z: Tensor
    version: int
    shape: Size
    options: dict[str, Any]
    edge: GradientEdge | None = None

    # ------------------------------------------------------- what kinds of layers say

    @classmethod
    def input_of(cls, function: Any, named: dict[str, Any]) -> Tensor | None:
        """``z`` of a call with these arguments; ``None`` if ``a`` is not ``W z + b``."""
        z: Tensor = named["input"]
        return z

    @property
    @abstractmethod
    def is_batched(self) -> bool:
        """Whether there is an axis for data."""

    @property
    @abstractmethod
    def multiplications(self) -> int:
        """Multiplications for one datum."""

    @abstractmethod
    def jvp(self, V: Tensor | None, c: Tensor | None) -> Tensor:
        """``V z + c``: how ``a`` moves with the parameters, in the graph of ``z``."""

    @abstractmethod
    def output_gradients(self, U: Tensor, N: int) -> Tensor:
        """Gradients ``[K, *a]`` at the positions of ``z``, ``[K, G, N, T, m]``."""

    @abstractmethod
    def weight_gradients(self, U: Tensor, N: int) -> Tensor:
        """``Σ_t u ⊗ z`` of each datum for gradients ``[K, *a]``: ``[K, N, *W]``."""

    def bias_gradients(self, U: Tensor, N: int) -> Tensor:
        """The gradient of the bias for each datum, ``[K, N, *b]``."""
        return self.gradients_of_bias(U, N).sum(3).movedim(1, 2).flatten(2)

    def gradients_of_bias(self, U: Tensor, N: int) -> Tensor:
        """Gradients ``[K, *a]`` at the positions of the output, ``[K, G, N, T, m]``."""
        return self.output_gradients(U, N)

    def weight_gradient(self, u: Tensor) -> Tensor:
        """``Σ u ⊗ z`` over all data, for one gradient ``[*a]``."""
        return self.weight_gradients(u[None], 1)[0, 0]

    def map_inputs(self, fn: Callable[[Tensor], Tensor]) -> Call:
        """With ``fn`` of what goes in."""
        return replace(self, z=fn(self.z))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What goes in."""
        return (self.z,)

    @property
    def mixes_data(self) -> bool:
        """Whether the layer makes the outputs of a datum depend on other data."""
        return False

    # -------------------------------------------------------------- what follows

    @property
    def positions(self) -> tuple[int, ...]:
        """Those of its parameters."""
        return tuple(i for i in (self.weight, self.bias) if i is not None)

    @property
    def leading(self) -> int | None:
        """Length of the axis of the data; ``None`` without one."""
        return self.shape[0] if self.is_batched else None

    @property
    def size(self) -> int:
        """Numbers that come out for one datum."""
        return self.shape[1:].numel()

    @property
    def depends(self) -> bool:
        """Whether what goes in is in the graph, rather than data."""
        return any(t.requires_grad for t in self.tensors)

    def without_graph(self) -> Call:
        """Inputs as constants, and no edge."""
        return replace(self.map_inputs(Tensor.detach), edge=None)

    def without_inputs(self) -> Call:
        """What gradients of the outputs need, without the memory of what does not."""
        return self

    def check_version(self) -> None:
        """Refuse an input that is no longer what it was.

        Raises:
            ValueError: If it has been written to.
        """
        if self.z._version != self.version:
            raise ValueError(
                "The model writes in place to the input of a layer after the call, which "
                "autograd does not support either. Write out of place there."
            )


class MatrixCall(Call):
    """The weight is a matrix that is multiplied onto ``z`` at each position.

    Attributes:
        transposed: Whether the weight is stored as ``[G, d, m]`` rather than
            ``[G, m, d]``.
    """

    form = "matrix"
    transposed: ClassVar[bool] = False

    def without_inputs(self) -> Call:
        """Without ``z``."""
        return self.map_inputs(lambda z: z.new_empty(0))

    @abstractmethod
    def inputs(self, N: int, data: slice = slice(None)) -> Tensor:
        """``z`` of some of ``N`` data by position, ``[G, n, T, d]``."""

    @property
    def groups(self) -> int:
        """``G``."""
        return 1

    @property
    def input_size(self) -> int:
        """``d``."""
        return self.weight_shape[1:].numel()

    def num_positions(self, N: int) -> int:
        """``T``."""
        return self.size * (self.shape[0] // max(N, 1)) // max(self.weight_shape[0], 1)

    def input_chunks(self, N: int) -> Iterator[tuple[slice, Tensor]]:
        """Some data, and their ``z`` by position, ``[G, n, T, d]``."""
        numbers = self.groups * self.num_positions(N) * self.input_size
        step = max(1, NUMBERS // max(numbers, 1))
        for n in range(0, N, step):
            some = slice(n, min(n + step, N))
            yield some, self.inputs(N, some)

    def input_sums(self, N: int) -> Tensor:
        """``Σ_t z`` of each datum, ``[G, N, d]``."""
        return self.inputs(N).sum(2)

    def jvp(self, V: Tensor | None, c: Tensor | None) -> Tensor:
        """``V z + c``."""
        out: Tensor
        if V is not None:
            out = self.function(self.z, V, c, **self.options)
            return out
        assert c is not None
        axes = (1,) * (len(self.weight_shape) - 2)
        return c.view(-1, *axes).expand(self.shape)

    def weight_gradients(self, U: Tensor, N: int) -> Tensor:
        """``Σ_t u ⊗ z`` of each datum."""
        D, z = self.output_gradients(U, N), self.inputs(N)
        rows = "kngdm" if self.transposed else "kngmd"
        return torch.einsum(f"kgntm,gntd->{rows}", D, z).reshape(
            len(U), N, *self.weight_shape
        )
