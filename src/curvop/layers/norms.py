"""Scales and shifts of normalisations: ``a = γ x̂ + β``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from curvop.layers.call import Call

_STATISTICS = "input running_mean running_var weight bias"


@final
@dataclass(frozen=True)
class Norm(Call):
    """``z`` is the normalised input ``x̂``, a constant; without a scale, the input."""

    functions: ClassVar[dict[Any, str]] = {
        F.layer_norm: "input normalized_shape weight bias eps",
        F.rms_norm: "input normalized_shape weight eps",
        F.group_norm: "input num_groups weight bias eps",
        F.batch_norm: f"{_STATISTICS} training momentum eps",
        F.instance_norm: f"{_STATISTICS} use_input_stats momentum eps",
    }
    form = "scale"

    @classmethod
    def input_of(cls, function: Any, named: dict[str, Any]) -> Tensor | None:
        """``x̂``."""
        x: Tensor = named["input"].detach()
        if named.get("weight") is None:
            return x
        plain = {**named, "input": x, "weight": None}
        if "bias" in named:
            plain["bias"] = None
        of_input = function is F.instance_norm and named.get("use_input_stats", True)
        if of_input or named.get("training"):
            plain |= {k: None for k in ("running_mean", "running_var") if k in named}
        with torch.no_grad():
            normalised: Tensor = function(**plain)
        return normalised

    @property
    def _is_channel(self) -> bool:
        """Whether features are one axis, the second, or all trailing ones."""
        return "normalized_shape" not in self.options

    @property
    def is_batched(self) -> bool:
        """Whether there is an axis for data."""
        features = 1 if self._is_channel else len(self.options["normalized_shape"])
        return len(self.shape) > features

    @property
    def mixes_data(self) -> bool:
        """Batch statistics do."""
        return self.function is F.batch_norm and bool(self.options.get("training"))

    @property
    def multiplications(self) -> int:
        """Multiplications for one datum."""
        return self.size

    def jvp(self, V: Tensor | None, c: Tensor | None) -> Tensor:
        """``V x̂ + c``."""
        axes = (1,) * (len(self.shape) - 2) if self._is_channel else ()
        V, c = (None if t is None else t.view(*t.shape, *axes) for t in (V, c))
        out = self.z.new_zeros(self.shape) if V is None else V * self.z
        return out if c is None else out + c

    def _by_feature(self, X: Tensor, N: int) -> Tensor:
        """``[K, *a]`` with the features last, ``[K, 1, N, T, D]``."""
        if self._is_channel:
            X = X.movedim(2, -1)
            return X.reshape(len(X), 1, N, -1, X.shape[-1])
        D = self.shape[len(self.shape) - len(self.options["normalized_shape"]) :].numel()
        return X.reshape(len(X), 1, N, -1, D)

    def output_gradients(self, U: Tensor, N: int) -> Tensor:
        """``[K, 1, N, T, D]``."""
        return self._by_feature(U, N)

    def weight_gradients(self, U: Tensor, N: int) -> Tensor:
        """``Σ_t u x̂`` of each datum."""
        U, x = self._by_feature(U, N), self._by_feature(self.z[None], N)
        sums = torch.einsum("kntd,ntd->knd", U[:, 0], x[0, 0])
        return sums.reshape(len(U), N, *self.weight_shape)

    def bias_gradients(self, U: Tensor, N: int) -> Tensor:
        """``Σ_t u`` of each datum."""
        sums = self._by_feature(U, N)[:, 0].sum(2)
        if self._is_channel:
            return sums
        return sums.reshape(len(U), N, *self.options["normalized_shape"])
