"""What can be a model: modules, factories, timm and torchvision names, exported files, with their weights.

`parse_source` turns what a user wrote into a `Source`, a small value that any other process can turn
into the model with `load_model`. A source is trusted like a program: factories, modules, TorchScript and
`.pt2` files are code. Weights are not: they are read without running anything from the file.
"""

from alula.sources.load import load_model
from alula.sources.parse import parse_source
from alula.sources.types import Kind, LoadedModel, Source

__all__ = ["Kind", "LoadedModel", "Source", "load_model", "parse_source"]
