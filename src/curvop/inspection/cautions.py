"""What needs care, by all rules."""

from __future__ import annotations

from curvop.inspection.data_rules import DATA_RULES
from curvop.inspection.model_rules import MODEL_RULES
from curvop.inspection.parameter_rules import PARAMETER_RULES
from curvop.inspection.results import Caution
from curvop.inspection.scene import Scene

RULES = (*DATA_RULES, *MODEL_RULES, *PARAMETER_RULES)
_GRAVITY = {"stop": 0, "care": 1, "note": 2}


def cautions(scene: Scene) -> tuple[Caution, ...]:
    """What the rules find, the gravest first."""
    found = [caution for rule in RULES for caution in rule(scene)]
    return tuple(sorted(found, key=lambda c: _GRAVITY[c.severity]))
