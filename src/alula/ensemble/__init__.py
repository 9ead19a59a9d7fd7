"""Several models as one: labels aligned by name, scores blended, one thread budget."""

from alula.ensemble.blending import Blender, rank_shares
from alula.ensemble.labels import Alignment, Placement, align_labels
from alula.ensemble.session import EnsembleSession, Member, shared_batch_size

__all__ = [
    "Alignment",
    "Blender",
    "EnsembleSession",
    "Member",
    "Placement",
    "align_labels",
    "rank_shares",
    "shared_batch_size",
]
