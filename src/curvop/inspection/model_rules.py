"""What in a model needs care: one rule each."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from curvop.inspection.results import Caution
from curvop.inspection.scene import Rule, Scene
from curvop.risk import unwrapped


def _fails(scene: Scene) -> Iterator[Caution]:
    if scene.seen.error is not None:
        yield Caution(
            "stop",
            f"loss and gradient cannot be computed: {scene.seen.error}",
            (),
            "run loss_func(model(X), y).backward() on one batch of the data first",
        )


def _dropout(scene: Scene) -> Iterator[Caution]:
    where = tuple(f"{name} ({type(m).__name__})" for name, m in scene.modules if _drops(m))
    if where or scene.seen.num_dropouts:
        yield Caution(
            "stop" if scene.seen.is_random else "care",
            "dropout is on",
            where or ("torch.nn.functional",),
            "call model.eval(): otherwise each product is of another matrix",
        )
    elif scene.seen.is_random:
        yield Caution(
            "stop",
            "loss or gradient differ from one evaluation to the next",
            (),
            "turn off what is random in the model (noise, sampling, non-deterministic "
            "kernels)",
        )


def _drops(m: nn.Module) -> bool:
    if not m.training:
        return False
    if isinstance(m, _DropoutNd):
        return m.p > 0
    if isinstance(m, nn.RNNBase):
        return m.dropout > 0 and m.num_layers > 1
    return isinstance(m, nn.MultiheadAttention) and m.dropout > 0


def _batch_norm(scene: Scene) -> Iterator[Caution]:
    where = tuple(
        f"{name} ({type(m).__name__})"
        for name, m in scene.modules
        if _is_batch_norm(m) and (m.training or m.running_mean is None)
    )
    if where:
        yield Caution(
            "care",
            "batch norm normalises with the statistics of each batch",
            where,
            "call model.eval(), or pass all data as one batch: the matrix depends on how "
            "the data is cut",
        )


def _is_batch_norm(m: nn.Module) -> bool:
    return isinstance(m, _BatchNorm) and not isinstance(
        m, nn.modules.instancenorm._InstanceNorm
    )


def _written(scene: Scene) -> Iterator[Caution]:
    norms = {
        f"{name}.{key}"
        for name, m in scene.modules
        if _is_batch_norm(m)
        for key in m._buffers
    }
    statistics = tuple(n for n in scene.seen.written if n in norms)
    others = tuple(n for n in scene.seen.written if n not in norms)
    if statistics:
        yield Caution(
            "note",
            "running statistics are updated by a forward pass",
            statistics,
            "nothing to do: each product works on copies, yours stay as they are",
        )
    if others:
        yield Caution(
            "note",
            "buffers are written in the forward pass",
            others,
            "nothing to do, unless the prediction depends on earlier calls: each product "
            "starts from copies",
        )


def _attention(scene: Scene) -> Iterator[Caution]:
    where = tuple(
        f"{name} ({type(m).__name__})"
        for name, m in scene.modules
        if isinstance(m, nn.MultiheadAttention)
    )
    if scene.seen.num_attentions:
        where += (f"{scene.seen.num_attentions} × scaled_dot_product_attention",)
    if where:
        yield Caution(
            "note",
            "fused attention has no second derivatives",
            where,
            "nothing to do: the plain kernel is used, whose memory grows with the square "
            "of the length",
        )


def _custom(scene: Scene) -> Iterator[Caution]:
    for f in scene.seen.custom:
        if f.__name__ == "CheckpointFunction":
            yield Caution(
                "stop",
                "re-entrant activation checkpointing",
                ("torch.utils.checkpoint",),
                "pass use_reentrant=False: the re-entrant form has no second derivatives",
            )
            continue
        lacks = [name for name in ("setup_context", "jvp") if _inherits(f, name)]
        remedy = "nothing to do: it has all that torch.func needs"
        if lacks:
            remedy = (
                f"double backward differentiates it; define {' and '.join(lacks)} "
                "(and generate_vmap_rule) for torch.func"
            )
        yield Caution("note", "custom autograd function", (f.__name__,), remedy)


def _inherits(f: type, name: str) -> bool:
    return getattr(f, name, None) is getattr(Function, name, None)


def _wrong_backward(scene: Scene) -> Iterator[Caution]:
    wrong = tuple(f.matrix for f in scene.forecasts if f.way == "differences")
    if wrong:
        suspects = tuple(f.__name__ for f in scene.seen.custom)
        yield Caution(
            "care",
            "second derivatives by autograd are wrong, or there are none "
            f"({', '.join(wrong)})",
            suspects,
            "differences of first derivatives are taken, which are slower; let each custom "
            "backward compute with differentiable operations on saved tensors: no detach, "
            ".data or no_grad",
        )
    if scene.is_gradient_right is False:
        yield Caution(
            "care",
            "the gradient is not that of the loss: something is detached, or a custom "
            "backward is not the derivative",
            tuple(f.__name__ for f in scene.seen.custom),
            "if that is meant (a straight-through estimator, a target without gradient), "
            "so are these matrices",
        )


def _wrapped(scene: Scene) -> Iterator[Caution]:
    if not isinstance(scene.model, nn.Module):
        return
    if unwrapped(scene.model) is not scene.model:
        yield Caution(
            "note",
            "the model is wrapped",
            (type(scene.model).__name__,),
            "nothing to do: the module inside is differentiated; linearize(compile=True) "
            "compiles products",
        )


MODEL_RULES: tuple[Rule, ...] = (
    _fails,
    _dropout,
    _batch_norm,
    _wrong_backward,
    _custom,
    _attention,
    _written,
    _wrapped,
)
