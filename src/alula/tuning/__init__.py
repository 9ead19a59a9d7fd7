"""The search for the fastest accurate candidate, each trial in its own process."""

from alula.tuning.candidates import BATCH_SIZES, offered_recipes, settings_grid
from alula.tuning.comparison import (
    Comparison,
    Loss,
    compare_speeds,
    measure_latency,
    measure_round,
    measure_server,
)
from alula.tuning.journal import Journal, read_journal
from alula.tuning.messages import Described, DescribeRequest, Loaded, LoadModelRequest, LoadRequest
from alula.tuning.process import Child, ChildError
from alula.tuning.search import Finalist, SearchPlan, SearchResult, search
from alula.tuning.workshop import Workshop

__all__ = [
    "BATCH_SIZES",
    "Child",
    "ChildError",
    "Comparison",
    "DescribeRequest",
    "Described",
    "Finalist",
    "Journal",
    "LoadModelRequest",
    "LoadRequest",
    "Loaded",
    "Loss",
    "SearchPlan",
    "SearchResult",
    "Workshop",
    "compare_speeds",
    "measure_latency",
    "measure_round",
    "measure_server",
    "offered_recipes",
    "read_journal",
    "search",
    "settings_grid",
]
