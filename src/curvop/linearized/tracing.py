"""A product recorded once, and split into what depends on the vector and what does not.

The *primal* graph depends on parameters and data only. It runs once per batch, and its
results are kept. The *tangent* graph takes them and a vector: it is all that is left to do
for each product, and it is linear.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, jvp, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from curvop.derivatives import (
    Aux,
    ChunkSize,
    Differentiable,
    Linearization,
    OnOneGraph,
    hessian_map,
)
from curvop.linearized.rewriting import alike, rewrite
from curvop.operators import Blocks
from curvop.risk import TURN, Parameters

Call = Callable[..., list[Tensor]]
aten = torch.ops.aten


@final
class Recordable(OnOneGraph):
    """One column by compositions that ``make_fx`` records as a graph of plain tensors."""

    name = "recorded"

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """Reverse over reverse.

        Forward over reverse gives a tangent graph that is a tenth smaller, but recording
        it crashes the interpreter where a gradient has no forward mode (mse_loss in torch
        2.13: a zero tensor without memory reaches a kernel).
        """
        multiply, aux = hessian_map(f, at.tensors)
        return [b[None] for b in multiply(*(b[0] for b in V))], aux

    @contextmanager
    def linear(self, f: Differentiable, at: Parameters) -> Iterator[Linearization]:
        """Forward and reverse mode; the primal that they share is merged later."""

        def push(V: Blocks) -> Blocks:
            with TURN:
                _, Jv = jvp(  # type: ignore[misc]
                    lambda *p: f(p)[0], at.tensors, tuple(b[0] for b in V)
                )
            return [b[None] for b in Jv]

        outputs, vjp_fn, aux = vjp(  # type: ignore[misc]
            lambda *p: f(p), *at.tensors, has_aux=True
        )
        yield Linearization(
            outputs,
            aux,
            jvp=push,
            vjp=lambda U: [b[None] for b in vjp_fn(tuple(u[0] for u in U))],
        )


@dataclass(frozen=True)
class Recording:
    """A product, recorded.

    Attributes:
        primal: ``(*static) -> kept``.
        tangent: ``(*kept, *moving) -> results``.
    """

    primal: fx.GraphModule
    tangent: fx.GraphModule


def record(
    product: Callable[..., list[list[Tensor]]],
    static: Sequence[Tensor],
    *movings: Sequence[Tensor],
) -> list[Recording]:
    """Record ``product(*static, *moving, ...)`` and split it.

    Args:
        product: Returns a list of tensors for each group of moving ones, linear in it.
        static: Parameters and data: whatever stays between products.
        *movings: The vectors. Usually one; a Jacobian and its transpose take two.

    Returns:
        A recording for each vector. They share their primal part.
    """
    # one fake mode for the metadata of all nodes; by default each makes its own, with a
    # trace of the stack, in twice the time
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with torch.no_grad(), tracing(context), _RecordableLdexp():
        # functionalize: what is written in place could not be merged or split
        graph = make_fx(functionalize(product))(*static, *itertools.chain(*movings))
    simplify(graph)
    return _split(graph, len(static), [len(moving) for moving in movings])


class _RecordableLdexp(TorchFunctionMode):
    """``x 2ⁿ``: recording torch's own in forward mode crashes the interpreter (2.13)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ldexp, Tensor.ldexp) and not kwargs:
            x, n = args
            return x * 2.0**n
        return func(*args, **(kwargs or {}))


def simplify(graph: fx.GraphModule) -> None:
    """Drop what does nothing and merge what is computed twice, in place."""
    nothing = {
        aten.detach.default,
        aten.alias.default,
        aten.lift_fresh_copy.default,
    }
    views = {aten.view.default, aten._unsafe_view.default}
    if any(_writes(node) for node in graph.graph.nodes):
        return  # what is written to must not be merged
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        if node.target in nothing:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            continue
        if node.target is aten.copy.default and alike(*node.args[:2]):
            node.replace_all_uses_with(node.args[1])  # functionalize leaves them behind
            graph.graph.erase_node(node)
            continue
        if node.target in views:
            # strides may differ between recording, vmap and replay
            node.target = aten.reshape.default
        twin = seen.setdefault(_key(node), node)
        if twin is not node:
            node.replace_all_uses_with(twin)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    rewrite(graph)


def _writes(node: fx.Node) -> bool:
    """Whether a node writes to one of its inputs."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _key(node: fx.Node) -> Any:
    """What determines the value of a node; itself where it has an effect."""
    if node.op == "call_function" and node.is_impure():
        return node
    try:
        key = (node.op, node.target, _hashable(node.args), _hashable(node.kwargs))
        hash(key)
    except TypeError:
        return node
    return key


def _hashable(x: Any) -> Any:
    if isinstance(x, dict):
        return tuple((k, _hashable(v)) for k, v in sorted(x.items()))
    if isinstance(x, list | tuple):
        return tuple(_hashable(v) for v in x)
    return (type(x), x)


def _split(graph: fx.GraphModule, num_static: int, counts: list[int]) -> list[Recording]:
    """Cut between the nodes that depend on a vector and those that do not."""
    nodes = list(graph.graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder"]
    (output,) = (n for n in nodes if n.op == "output")
    moving = set(inputs[num_static:])
    for n in nodes:
        if n is not output and any(a in moving for a in n.all_input_nodes):
            moving.add(n)
    groups = output.args[0]
    results = [n for group in groups for n in group]
    frontier = [
        n
        for n in nodes
        if n not in moving
        and n.op not in ("output", "get_attr")
        and (n in results or any(u in moving for u in n.users))
    ]
    primal = _part(
        graph, inputs[:num_static], [n for n in nodes if n not in moving], frontier
    )
    recordings, start = [], num_static
    for group, count in zip(groups, counts, strict=True):
        needed = _ancestors(group)
        body = [n for n in nodes if n in needed and (n in moving or n.op == "get_attr")]
        own = inputs[start : start + count]
        tangent = _part(graph, [*frontier, *own], body, list(group))
        recordings.append(Recording(primal, tangent))
        start += count
    return recordings


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Nodes and all that they are computed from."""
    found: set[fx.Node] = set()
    reached = list(nodes)
    while reached:
        n = reached.pop()
        if n not in found:
            found.add(n)
            reached += n.all_input_nodes
    return found


def _part(
    graph: fx.GraphModule,
    inputs: list[fx.Node],
    body: list[fx.Node],
    outputs: list[fx.Node],
) -> fx.GraphModule:
    """A graph of its own for some nodes of another."""
    part = fx.Graph()
    copy: dict[fx.Node, fx.Node] = {n: part.placeholder(n.name) for n in inputs}
    for n in body:
        if n not in copy and n.op not in ("placeholder", "output"):
            copy[n] = part.node_copy(n, copy.__getitem__)
    part.output([copy[n] for n in outputs])
    part.eliminate_dead_code()
    return fx.GraphModule(graph, part)
