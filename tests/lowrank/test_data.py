"""Batches, sequences of unequal length, samples, memory, and what is refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import GGNLinearOperator, HessianLinearOperator
from curvop.linearized import ways as ways_to_derive
from curvop.lowrank import GramFactor
from tests.comparing import error, random
from tests.curvature import dense

from .problems import factor, images, network, operator, perceptron, truth

LOSS = nn.CrossEntropyLoss()


def kept(A: GramFactor) -> bool:
    """Whether the columns are in memory."""
    (_, first), *_ = A.V._pieces()
    (_, again), *_ = A.V._pieces()
    return first is again


class Tagger(nn.Module):
    """Classes for each position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Conv1d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, X: Tensor) -> Tensor:
        h = self.norm(self.embedding(X))
        h = h + self.mix(h.mT).mT.tanh()
        return self.head(h).mT  # [N, C, T]


def sequences() -> list[tuple[Tensor, Tensor]]:
    """Two lengths, and padding that is ignored."""
    lengths = ((2, 5), (3, 3), (1, 5))
    data = [
        (dense.integers(6, *s, seed=i), dense.integers(3, *s))
        for i, s in enumerate(lengths)
    ]
    data[0][1][1, 3:] = -100
    data[1][1][0, 2:] = -100
    return data


@pytest.mark.parametrize(
    ("name", "options", "columns"),
    [
        ("ggn", {}, 24 * 3),
        ("ef", {}, 24),
        ("ef", {"per": "example"}, 6),
        ("ggn", {"mc_samples": 2}, 12),
    ],
    ids=str,
)
def test_sequences_of_unequal_length(name: str, options: Any, columns: int) -> None:
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    G = operator(network(Tagger()), loss, sequences(), name, **options)
    A = G.factor()
    nbytes = sum(piece.nbytes for _, piece in A.V._pieces())
    for A in (G.factor(nbytes), G.factor(nbytes // 2)):
        assert A.V.shape == (G.shape[0], columns)
        assert error(A.to_dense(), G.to_dense()) <= 1e-10
        V = A.V.to_dense()
        assert error(A.gram(), V.T @ V) <= 1e-10
    assert not kept(A)


def test_columns_follow_the_data_however_it_is_cut() -> None:
    X, y = images()
    model = perceptron()
    whole, cut, anew = (
        operator(model, LOSS, data).factor(budget).V.to_dense()
        for data, budget in (
            ([(X, y)], None),
            ([(X[:4], y[:4]), (X[4:5], y[4:5]), (X[5:], y[5:])], None),
            ([(X, y)], 1100),
        )
    )
    assert error(cut, whole) <= 1e-13
    assert error(anew, whole) <= 1e-13


def test_small_batches_become_one_piece() -> None:
    X, y = images()
    data = [(X[n : n + 1], y[n : n + 1]) for n in range(7)]
    A = operator(perceptron(), LOSS, data).factor()
    assert len(list(A.V._pieces())) == 1
    assert error(A.to_dense(), truth()) <= 1e-12


@pytest.mark.parametrize("samples", [1, 4])
def test_samples(samples: int) -> None:
    X, y = images()
    data = [(X[:3], y[:3]), (X[3:], y[3:])]
    G = operator(perceptron(), LOSS, data, mc_samples=samples, seed=3)
    A = G.factor()
    assert A.V.shape[1] == 7 * samples
    assert error(A.to_dense(), G.to_dense()) <= 1e-12


def test_the_gram_matrix_of_two_factors() -> None:
    X, y = images(9)
    model = perceptron()
    A = operator(model, LOSS, [(X[:5], y[:5])]).factor()
    B = operator(model, LOSS, [(X[5:], y[5:])], "ef").factor(1100)
    expected = A.V.to_dense().T @ B.V.to_dense()
    assert error(A.gram(B), expected) <= 1e-13
    assert error(B.gram(A), expected.T) <= 1e-13
    assert error(A.gram(A), A.gram()) == 0
    with pytest.raises(TypeError, match="Expected a GramFactor, got Tensor"):
        A.gram(expected)
    other = operator(nn.Linear(5, 3).double(), LOSS, [(X, y)]).factor()
    with pytest.raises(ValueError, match="same parameters"):
        A.gram(other)


def test_what_is_handed_out_is_the_users() -> None:
    A = factor()
    A.gram().zero_()
    assert error(A.to_dense(), truth()) <= 1e-12
    assert A.eigvalsh().any()


# ------------------------------------------------------------------------- memory


def test_memory_budget() -> None:
    every = [factor(memory_budget=budget) for budget in (None, 10**6, 1500, 1100)]
    assert [kept(A) for A in every] == [True, True, False, False]
    for A in every:
        assert error(A.to_dense(), truth()) <= 1e-12
        x = A.inverse(0.1) @ random(57)
        assert error(x, every[0].inverse(0.1) @ random(57)) <= 1e-12


def test_a_budget_for_less_than_a_datum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory_budget of at least [\d,]+ bytes.*got 10"):
        factor(memory_budget=10)


def test_what_is_derived_anew_needs_the_parameters_as_they_were() -> None:
    X, y = images()
    model = perceptron()
    G = operator(model, LOSS, [(X, y)])
    anew, A = G.factor(1100), G.factor()
    D = A.to_dense()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    X.zero_()
    assert error(A.to_dense(), D) == 0  # what was kept is of its own
    with pytest.raises(ValueError, match="have changed"):
        anew @ torch.ones(57).double()


# --------------------------------------------------------------- ways to derive


def ways_tried(A: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ways that were tried while the factor was built."""
    tried: list[str] = []

    def ways(at: Any) -> Any:
        def noting(way: Any) -> Any:
            def call(*args: Any) -> Any:
                tried.append(way.__name__)
                return way(*args)

            return call

        return tuple(noting(way) for way in ways_to_derive(at))

    monkeypatch.setattr("curvop.lowrank.construction.ways", ways)
    A.factor()
    return tried


def test_linear_layers_take_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    G = operator(network(Tagger()), LOSS, sequences())
    assert set(ways_tried(G, monkeypatch)) == {"by_layers"}


def test_coupled_data_are_told_from_independent_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).train()
    X, y = images()
    G = operator(model, LOSS, [(X, y)])
    assert ways_tried(G, monkeypatch)[-1] == "by_passes"
    assert error(G.factor().to_dense(), G.to_dense()) <= 1e-12


def test_a_loss_that_couples_data_is_refused() -> None:
    def spread(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - prediction.mean(0)).square().sum()

    X, y = images()
    model = perceptron()
    params = list(model.parameters())
    G = GGNLinearOperator(model, spread, params, [(X, y)], reduction="sum")
    with pytest.raises(ValueError, match=r"V Vᵀ differs from the operator.*other data"):
        G.factor()


# -------------------------------------------------------------------- as found


class Noting(nn.Module):
    """Passes on, counts, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fails_at = -1

    def forward(self, X: Tensor) -> Tensor:
        self.calls += 1
        if self.fails_at == 0:
            raise KeyboardInterrupt
        self.fails_at -= 1
        return X


def states(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield module.training, list(module._forward_hooks), list(module._backward_hooks)
    for p in model.parameters():
        yield p.requires_grad, p.grad is None, p._version, p.data_ptr()
    for b in model.buffers():
        yield b.tolist()
    yield torch.get_rng_state().tolist()


@pytest.mark.parametrize("fails_at", [-1, *range(4)])
def test_the_model_is_left_as_found(fails_at: int) -> None:
    noting = Noting()
    model = network(nn.Linear(5, 4), noting, nn.LayerNorm(4), nn.Linear(4, 3)).train()
    model[0].bias.requires_grad_(False)
    noting.fails_at = fails_at
    G = operator(model, LOSS, [images()])
    before = copy.deepcopy(list(states(model)))
    try:
        A = G.factor()
    except KeyboardInterrupt:
        assert fails_at >= 0
    else:
        A.eigh()
        A.inverse(0.1).sample(2)
    assert list(states(model)) == before


# ----------------------------------------------------------------- what is refused


def test_bad_arguments() -> None:
    G = operator(perceptron(), LOSS, [images()])
    for options, kind, message in [
        ({"memory_budget": 1.5}, TypeError, "memory_budget as an integer, got float"),
        ({"memory_budget": 0}, ValueError, "positive memory_budget, got 0"),
        ({"gram_dtype": "float64"}, TypeError, r"torch\.dtype, got str"),
        ({"gram_dtype": torch.float32}, ValueError, "at least the precision"),
        ({"gram_dtype": torch.int64}, ValueError, "at least the precision"),
    ]:
        with pytest.raises(kind, match=message):
            G.factor(**options)


def test_block_diagonal_matrices_have_no_factor() -> None:
    G = operator(perceptron(), LOSS, [images()], block_sizes=[2, 2])
    with pytest.raises(ValueError, match="Leave block_sizes out"):
        G.factor()


def test_data_spread_over_processes_is_refused() -> None:
    G = operator(perceptron(), LOSS, [images()])
    G = G.with_risk(replace(G.risk, process_group=object()))
    with pytest.raises(ValueError, match="one process"):
        G.factor()


def test_a_hessian_has_none() -> None:
    assert not hasattr(HessianLinearOperator, "factor")


def test_empty_batches_have_no_columns() -> None:
    X, y = images()
    loss = nn.CrossEntropyLoss(reduction="sum")
    model = perceptron()
    with_empty, without = (
        operator(model, loss, data).factor().V.to_dense()
        for data in ([(X[:0], y[:0]), (X, y)], [(X, y)])
    )
    assert error(with_empty, without) == 0


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    operator(perceptron(), LOSS, [images()], progressbar=True).factor()
    assert "columns" in capsys.readouterr().err


def test_all_orders_of_pieces_agree() -> None:
    """Pieces of several forms: sequences in any order."""
    model = network(Tagger())
    for data in itertools.permutations(sequences()):
        G = operator(model, LOSS, list(data))
        A = G.factor()
        V = A.V.to_dense()
        assert error(V @ V.T, G.to_dense()) <= 1e-10
        assert error(A.gram(), V.T @ V) <= 1e-12
