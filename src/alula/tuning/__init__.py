"""The search for the fastest accurate candidate, each trial in its own process."""

from alula.tuning.candidates import BATCH_SIZES, offered_recipes, settings_grid, startable_recipes
from alula.tuning.comparison import (
    Comparison,
    Loss,
    compare_speeds,
    measure_latency,
    measure_round,
    measure_server,
)
from alula.tuning.field import ROUNDED
from alula.tuning.files import read_note, write_note
from alula.tuning.journal import Journal, read_journal, standing
from alula.tuning.messages import (
    Counted,
    CountRequest,
    Described,
    DescribeRequest,
    ExportRequest,
    Loaded,
    LoadModelRequest,
    LoadRequest,
    PeaksMeasured,
    PeaksRequest,
)
from alula.tuning.process import Child, ChildError, end_group
from alula.tuning.roofline import measure_roofline
from alula.tuning.search import Finalist, SearchPlan, SearchResult, search
from alula.tuning.strategy import NO_TIME
from alula.tuning.workshop import Workshop

__all__ = [
    "BATCH_SIZES",
    "NO_TIME",
    "ROUNDED",
    "Child",
    "ChildError",
    "Comparison",
    "CountRequest",
    "Counted",
    "DescribeRequest",
    "Described",
    "ExportRequest",
    "Finalist",
    "Journal",
    "LoadModelRequest",
    "LoadRequest",
    "Loaded",
    "Loss",
    "PeaksMeasured",
    "PeaksRequest",
    "SearchPlan",
    "SearchResult",
    "Workshop",
    "compare_speeds",
    "end_group",
    "measure_latency",
    "measure_roofline",
    "measure_round",
    "measure_server",
    "offered_recipes",
    "read_journal",
    "read_note",
    "search",
    "settings_grid",
    "standing",
    "startable_recipes",
    "write_note",
]
