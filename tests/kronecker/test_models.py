"""Models of torch: which layers get factors, and a model that is left as found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from curvop import EFLinearOperator, GGNLinearOperator
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.cases.problem import classes, normal, seeded
from tests.comparing import error, random

TOLERANCE = 1e-10
F64 = torch.float64
LOSS = nn.CrossEntropyLoss(ignore_index=-100)
y = classes(3, 5, ignore=True)


def ggn_block(model: nn.Module, X: Tensor, name: str) -> Tensor:
    """The exact block of one parameter."""
    p = dict(model.named_parameters())[name]
    return GGNLinearOperator(model, LOSS, [p], [(X, y)]).to_dense()


def block(K: KFACLinearOperator, name: str) -> Tensor:
    return K[name, name].to_dense()


# ---------------------------------------------------------------------- norms


def eval_batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.copy_(normal(torch.float32, 4))
    return norm.eval()


NORMS = {
    "layer": (lambda: nn.LayerNorm(4), False),
    "layer-2d": (lambda: nn.LayerNorm((3, 4)), False),
    "rms": (lambda: nn.RMSNorm(4), False),
    "group": (lambda: nn.GroupNorm(2, 4), True),
    "instance": (lambda: nn.InstanceNorm1d(4, affine=True), True),
    "batch": (eval_batch_norm, True),
}


@pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
@pytest.mark.parametrize("name", NORMS)
def test_scale_and_shift_have_exact_blocks(name: str, kind: Any) -> None:
    make, channels = NORMS[name]
    X = random(5, 2, 3) if channels else random(5, 3, 2)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(2, 4, 1) if channels else nn.Linear(2, 4),
            make(),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 3),
        )

    model = seeded(build, F64)
    K = kind(model, LOSS, list(model.parameters()), [(X[:2], y[:2]), (X[2:], y[2:])])
    for p in ("1.weight", "1.bias"):
        if p in K.domain_names:
            assert error(block(K, p), ggn_block(model, X, p)) <= TOLERANCE


def test_norms_with_many_features_have_diagonals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvop.kronecker.kfac.SMALL", 3)
    model = seeded(
        lambda: nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)),
        F64,
    )
    X = random(5, 2)
    for kind in (KFACLinearOperator, EKFACLinearOperator):
        K = kind(model, LOSS, list(model.parameters()), [(X, y)])
        exact = ggn_block(model, X, "1.weight")
        assert error(block(K, "1.weight"), exact.diagonal().diag()) <= TOLERANCE


# ------------------------------------------------------------------ attention


def factored(K: KFACLinearOperator) -> set[str]:
    """Parameters whose block is more than a diagonal."""
    out = set()
    for names, b in zip(K.block_names, K.factors.blocks, strict=True):
        factors = (b.left, b.right)
        if any(f is not None and f.ndim == 3 for f in factors):
            out |= set(names)
    return out


def test_packed_projections_of_attention_are_a_layer() -> None:
    layer = seeded(lambda: nn.TransformerEncoderLayer(4, 2, 3, 0.0, batch_first=True), F64)
    head = seeded(lambda: nn.Linear(4, 3), F64)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, head

        def forward(self, X: Tensor) -> Tensor:
            return self.head(self.layer(X).mean(1))

    class ByHand(nn.Module):
        """The same attention from linear layers."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, head

        def forward(self, X: Tensor) -> Tensor:
            at, L = self.layer.self_attn, self.layer
            qkv = nn.functional.linear(X, at.in_proj_weight, at.in_proj_bias)
            q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in qkv.chunk(3, -1))
            a = ((q @ k.mT) / 2**0.5).softmax(-1) @ v
            a = nn.functional.linear(
                a.transpose(1, 2).flatten(2), at.out_proj.weight, at.out_proj.bias
            )
            x = L.norm1(X + a)
            x = L.norm2(x + L.linear2(torch.relu(L.linear1(x))))
            return self.head(x.mean(1))

    X = random(5, 3, 4)
    for mode in (True, False):
        model, by_hand = Model().train(mode), ByHand().train(mode)
        assert error(model(X), by_hand(X)) <= TOLERANCE
        for kind in (KFACLinearOperator, EKFACLinearOperator):
            for approx in ("expand", "reduce"):
                K, right = (
                    kind(
                        m,
                        LOSS,
                        dict(m.named_parameters()),
                        [(X, y)],
                        unsupported="error",
                        kfac_approx=approx,
                    )
                    for m in (model, by_hand)
                )
                assert factored(K) == set(dict(model.named_parameters()))
                if kind is KFACLinearOperator:
                    assert error(K.to_dense(), right.to_dense()) <= TOLERANCE
                    continue
                # the eigenbasis is not unique: some directions have no slope
                V = K.eigh().vectors.to_dense()
                G = GGNLinearOperator(
                    by_hand, LOSS, dict(by_hand.named_parameters()), [(X, y)]
                ).to_dense()
                assert error(K.eigh().values, (V.T @ G @ V).diagonal()) <= TOLERANCE


# ------------------------------------------------- what has no Kronecker factors


class Odd(nn.Module):
    """A parameter on its own, positions without a batch axis, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.place = nn.Embedding(3, 4)
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, X: Tensor) -> Tensor:
        h = self.first(X) + self.place(torch.arange(3)) + self.shift
        return self.last(h.tanh()).mean(1)


@pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
@pytest.mark.parametrize("fisher", ["type-2", "mc", "empirical"])
def test_others_get_the_exact_diagonal_with_a_warning(fisher: Any, kind: Any) -> None:
    model, X = seeded(Odd, F64), random(5, 3, 2)
    args = (model, LOSS, list(model.parameters()), [(X[:2], y[:2]), (X[2:], y[2:])])
    with pytest.warns(
        UserWarning, match=r"place\.weight .*no batch axis.*exact diagonal"
    ) as w:
        K = kind(*args, fisher_type=fisher)
    assert len(w) == 1
    assert w[0].filename == __file__
    assert "shift (it is used outside of supported layers)" in str(w[0].message)
    exact = {
        "type-2": lambda: GGNLinearOperator(*args),
        "mc": lambda: GGNLinearOperator(*args, mc_samples=1),
        "empirical": lambda: EFLinearOperator(*args),
    }[fisher]().to_dense()
    for name in ("shift", "place.weight"):
        right = GGNLinearOperator(*args).input_space.index(name)
        assert error(block(K, name), exact[right, right].diagonal().diag()) <= TOLERANCE
    assert factored(K) == {"first.weight", "first.bias", "last.weight", "last.bias"}


def test_others_are_an_error_on_request() -> None:
    model, X = seeded(Odd, F64), random(5, 3, 2)
    with pytest.raises(ValueError, match=r"shift .*outside.*Leave them out"):
        KFACLinearOperator(
            model, LOSS, list(model.parameters()), [(X, y)], unsupported="error"
        )


def test_positions_that_are_as_many_as_data_are_seen() -> None:
    """The shape alone would not tell that the embedding has no batch axis."""
    model, X = seeded(Odd, F64), random(3, 3, 2)
    with pytest.warns(UserWarning, match=r"place\.weight \(its layer mixes data"):
        KFACLinearOperator(model, LOSS, list(model.parameters()), [(X, y[2:])])


def test_batch_statistics_mix_data() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))

    model, X = seeded(build, F64).train(), random(5, 2)
    with pytest.warns(UserWarning, match=r"0\.weight \(its layer mixes data of a batch"):
        K = KFACLinearOperator(model, LOSS, list(model.parameters()), [(X, y)])
    assert factored(K) == {"3.weight", "3.bias", "1.weight", "1.bias"}


class Tied(nn.Module):
    """A head with the weight of the embedding, or one of its own that is equal."""

    def __init__(self, tied: bool, bias: bool = False) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(3, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=bias)
        with torch.no_grad():
            self.head.weight.copy_(self.table.weight)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.middle(self.table(X)).tanh().mean(1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["type-2", "forward-only"])
def test_head_tied_to_the_embedding(fisher: Any, approx: Any, bias: bool) -> None:
    """The Kronecker product that is nearest to the sum of both, by a dense SVD."""
    X = classes(3, 5, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tied = Tied(True, bias).double()
    apart = Tied(False, bias).double()
    apart.load_state_dict(tied.state_dict())
    K, both = (
        KFACLinearOperator(
            m,
            LOSS,
            dict(m.named_parameters()),
            [(X[:2], y[:2]), (X[2:], y[2:])],
            fisher_type=fisher,
            kfac_approx=approx,
            separate_weight_and_bias=False,
            unsupported="error",
        )
        for m in (tied, apart)
    )
    if bias:  # the head's weight goes with the embedding, its bias is left alone
        both = KFACLinearOperator(
            apart,
            LOSS,
            dict(apart.named_parameters()),
            [(X[:2], y[:2]), (X[2:], y[2:])],
            fisher_type=fisher,
            kfac_approx=approx,
        )
        assert error(block(K, "head.bias"), block(both, "head.bias")) <= TOLERANCE
    total = block(both, "table.weight") + block(both, "head.weight")
    rearranged = total.reshape(3, 4, 3, 4).transpose(1, 2).reshape(9, 16)
    U, s, Vh = torch.linalg.svd(rearranged)
    right = s[0] * torch.kron(U[:, 0].reshape(3, 3), Vh[0].reshape(4, 4))
    assert error(block(K, "table.weight"), right) <= TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_head_tied_to_the_embedding_has_the_best_eigenvalues(bias: bool) -> None:
    model, X = seeded(lambda: Tied(True, bias), F64), classes(3, 5, 2)
    args = (model, LOSS, list(model.parameters()), [(X[:2], y[:2]), (X[2:], y[2:])])
    E = EKFACLinearOperator(*args, unsupported="error")
    eigen, V = E.eigh(), E.eigh().vectors.to_dense()
    G = GGNLinearOperator(*args, block_sizes=[1] * len(E.domain)).to_dense()
    assert error(eigen.values, (V.T @ G @ V).diagonal()) <= TOLERANCE


class Clash(nn.Module):
    """A scale that is the bias of a layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.norm.weight = self.first.bias

    def forward(self, X: Tensor) -> Tensor:
        return self.last(self.norm(self.first(X)).tanh())


def test_a_parameter_in_other_kinds_of_layers() -> None:
    model, X = seeded(Clash, F64), random(5, 2)
    args = (model, LOSS, list(model.parameters()), [(X, y)])
    told = r"first\.bias \(it is used by layers of different kinds"
    for kind in (KFACLinearOperator, EKFACLinearOperator):
        with pytest.warns(UserWarning, match=told):
            K = kind(*args)
        exact = ggn_block(model, X, "first.bias").diagonal().diag()
        assert error(block(K, "first.bias"), exact) <= TOLERANCE


def test_unused_parameters_are_zero() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.never = nn.Linear(2, 3), nn.Linear(2, 2)

        def forward(self, X: Tensor) -> Tensor:
            return self.first(X)

    model, X = seeded(Model, F64), random(5, 2)
    for kind in (KFACLinearOperator, EKFACLinearOperator):
        K = kind(model, LOSS, list(model.parameters()), [(X, y)])
        assert float(K["never.weight", "never.bias"].to_dense().abs().max()) == 0


# ---------------------------------------------------------------- odd models


def test_written_in_place() -> None:
    """What is written to the output of a layer does not hide its gradient."""

    def build(inplace: bool) -> nn.Module:
        return seeded(
            lambda: nn.Sequential(
                nn.Linear(2, 4), nn.ReLU(inplace), nn.Linear(4, 3), nn.ReLU(inplace)
            ),
            F64,
        )

    X, t = random(5, 3, 2), random(5, 3, 3)
    for kind in (KFACLinearOperator, EKFACLinearOperator):
        got, right = (
            kind(m, nn.MSELoss(), m.parameters(), [(X, t)])
            for m in (build(True), build(False))
        )
        assert error(got.to_dense(), right.to_dense()) <= TOLERANCE


def test_input_written_to_after_the_call_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, X: Tensor) -> Tensor:
            h = self.first(X).tanh()
            out = self.last(h)
            h += 1
            return out

    model, X = seeded(Model, F64), random(5, 2)
    with pytest.raises(ValueError, match="writes in place"):
        KFACLinearOperator(
            model, LOSS, model.last.parameters(), [(X, y)], check_deterministic=False
        )


def test_activation_checkpointing() -> None:
    class Model(nn.Module):
        def __init__(self, on: bool) -> None:
            super().__init__()
            self.on = on
            self.first, self.mid, self.last = (
                nn.Linear(2, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 3),
            )

        def forward(self, X: Tensor) -> Tensor:
            def middle(h: Tensor) -> Tensor:
                return self.mid(h.tanh()).tanh()

            h = self.first(X)
            h = checkpoint(middle, h, use_reentrant=False) if self.on else middle(h)
            return self.last(h)

    X = random(5, 2)
    plain, model = (seeded(lambda on=on: Model(on), F64) for on in (False, True))
    right = KFACLinearOperator(plain, LOSS, plain.parameters(), [(X, y)])
    K = KFACLinearOperator(model, LOSS, model.parameters(), [(X, y)], unsupported="error")
    assert error(K.to_dense(), right.to_dense()) <= TOLERANCE


def test_frames_on_the_data_axis() -> None:
    """A convolution sees three frames of a datum as if they were data."""

    class Video(nn.Module):
        def __init__(self, folded: bool) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 3, 2), nn.Linear(3, 3)
            self.folded = folded

        def forward(self, X: Tensor) -> Tensor:
            if self.folded:
                h = self.conv(X.flatten(0, 1)).unflatten(0, X.shape[:2])
            else:
                w = self.conv.weight[:, :, None]
                h = nn.functional.conv2d(X.transpose(1, 2), w, self.conv.bias).transpose(
                    1, 2
                )
            return self.head(h.tanh().mean((1, 3)))

    X = random(5, 3, 2, 4)
    model = seeded(lambda: Video(True), F64)
    p = dict(model.named_parameters())
    for approx in ("expand", "reduce"):
        K, right = (
            kind(model, LOSS, p, [(X, y)], kfac_approx=approx)
            for kind in (KFACLinearOperator, EKFACLinearOperator)
        )
        # EKFAC's eigenvalues come from the exact block
        V = right.eigh().vectors.to_dense()
        G = GGNLinearOperator(model, LOSS, p, [(X, y)]).to_dense()
        assert error(right.eigh().values, (V.T @ G @ V).diagonal()) <= TOLERANCE
        assert error((V.T @ K.to_dense() @ V).diagonal().sum(), K.trace()) <= TOLERANCE


# ------------------------------------------------------------- left as found


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(1, 2),
        nn.LayerNorm(3),
        nn.Linear(3, 2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def state(model: nn.Module) -> Iterator[Any]:
    """What a model and its surroundings consist of."""
    for name, module in model.named_modules():
        yield name, type(module), module.training
        for table in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        ):
            yield list(getattr(module, table).values())
        for t in (*module._parameters.values(), *module._buffers.values()):
            yield (
                id(t),
                t.requires_grad,
                t.grad is None,
                t.detach().clone().tolist(),
                t._version,
            )
    yield torch.is_grad_enabled(), torch.get_rng_state().tolist()
    yield torch._C._len_torch_function_stack()


class Stop(BaseException):
    """Not to be caught on the way."""


@pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
@pytest.mark.parametrize("fisher", ["type-2", "mc"])
def test_model_is_left_as_found(kind: Any, fisher: Any) -> None:
    model, X = seeded(layers, F64).eval(), random(5, 1, 4, 4)
    before = list(state(model))
    K = kind(
        model,
        LOSS,
        list(model.parameters()),
        [(X[:2], y[:2]), (X[2:], y[2:])],
        fisher_type=fisher,
    )
    assert list(state(model)) == before
    kept = copy.deepcopy([b.left for b in K.factors.blocks])
    model[0].weight.data.mul_(2)  # a value: it does not follow
    assert all(torch.equal(a, b.left) for a, b in zip(kept, K.factors.blocks, strict=True))


@pytest.mark.parametrize("error_type", [RuntimeError, Stop])
@pytest.mark.parametrize("when", [0, 1, 2])
@pytest.mark.parametrize("layer", range(8))
def test_exception_in_a_hook_leaves_the_model_as_found(
    layer: int, when: int, error_type: type[BaseException]
) -> None:
    """In the first pass, in a later batch, in the second pass of EKFAC."""
    model, X = seeded(layers, F64).eval(), random(5, 1, 4, 4)
    calls = [0]

    def hook(*_: Any) -> None:
        calls[0] += 1
        if calls[0] > when:
            raise error_type("from the hook")

    model[layer].register_forward_hook(hook)
    data = [(X[:1], y[:1]), (X[1:], y[1:])]
    before = list(state(model))
    for kind in (KFACLinearOperator, EKFACLinearOperator):
        calls[0] = 0
        if when == 2 and kind is KFACLinearOperator:
            continue
        with pytest.raises(error_type, match="from the hook"):
            kind(model, LOSS, list(model.parameters()), data, check_deterministic=False)
        assert list(state(model)) == before
