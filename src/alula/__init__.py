"""Find the fastest accurate way to run a trained PyTorch model on this CPU, and run it.

>>> import alula
>>> alula.__version__
'0.1.0'
"""

from typing import TYPE_CHECKING, Any

from alula._version import __version__
from alula.errors import AlulaError

if TYPE_CHECKING:
    from alula.workflows import Bundle, Ensemble, Prediction, load, optimize

__all__ = ["AlulaError", "Bundle", "Ensemble", "Prediction", "__version__", "load", "optimize"]


def __getattr__(name: str) -> Any:
    # `import alula` stays fast and free of engines; the workflows come with their first use.
    if name in __all__:
        from alula import workflows

        return getattr(workflows, name)
    raise AttributeError(f"module `alula` has no attribute `{name}`")
