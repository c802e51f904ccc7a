"""Attention, which has fused kernels and an inference path of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases.problem import Problem, bits, classes, cross_entropy, normal, seeded
from tests.cases.problem import bce as weighted_bce


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(2, 6)
        self.head = nn.Linear(2, 3)

    def forward(self, X: Tensor) -> Tensor:
        q, k, v = self.project(X)[:, None].chunk(3, -1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(attended[:, 0].mean(1).tanh())


def scaled_dot_product(dtype: torch.dtype) -> Problem:
    model = seeded(_Attention, dtype)
    X, y = normal(dtype, 5, 3, 2), classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


class _MultiHead(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 2, batch_first=True)
        self.head = nn.Linear(2, 2)
        self.need_weights = need_weights

    def forward(self, X: Tensor) -> Tensor:
        out, _ = self.attention(X, X, X, need_weights=self.need_weights)
        return self.head(out.tanh().mean(1))


def multihead(dtype: torch.dtype) -> Problem:
    model = seeded(lambda: _MultiHead(need_weights=False), dtype)
    X, y = normal(dtype, 5, 3, 2), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)


def multihead_eval(dtype: torch.dtype) -> Problem:
    model = seeded(lambda: _MultiHead(need_weights=True), dtype).eval()
    X, y = normal(dtype, 5, 3, 2), bits(dtype, 5, 2)
    return Problem(model, list(model.parameters()), weighted_bce(dtype, 2), X, y)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            4, nhead=2, dim_feedforward=1, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(4, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.layer(X).mean(1))


def transformer_encoder_eval(dtype: torch.dtype) -> Problem:
    model = seeded(_Encoder, dtype).eval()
    X, y = normal(dtype, 5, 3, 4), classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)
