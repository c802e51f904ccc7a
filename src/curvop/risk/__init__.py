"""The empirical risk that the user defines: data, parameters, loss, reduction, ranks."""

from curvop.risk import nested
from curvop.risk.context import preserved
from curvop.risk.data import Data
from curvop.risk.dependence import UNUSED, check_dependence, in_graph
from curvop.risk.distributed import all_reduce, failing_together
from curvop.risk.double_precision import NO_COPY
from curvop.risk.gradient import gradient_of_batch, gradient_over_data, loss_and_gradient
from curvop.risk.loss_of_parameters import (
    dependent,
    read_by,
    refuse,
    refuse_hidden,
    refuse_reading,
    settled,
)
from curvop.risk.losses import CONVEX, Loss, LossFunction, as_loss, kind_of, told_reduction
from curvop.risk.merging import Batch, merge
from curvop.risk.nested import differentiable, map_tensors, refill, tensors
from curvop.risk.parameters import (
    Given,
    Model,
    Parameters,
    as_parameters,
    constant,
    listed,
    predicted,
    unwrapped,
)
from curvop.risk.predictive import (
    Draw,
    Sampler,
    by_class,
    by_class_back,
    check_predictive,
    direction,
    register_predictive,
    registered,
)
from curvop.risk.random_numbers import fingerprints, uniform
from curvop.risk.reduction import Divisor, total_divisor
from curvop.risk.risk import Predictions, Risk
from curvop.risk.substitution import (
    TURN,
    buffer_slots,
    copied,
    modules_in,
    parameter_slots,
    substituted,
    tensors_in,
)
from curvop.risk.unpacking import Unpack, Weighted, takes_weight

__all__ = [
    "CONVEX",
    "NO_COPY",
    "TURN",
    "UNUSED",
    "Batch",
    "Data",
    "Divisor",
    "Draw",
    "Given",
    "Loss",
    "LossFunction",
    "Model",
    "Parameters",
    "Predictions",
    "Risk",
    "Sampler",
    "Unpack",
    "Weighted",
    "all_reduce",
    "as_loss",
    "as_parameters",
    "buffer_slots",
    "by_class",
    "by_class_back",
    "check_dependence",
    "check_predictive",
    "constant",
    "copied",
    "dependent",
    "differentiable",
    "direction",
    "failing_together",
    "fingerprints",
    "gradient_of_batch",
    "gradient_over_data",
    "in_graph",
    "kind_of",
    "listed",
    "loss_and_gradient",
    "map_tensors",
    "merge",
    "modules_in",
    "nested",
    "parameter_slots",
    "predicted",
    "preserved",
    "read_by",
    "refill",
    "refuse",
    "refuse_hidden",
    "refuse_reading",
    "register_predictive",
    "registered",
    "settled",
    "substituted",
    "takes_weight",
    "tensors",
    "tensors_in",
    "told_reduction",
    "total_divisor",
    "uniform",
    "unwrapped",
]
