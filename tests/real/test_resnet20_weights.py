"""The published CIFAR-10 ResNet-20 loads from its checkpoint and classifies real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alula.sources import load_model, parse_source

MODELS = Path(__file__).resolve().parents[1] / "support" / "models.py"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.mark.real
def test_resnet20_checkpoint_classifies_real_images(data_root: Path) -> None:
    folders = sorted(path for path in (data_root / "cifar10" / "test").iterdir() if path.is_dir())
    files = [(label, path) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())[:50]]
    assert len(files) == 500
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), np.float32) for _, path in files])
    x = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)

    source = parse_source(f"{MODELS}:resnet20", weights=data_root / "cifar10" / "resnet20.th")
    model = load_model(source)
    assert model.name == "resnet20"
    assert model.module is not None
    with torch.inference_mode():
        predicted = model.module(torch.from_numpy(np.ascontiguousarray(x))).argmax(dim=1).numpy()

    accuracy = np.mean(predicted == [label for label, _ in files])
    # About 81 % over all JPEGs of the test set; 75 % is more than three standard errors of 500 below.
    assert accuracy > 0.75
