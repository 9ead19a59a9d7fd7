"""From a model and data to a bundle, in all the forms that both may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest_images import DESCRIPTION, LABELS, Optimized, write_images
from tiny import CLASSES, FEATURES, write_factory, write_onnx

from alula.bundle import read_manifest, verify
from alula.core import Accepted
from alula.engines.fake import SCRIPT_VARIABLE
from alula.errors import AccuracyError, BundleError, DataError, ModelError, UsageError
from alula.tuning import read_journal
from alula.workflows import Bundle, load, optimize
