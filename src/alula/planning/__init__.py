"""Which ensemble fits into a time: costs, choice, cascade and the ladder for when time gets short.

Numbers and arrays only: what was measured and validated comes in, a plan comes out. Nothing is run here.
"""

from alula.planning.cascade import NARROWED_CLASSES, Cascade, JudgedCascade, judge_cascade, learn_cascade
from alula.planning.costs import (
    CostSheet,
    Duration,
    Machine,
    Member,
    Overlap,
    Stage,
    Workload,
    duration,
    in_words,
    parse_workload,
    row_loads,
)
from alula.planning.ladder import PlannedRung, declare_ladder
from alula.planning.plan import CascadeOffer, LeftOut, Plan, PlanStep, make_plan, plan_rows
from alula.planning.selection import EXHAUSTIVE_UP_TO, Picked, best_within
from alula.planning.validation import Blend, Validation, halves, weighted_mean

__all__ = [
    "EXHAUSTIVE_UP_TO",
    "NARROWED_CLASSES",
    "Blend",
    "Cascade",
    "CascadeOffer",
    "CostSheet",
    "Duration",
    "JudgedCascade",
    "LeftOut",
    "Machine",
    "Member",
    "Overlap",
    "Picked",
    "Plan",
    "PlanStep",
    "PlannedRung",
    "Stage",
    "Validation",
    "Workload",
    "best_within",
    "declare_ladder",
    "duration",
    "halves",
    "in_words",
    "judge_cascade",
    "learn_cascade",
    "make_plan",
    "parse_workload",
    "plan_rows",
    "row_loads",
    "weighted_mean",
]
