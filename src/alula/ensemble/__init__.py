"""Several models as one: labels aligned by name, scores blended, one thread budget."""

from alula.ensemble.blending import Blender, rank_shares
from alula.ensemble.labels import Alignment, Placement, align_labels

__all__ = ["Alignment", "Blender", "Placement", "align_labels", "rank_shares"]
