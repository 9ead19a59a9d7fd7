"""Which ensemble fits into a time: costs, choice, cascade and the ladder for when time gets short.

Numbers and arrays only: what was measured and validated comes in, a plan comes out. Nothing is run here.
"""

from alula.planning.costs import (
    CostSheet,
    Duration,
    Machine,
    Member,
    Overlap,
    Stage,
    Workload,
    duration,
    parse_workload,
    row_loads,
)
from alula.planning.ladder import declare_ladder

__all__ = [
    "CostSheet",
    "Duration",
    "Machine",
    "Member",
    "Overlap",
    "Stage",
    "Workload",
    "declare_ladder",
    "duration",
    "parse_workload",
    "row_loads",
]
