"""The search for the fastest accurate candidate, each trial in its own process."""

from alula.tuning.candidates import BATCH_SIZES, offered_recipes, settings_grid
from alula.tuning.comparison import Comparison, Loss, compare_speeds
from alula.tuning.journal import Journal, read_journal
from alula.tuning.messages import LoadRequest
from alula.tuning.process import Child, ChildError
from alula.tuning.search import Finalist, SearchPlan, SearchResult, search

__all__ = [
    "BATCH_SIZES",
    "Child",
    "ChildError",
    "Comparison",
    "Finalist",
    "Journal",
    "LoadRequest",
    "Loss",
    "SearchPlan",
    "SearchResult",
    "compare_speeds",
    "offered_recipes",
    "read_journal",
    "search",
    "settings_grid",
]
