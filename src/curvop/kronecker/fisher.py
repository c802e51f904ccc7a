"""One pass over the data: the prediction, the columns of its loss, their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed
from torch import Tensor

from curvop.curvature import OutputFactor, Per, output_factor
from curvop.kronecker.backward import Backward
from curvop.kronecker.layer_sums import Layers
from curvop.kronecker.merging import MergedBatches
from curvop.risk import (
    Data,
    Loss,
    Parameters,
    all_reduce,
    check_dependence,
    failing_together,
    nested,
    preserved,
    read_by,
    refuse,
    total_divisor,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FisherType = Literal["type-2", "mc", "empirical", "forward-only"]

# Numbers that the columns of the loss's factor may take at once.
COLUMNS = 2**20


@dataclass(frozen=True)
class Fisher:
    """A model, a loss and data, and which columns of the loss are pulled back.

    Attributes:
        parameters: The model as a function of them.
        loss: The loss.
        data: The data.
        fisher_type: Which columns: see :class:`KFACLinearOperator`.
        mc_samples: Number of samples.
        seed: Of the samples.
        per: What has a gradient of its own in the empirical Fisher.
        terms_together: Whether the loss terms of a datum share columns.
        process_group: Ranks that share the data.
    """

    parameters: Parameters
    loss: Loss
    data: Data
    fisher_type: FisherType
    mc_samples: int
    seed: int
    per: Per
    terms_together: bool
    process_group: ProcessGroup | None

    def sum_over_data(
        self, layers: Layers, what: str, *, check: bool
    ) -> tuple[Tensor, dict[int, str]]:
        """Sum up over all batches and ranks, in the sums of the layers.

        Args:
            layers: Where to.
            what: Label of the progress bar.
            check: Whether to look in the first batch if the data is independent, and in
                each whether the loss is what was assumed.

        Returns:
            The divisor ``Z``, and parameters without Kronecker factors, with the reason.

        Raises:
            ValueError: If the loss is not finite, averages over nothing, depends on
                parameters by itself, or has no such columns; if the model is cut off its
                parameters.
        """
        device = self.parameters.device
        loss = torch.zeros((), dtype=torch.float64, device=device)
        share = torch.zeros((), dtype=torch.float64, device=device)
        is_used = torch.zeros((), dtype=torch.float64, device=device)
        refused: dict[int, str] = {}
        is_first = True
        with _context_of_pass(self.data):
            merged = MergedBatches(
                self.parameters.model, self.parameters.tensors, self.data
            )
            with failing_together(3, self.process_group, loss.dtype, device):
                for X, y in merged.batches(what):
                    total, part, used, found = self._batch(
                        X, y, layers, merged, check, is_first
                    )
                    refused = found | refused
                    loss += total
                    share += part
                    is_used += used
                    is_first = False
                layers.complete()
            sums = all_reduce([loss, share, is_used], self.process_group)
            loss, share, is_used = sums
            if not bool(is_used):
                check_dependence(self.parameters, self.data, group=self.process_group)
            self._reduce(layers, refused)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"Expected a finite loss over the data, got {float(loss)}. Look for NaN "
                "or infinite inputs, targets or parameters."
            )
        return total_divisor(self.loss.reduction, share), refused

    def _batch(
        self,
        X: Any,
        y: Any,
        layers: Layers,
        merged: MergedBatches,
        check: bool,
        is_first: bool,
    ) -> tuple[Tensor, Any, bool, dict[int, str]]:
        """Loss, share of the divisor, whether parameters are used, those refused."""
        N = self.data.batch_size(X, y)
        with torch.enable_grad(), self.parameters.leaves() as params:
            backward = Backward(params, N)
            try:
                with backward.noted:
                    prediction = self.parameters.model(params, X)
                outputs = nested.differentiable(prediction)
                is_used = backward.look_at(outputs)
                if is_first and self.parameters.read:
                    at = self.parameters
                    refuse(read_by(self.loss, at, params, prediction, y))
                with torch.no_grad():
                    loss = self.loss.total(prediction, y)
                    share = self.loss.divisor(prediction, y)
                if check:
                    self._verify(prediction, y)
                if check and is_first and N > 1:
                    backward.refuse_dependent(outputs)
                calls = backward.calls
                merged.note(N, sum(t.numel() for c in calls.values() for t in c.tensors))
                S = self._factor(prediction, X, y, N)
                layers.start(calls, N)
                if not layers.keeps_inputs:
                    backward.forget_inputs()
                if S is not None:
                    self._pull(S, outputs, backward, layers)
                return loss, share, is_used, backward.refused
            finally:
                backward.release()

    def _verify(self, prediction: Any, y: Any) -> None:
        """What is assumed about a loss of the user's; one batch needs no adding."""
        alone = self.loss.terms is None and self.data.num_batches == 1
        if not self.loss.is_trusted and not alone:
            with torch.no_grad():
                self.loss.verify(nested.map_tensors(Tensor.detach, prediction), y)

    def _factor(self, prediction: Any, X: Any, y: Any, N: int) -> OutputFactor | None:
        """The columns, if there is a backward pass."""
        if self.fisher_type == "forward-only":
            return None
        return output_factor(
            self.loss,
            prediction,
            y,
            num_data=N,
            kind=self.fisher_type,
            mc_samples=self.mc_samples,
            seed=self.seed,
            X=X,
            per=self.per,
            # together, what is between terms depends on the factor: no class is special
            fewest=not self.terms_together,
        )

    def _pull(
        self,
        S: OutputFactor,
        outputs: Sequence[Tensor],
        backward: Backward,
        layers: Layers,
    ) -> None:
        """Every column back through the network."""
        R = S.num_together if self.terms_together else S.num_columns
        step = max(1, COLUMNS // max(sum(o.numel() for o in outputs), 1))
        for first in range(0, R, step):
            some = S.blocks(slice(first, first + step), self.terms_together)
            for k in range(len(some[0])):
                last = first + k == R - 1
                column = [s[k] for s in some]
                backward(outputs, column, layers.receive, keep=not last)
                layers.end_column()

    def _reduce(self, layers: Layers, refused: dict[int, str]) -> None:
        """The layers' sums over the ranks.

        Raises:
            ValueError: If a rank has seen other layers than the others.
        """
        group = self.process_group
        if group is None:
            return
        sums = {str(k): s for k, s in layers.sums.items() if s is not None}
        everywhere: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(everywhere, (sorted(sums), refused), group)
        if any(keys != everywhere[0][0] for keys, _ in everywhere):
            raise ValueError(
                "Expected every rank to call the same layers. Give each rank at least one "
                "batch of data."
            )
        for _, others in everywhere:
            refused |= others
        own = [t for key in sorted(sums) for _, t in sorted(sums[key].tensors.items())]
        for t, total in zip(own, all_reduce(own, group) if own else [], strict=True):
            t.copy_(total)


@contextmanager
def _context_of_pass(data: Data) -> Iterator[None]:
    """Generators preserved, no inference mode, no fused inference of transformer layers.

    First derivatives only: the fused kernels of attention may stay.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with preserved(data.device, *data.generators), torch.inference_mode(False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
