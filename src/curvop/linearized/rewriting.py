"""Recorded graphs, made cheaper: rules that give the same numbers with less work.

Automatic differentiation adds zeros, transposes twice, and computes the gradient of a
convolution's weight as a convolution with data and channels exchanged, for which there are
no fast kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

Rule = Callable[[fx.Node], fx.Node | None]  # what to use instead of a node, if anything


def rewrite(graph: fx.GraphModule) -> None:
    """Apply the rules, in place, until none applies."""
    _apply((_view_of_view, _add_zeros, _add_transposed, _weight_gradient), graph)


def fuse(graph: fx.GraphModule) -> None:
    """Products that are added to something, in place: ``C + A B`` in one kernel."""
    _apply((_add_product,), graph)


def _apply(rules: tuple[Rule, ...], graph: fx.GraphModule) -> None:
    changed = True
    while changed:
        changed = False
        for node in graph.graph.nodes:
            if node.op != "call_function":
                continue
            for rule in rules:
                with graph.graph.inserting_before(node):
                    instead = rule(node)
                if instead is not None:
                    instead.meta.setdefault("tensor_meta", node.meta.get("tensor_meta"))
                    node.replace_all_uses_with(instead)
                    changed = True
                    break
        graph.graph.eliminate_dead_code()
    graph.recompile()


def shape(x: Any) -> tuple[int, ...] | None:
    """The shape of a node's value, where it is known to be a tensor."""
    meta = x.meta.get("tensor_meta") if isinstance(x, fx.Node) else None
    return None if meta is None or not hasattr(meta, "shape") else tuple(meta.shape)


def alike(a: Any, b: Any) -> bool:
    """Whether two nodes are known to be tensors of one shape and type."""
    if shape(a) is None or shape(a) != shape(b):
        return False
    return bool(a.meta["tensor_meta"].dtype == b.meta["tensor_meta"].dtype)


def _is(x: Any, *targets: Any) -> bool:
    return isinstance(x, fx.Node) and x.op == "call_function" and x.target in targets


def _only_used_by(x: fx.Node, user: fx.Node) -> bool:
    return list(x.users) == [user]


def _plain(node: fx.Node) -> bool:
    """Whether an addition is without a factor (``alpha``)."""
    return len(node.args) == 2 and not node.kwargs


def _new(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    return node.graph.call_function(target, args)


def _view_of_view(node: fx.Node) -> fx.Node | None:
    """Transposed twice, unsqueezed and selected again, or reshaped to the same shape."""
    x = node.args[0] if node.args else None
    if not isinstance(x, fx.Node):
        return None
    if _is(node, aten.t.default) and _is(x, aten.t.default):
        return _node(x.args[0])
    if _is(node, aten.transpose.int) and _is(x, aten.transpose.int):
        return _node(x.args[0]) if set(node.args[1:]) == set(x.args[1:]) else None
    if _is(node, aten.select.int) and _is(x, aten.unsqueeze.default):
        is_same = node.args[1] == x.args[1] and node.args[2] == 0
        return _node(x.args[0]) if is_same else None
    reshaping = (aten.reshape.default, aten.view.default, aten.expand.default)
    return x if _is(node, *reshaping) and alike(node, x) else None


def _node(x: Any) -> fx.Node | None:
    return x if isinstance(x, fx.Node) else None


def _add_zeros(node: fx.Node) -> fx.Node | None:
    zeros = (aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default)
    if not _is(node, aten.add.Tensor) or not _plain(node):
        return None
    for x, zero in (node.args, node.args[::-1]):
        if _is(zero, *zeros) and alike(x, node):
            return _node(x)
    return None


def _add_transposed(node: fx.Node) -> fx.Node | None:
    """``Aᵀ + Bᵀ = (A + B)ᵀ``: often transposed again."""
    if not _is(node, aten.add.Tensor) or not _plain(node):
        return None
    a, b = node.args
    if not _is(a, aten.t.default) or not _is(b, aten.t.default) or not alike(a, b):
        return None
    A, B = (_node(x.args[0]) for x in (a, b) if isinstance(x, fx.Node))
    if A is None or B is None or not alike(A, B):
        return None
    total = _new(node, aten.add.Tensor, A, B)
    total.meta["tensor_meta"] = A.meta["tensor_meta"]
    return _new(node, aten.t.default, total)


def _weight_gradient(node: fx.Node) -> fx.Node | None:
    """``(xᵀ * gᵀ)ᵀ``, cut to the kernel's size, where ``ᵀ`` exchanges the leading axes.

    Double backward of a convolution gives the gradient of its weight in this form.
    """
    if not _is_exchange(node) or not _is(node.args[0], aten.convolution.default):
        return None
    conv = node.args[0]
    assert isinstance(conv, fx.Node)
    xT, gT, bias, dilation, padding, stride, transposed, extra, groups = conv.args
    plain = bias is None and not transposed and groups == 1 and not any(_ints(extra))
    if not plain or not _is_exchange(xT) or not _is_exchange(gT):
        return None
    x, g = (t.args[0] for t in (xT, gT) if isinstance(t, fx.Node))
    kernel, last = shape(node), node
    while len(last.users) == 1:  # what is cut off does not belong to the kernel
        (user,) = last.users
        if not _is(user, aten.slice.Tensor) or user.args[2] != 0 or len(user.args) > 4:
            break
        kernel, last = shape(user), user
    if kernel is None:
        return None
    W = _new(node, aten.new_empty.default, x, list(kernel))  # only its shape counts
    settings = (stride, padding, dilation, False, [0] * (len(kernel) - 2), 1)
    mask = [False, True, False]
    both = _new(node, aten.convolution_backward.default, g, x, W, None, *settings, mask)
    gradient = _new(node, operator.getitem, both, 1)
    gradient.meta["tensor_meta"] = last.meta["tensor_meta"]
    return gradient


def _is_exchange(x: Any) -> bool:
    return _is(x, aten.transpose.int) and set(x.args[1:]) == {0, 1}


def _ints(x: Any) -> list[int]:
    return list(x) if isinstance(x, list | tuple) else [x]


def _add_product(node: fx.Node) -> fx.Node | None:
    """``C + A B``."""
    if not _is(node, aten.add.Tensor) or not _plain(node):
        return None
    kernels: dict[Any, Any] = {
        aten.mm.default: aten.addmm.default,
        aten.bmm.default: aten.baddbmm.default,
    }
    for C, product in (node.args, node.args[::-1]):
        if (
            _is(product, *kernels)
            and isinstance(product, fx.Node)
            and _only_used_by(product, node)
            and alike(product, node)
            and alike(C, node)
        ):
            return _new(node, kernels[product.target], C, *product.args)
    return None
