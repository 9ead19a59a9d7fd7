"""The contract of engines and quantizers, for each one in the registries.

A new engine or quantizer is tested by being registered. An FP32 recipe must agree with the module, an INT8
recipe must resemble it, and the scripted engine must do what its script says.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alula.core import ARTIFACT_FILES, Settings
from alula.engines import Arrays, Engine, Session, check_inputs, engine_named, engine_names
from alula.errors import EngineError, EngineUnavailableError
from alula.quantization import Quantizer, quantizer_for, quantizer_names

from .conftest import RECIPES, Loadable, Subject, built, parts_of
