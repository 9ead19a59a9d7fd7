"""Data in: what the user has, as samples that can be read one by one and split fairly."""

from alula.data.arrays import read_array
from alula.data.audio import AUDIO_SUFFIXES, open_audio
from alula.data.formats import ARRAY_SUFFIXES, IMAGE_SUFFIXES, Kind, detect_kind, find_inputs, kind_of
from alula.data.image import MAX_PIXELS, read_image
from alula.data.opening import open_samples
from alula.data.samples import Item, Samples, Task
from alula.data.split import Split, split
from alula.data.tables import RowKey, ScoreTable, places_of, read_scores

__all__ = [
    "ARRAY_SUFFIXES",
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Item",
    "Kind",
    "RowKey",
    "Samples",
    "ScoreTable",
    "Split",
    "Task",
    "detect_kind",
    "find_inputs",
    "kind_of",
    "open_audio",
    "open_samples",
    "places_of",
    "read_array",
    "read_image",
    "read_scores",
    "split",
]
