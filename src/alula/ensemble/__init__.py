"""Several models as one: labels aligned by name, scores blended, one thread budget."""

from alula.ensemble.blending import Blender, rank_shares
from alula.ensemble.cascading import Bands, cascaded
from alula.ensemble.labels import Alignment, Placement, align_labels
from alula.ensemble.session import EnsembleSession, Member, cascade_batch_size, shared_batch_size

__all__ = [
    "Alignment",
    "Bands",
    "Blender",
    "EnsembleSession",
    "Member",
    "Placement",
    "align_labels",
    "cascade_batch_size",
    "cascaded",
    "rank_shares",
    "shared_batch_size",
]
