"""Parameters: names, blocks, and the model as a function of them."""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Set,
)
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from curvop.autograd import kernels_for
from curvop.operators import Space, norm, probe
from curvop.risk.substitution import (
    TURN,
    buffer_slots,
    can_be_mirrored,
    copied,
    mirrored,
    modules_in,
    parameter_slots,
    substituted,
    tensors_in,
)

Model = Callable[[Sequence[Tensor], Any], Any]  # (parameters, X) -> prediction
Given = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Mapping[str, Tensor]
Place = Callable[[Sequence[Tensor]], AbstractContextManager[None]]


def _nowhere(_: Sequence[Tensor]) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Parameters:
    """The parameters that an operator acts on, and the model as a function of them.

    Attributes:
        tensors: The parameters, in the order of the blocks.
        names: Their names, if they have any.
        model: ``(parameters, X) -> prediction``; leaves buffers as they are.
        functional: Whether ``model`` computes with the parameters that it is passed. A
            closure over tensors does not: it can only be differentiated in place.
        watched: All tensors that the model is known to compute with.
        place: Context in which the user's own model has these parameters; other threads
            wait.
        around: Context for the model's call and its differentiation.
        doubled: The same parameters and model in double precision, where that needs no
            copy of more than tensors.
        read: Positions of those that the loss refers to, so that it may depend on them
            other than through the prediction. They are differentiated in place.
        unread: The same parameters, to be used if the loss does not depend on them.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None
    model: Model
    functional: bool
    watched: tuple[Tensor, ...] = ()
    place: Place = _nowhere
    around: Place = _nowhere
    doubled: Callable[[], Parameters] | None = None
    read: tuple[int, ...] = ()
    unread: Parameters | None = None

    @property
    def space(self) -> Space:
        """The block space of the parameters."""
        return Space(tuple(p.shape for p in self.tensors), self.names)

    @property
    def dtype(self) -> torch.dtype:
        """The common type that all parameters promote to."""
        dtype = self.tensors[0].dtype
        for p in self.tensors[1:]:
            dtype = torch.promote_types(dtype, p.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        """The device of all parameters."""
        return self.tensors[0].device

    @property
    def convolutional(self) -> bool:
        """Whether a parameter has the shape of a convolution's weight."""
        return any(p.ndim >= 3 for p in self.tensors)

    def only(self, block: slice) -> Parameters:
        """Some of the parameters; the others are constants."""
        before, after = self.tensors[: block.start], self.tensors[block.stop :]
        doubled = self.doubled

        def completed(p: Sequence[Tensor]) -> list[Tensor]:
            head, tail = ([constant(q) for q in qs] for qs in (before, after))
            return [*head, *p, *tail]

        return Parameters(
            self.tensors[block],
            None if self.names is None else self.names[block],
            lambda p, X: self.model(completed(p), X),
            self.functional,
            self.watched,
            lambda p: self.place(completed(p)),
            lambda p: self.around(completed(p)),
            None if doubled is None else lambda: doubled().only(block),
            tuple(i - block.start for i in self.read if block.start <= i < block.stop),
        )

    def shifted(self) -> Parameters:
        """Other values of the parameters, a percent away.

        Raises:
            ValueError: If the model is not a function of them.
        """
        if not self.functional:
            raise ValueError("a closure computes with its own tensors")
        values = [constant(p) for p in self.tensors]
        u = probe(values)
        c = 1e-2 * (1 + norm(values)) / norm(u)
        there = tuple(p + c * d for p, d in zip(values, u, strict=True))
        return replace(self, tensors=there)

    @contextmanager
    def leaves(self) -> Iterator[tuple[Tensor, ...]]:
        """Tensors to differentiate with respect to, for the time of the context.

        Fresh leaves for a functional model. For a closure the user's own tensors: those
        that do not require a gradient do so until the context ends.
        """
        if self.functional:
            fresh = tuple(constant(p).requires_grad_() for p in self.tensors)
            with self.around(fresh):
                yield fresh
            return
        with TURN:
            frozen = [p for p in self.tensors if not p.requires_grad]
            try:
                for p in frozen:
                    p.requires_grad_(True)
                with self.around(self.tensors):
                    yield self.tensors
            finally:
                for p in frozen:
                    p.requires_grad_(False)

    @contextmanager
    def moved(self, v: Sequence[Tensor], h: float) -> Iterator[Parameters]:
        """The parameters ``θ + h v``, for the time of the context.

        For a closure the user's own tensors have these values until the context ends;
        what they had comes back bit for bit, and unknown to autograd.
        """
        pairs = zip(self.tensors, v, strict=True)
        there = tuple(torch.add(constant(p), b, alpha=h) for p, b in pairs)
        if self.functional:
            yield replace(self, tensors=there)
            return
        with TURN:
            found = [p.data for p in self.tensors]
            try:
                for p, t in zip(self.tensors, there, strict=True):
                    p.data = t
                yield self
            finally:
                for p, data in zip(self.tensors, found, strict=True):
                    p.data = data


def constant(p: Tensor) -> Tensor:
    """The values of a parameter, outside of any graph.

    Those made in inference mode are copied: autograd refuses to save them.
    """
    return p.clone() if p.is_inference() else p.detach()


def listed(params: Given) -> dict[str, Tensor] | list[Tensor]:
    """The user's parameters as a list, or as a dict if they have names.

    Args:
        params: A module stands for those of its parameters that require a gradient;
            pairs, as from ``model.named_parameters()``, for a mapping.

    Raises:
        TypeError: If there is no order, or no parameters.
        ValueError: If the module has none, or one name comes twice.
    """
    if isinstance(params, nn.ParameterDict):
        return dict(params.items())
    if isinstance(params, nn.Module) and not isinstance(params, nn.ParameterList):
        found: list[Tensor] = [p for p in params.parameters() if p.requires_grad]
        if not found:
            raise ValueError(
                "Expected at least one parameter, got none: no parameter of the "
                f"{type(params).__name__} requires a gradient. Pass "
                "list(model.parameters()) to differentiate by those that do not."
            )
        return found
    if isinstance(params, Tensor):
        raise TypeError("Expected a list or dict of parameters, got one tensor: [p].")
    if isinstance(params, Mapping):
        return dict(params)
    is_view = isinstance(params, KeysView | ItemsView | Sequence)
    if isinstance(params, Set) and not is_view:
        raise TypeError(
            f"Expected parameters in an order, got a {type(params).__name__}: the blocks "
            "of a vector follow it. Pass a list or a dict, for instance "
            "list(model.parameters())."
        )
    if not isinstance(params, Iterable):
        raise TypeError(
            f"Expected a list or dict of parameters, got {type(params).__name__}. Pass "
            "list(model.parameters())."
        )
    values: list[Any] = list(params)
    if not values or not all(map(_is_named, values)):
        return values
    named = dict(values)
    if len(named) < len(values):
        raise ValueError("Expected each name once among the named parameters.")
    return named


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def as_parameters(model_func: Any, params: Given, loss_func: Any = None) -> Parameters:
    """The user's model and parameters, checked.

    Args:
        model_func: An ``nn.Module``; a callable ``X -> prediction`` over the given
            parameters; or, with a mapping of parameters, a callable
            ``(params, X) -> prediction``.
        params: Tensors, or tensors with names; see :func:`listed`.
        loss_func: The loss. Parameters that it refers to may be its own.

    Raises:
        TypeError: If a parameter is not a floating-point tensor, or the model not callable.
        ValueError: If there are none; if one comes twice, is not initialised, or does not
            belong to the module under its name; or if they are on several devices.
    """
    if not callable(model_func):
        raise TypeError(
            f"Expected a module or a callable as model, got {type(model_func).__name__}."
        )
    given = listed(params)
    keys = list(given) if isinstance(given, dict) else None
    values = list(given.values()) if isinstance(given, dict) else given
    _refuse_uninitialised(model_func)
    _check(values, keys)
    reached = {} if loss_func is None else tensors_in(loss_func)
    read = tuple(i for i, p in enumerate(values) if id(p) in reached)
    is_apart = True
    if isinstance(model_func, nn.Module):
        module = unwrapped(model_func)
        names = _names_in(module, values, keys, _names_of_loss(loss_func, reached))
        _refuse_other_values(module, names, values, reached)
        parameters = _of_module(module, values, keys, names)
        belongs = {id(p) for p in module.parameters()}
        is_apart = all(id(values[i]) in belongs for i in read)
    else:
        parameters = _of_function(model_func, values, keys)
    if not read:
        return parameters
    # the loss finds them in its own places, so the model must, too
    return replace(
        parameters,
        functional=False,
        doubled=None,
        read=read,
        unread=parameters if is_apart else None,
    )


def _refuse_other_values(
    module: nn.Module,
    names: Sequence[str],
    values: Sequence[Tensor],
    reached: Mapping[int, Tensor],
) -> None:
    """Refuse other tensors in place of parameters that the loss refers to.

    Raises:
        ValueError: If there are any: the loss would not see them.
    """
    everything = dict(module.named_parameters())
    for name, p in zip(names, values, strict=True):
        own = everything.get(name)
        if own is not None and own is not p and id(own) in reached:
            raise ValueError(
                f"The loss refers to the module's own {name!r}, for which params has "
                "another tensor. Pass the module's own, for instance "
                "list(model.parameters())."
            )


def _names_of_loss(loss_func: Any, reached: Mapping[int, Tensor]) -> dict[int, str]:
    """Names for the tensors that a loss refers to, by identity."""
    names = {i: f"loss.{n}" for n, i in enumerate(reached)}
    if isinstance(loss_func, nn.Module):
        names |= {id(p): f"loss.{name}" for name, p in loss_func.named_parameters()}
    return names


def _refuse_uninitialised(model_func: Any) -> None:
    """Refuse lazy modules before their first forward pass.

    Raises:
        ValueError: If the model has one.
    """
    modules = [model_func] if isinstance(model_func, nn.Module) else modules_in(model_func)
    for module in modules:
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            if is_lazy(t):
                raise ValueError(
                    f"Expected a model whose parameters have values, got {name!r} of "
                    f"{type(module).__name__}, which is not initialised yet. Run one "
                    "forward pass first, as in model(X)."
                )


def _of_module(
    module: nn.Module,
    values: list[Tensor],
    keys: list[str] | None,
    names: list[str],
) -> Parameters:
    """Some of a module's parameters; the others are constants."""
    everything = dict(module.named_parameters())
    position = {
        id(everything[name]): i for i, name in enumerate(names) if name in everything
    }
    places = parameter_slots(module)
    slots = [slot for slot, _ in places]
    buffers, kernels = buffer_slots([module]), kernels_for([module])
    is_mirrored = can_be_mirrored(module)
    # embeddings with max_norm write to their weight when called
    renormalised = {id(m) for m in module.modules() if getattr(m, "max_norm", None)}
    index = {
        (id(m), key): position[id(p)]
        for m in module.modules()
        for key, p in m._parameters.items()
        if p is not None and id(p) in position
    }

    def made(tensors: Sequence[Tensor], cast: Callable[[Tensor], Tensor]) -> Parameters:
        attribute = None if cast is _as_it_is else cast

        def copy(b: Tensor) -> Tensor:
            return cast(b).clone()  # forward may write running statistics

        @contextmanager
        def place(p: Sequence[Tensor]) -> Iterator[None]:
            there = [
                p[position[id(q)]] if id(q) in position else cast(constant(q))
                for _, q in places
            ]
            with copied(buffers, copy), substituted(slots, there):
                yield

        def model(p: Sequence[Tensor], X: Any) -> Any:
            def parameter(owner: int, key: str, q: Tensor) -> Tensor:
                i = index.get((owner, key))
                there = cast(constant(q)) if i is None else p[i]
                return there.clone() if owner in renormalised else there

            if is_mirrored:
                with kernels():
                    return predicted(mirrored(module, parameter, copy, attribute)(X))
            with place(p), kernels():
                return predicted(module(X))

        return Parameters(
            tuple(tensors),
            tuple(keys or names),
            model,
            functional=True,
            watched=_watched(values, [module]),
            place=place,
            # activation checkpointing calls modules again in the backward pass
            around=_nowhere if is_mirrored else place,
            doubled=lambda: made([in_double(constant(t)) for t in tensors], in_double),
        )

    return made(values, _as_it_is)


def _of_function(
    function: Callable[..., Any], values: list[Tensor], keys: list[str] | None
) -> Parameters:
    """The parameters of a closure over them, or of a function ``(params, X)``."""
    modules = modules_in(function)
    buffers, kernels = buffer_slots(modules), kernels_for(modules)
    constants = [slot for module in modules for slot, _ in parameter_slots(module)]

    def made(tensors: Sequence[Tensor], cast: Callable[[Tensor], Tensor]) -> Parameters:
        @contextmanager
        def place(_: Sequence[Tensor]) -> Iterator[None]:
            with copied(buffers, lambda b: cast(b).clone()):
                if cast is _as_it_is:
                    yield
                else:
                    with copied(constants, lambda q: cast(constant(q))):
                        yield

        def model(p: Sequence[Tensor], X: Any) -> Any:
            with place(p), kernels():
                if keys is None:
                    return predicted(function(X))
                return predicted(function(dict(zip(keys, p, strict=True)), X))

        return Parameters(
            tuple(tensors),
            None if keys is None else tuple(keys),
            model,
            functional=keys is not None,
            watched=_watched(values, modules),
            place=place,
            around=place,
            doubled=None
            if keys is None
            else lambda: made([in_double(constant(t)) for t in tensors], in_double),
        )

    return made(values, _as_it_is)


def predicted(output: Any) -> Any:
    """The prediction in an output: its logits, if it has any (``transformers``)."""
    if isinstance(output, Tensor | tuple):
        return output
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output


def in_double(t: Tensor) -> Tensor:
    """In double precision, if it is floating-point."""
    return t.double() if t.is_floating_point() else t


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _watched(values: list[Tensor], modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """All tensors that the model is known to compute with."""
    held = [p for m in modules for p in (*m.parameters(), *m.buffers())]
    return tuple({id(t): t for t in [*values, *held]}.values())


def _names_in(
    module: nn.Module,
    values: list[Tensor],
    keys: list[str] | None,
    names_of_loss: Mapping[int, str],
) -> list[str]:
    """The names of parameters in the module, or else in the loss.

    Raises:
        ValueError: If one belongs to neither, or has the name of another.
    """
    everything = dict(module.named_parameters())  # a tied parameter comes once
    every_name = dict(module.named_parameters(remove_duplicate=False))
    name_of = {id(p): name for name, p in everything.items()}
    names = []
    for i, p in enumerate(values):
        name = name_of.get(id(p))
        key = None if keys is None else keys[i]
        if name is not None and key in every_name and every_name[key] is not p:
            raise ValueError(
                f"Parameter {key!r} of params is the module's {name!r}, and the module has "
                f"another {key!r}. Pass dict(model.named_parameters()), or part of it."
            )
        if name is None and key in everything:
            name = key  # other values for a parameter of this name
        if name is None:
            name = names_of_loss.get(id(p))
        if name is None:
            raise ValueError(
                f"Parameter {i if key is None else repr(key)} of shape "
                f"{tuple(p.shape)} does not belong to the module. Pass its own "
                "parameters, for instance list(model.parameters()), not copies."
            )
        if name in names:
            raise ValueError(
                f"Expected each parameter once, got two tensors for {name!r}. Pass "
                "dict(model.named_parameters()), or part of it."
            )
        names.append(name)
    return names


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and data-parallel wrappers.

    Compiled code has no double backward, and replicas would be reduced twice.
    """
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(
            module, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = module.module
        if inner is None:
            return module
        module = inner


def _check(values: list[Any], keys: list[str] | None) -> None:
    if not values:
        raise ValueError(
            "Expected at least one parameter, got none. Pass list(model.parameters())."
        )
    for i, p in enumerate(values):
        if not isinstance(p, Tensor):
            raise TypeError(
                f"Expected tensors as parameters, got {type(p).__name__} at position {i}."
            )
        if is_lazy(p):
            raise ValueError(
                f"Expected parameters with values, got {i if keys is None else keys[i]!r}, "
                "which is not initialised yet. Run one forward pass first, as in model(X)."
            )
        if not p.is_floating_point():
            raise TypeError(
                f"Expected floating-point parameters, got {p.dtype} at position {i}."
            )
        if p.device != values[0].device:
            raise ValueError(
                f"Expected parameters on one device, got {values[0].device} and {p.device}."
            )
    if len({id(p) for p in values}) < len(values):
        raise ValueError("Expected each parameter once; one of them comes twice.")
