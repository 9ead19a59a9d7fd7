"""Networks to measure: architectures of timm with random weights that behave like trained ones.

Each factory serves on the command line too: `benchmarks/zoo.py:resnet50`.

Speed does not depend on the values of weights, with one exception: INT8 needs activations of ordinary
size. Freshly built networks do not have them, so the statistics of BatchNorm are measured on noise first;
each layer then gives values of unit scale. `eca_nfnet_l0` has no BatchNorm and is built to have such
activations.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"

INPUT_SHAPES: dict[str, tuple[int, int, int]] = {
    "resnet50": (3, 224, 224),
    "tf_efficientnet_b0_ns": (1, 128, 313),
    "eca_nfnet_l0": (1, 128, 313),
    "resnet18": (3, 224, 224),
    "mobilenetv3_large_100": (3, 224, 224),
    "tf_efficientnetv2_s_in21k": (1, 128, 313),
    "convnext_tiny": (3, 224, 224),
    "vit_small_patch16_224": (3, 224, 224),
}
"""Models by name with the shape (c, h, w) of one sample: an image, or a log-mel spectrogram."""

CALIBRATION_BATCHES = 4
CALIBRATION_BATCH = 16


def resnet50() -> nn.Module:
    """ResNet-50 for 1,000 classes, input (b, 3, 224, 224)."""
    # By default the last BatchNorm of each block starts at zero, which makes blocks of nothing.
    return _calibrated_on_noise("resnet50", _build("resnet50", num_classes=1000, zero_init_last=False))


def tf_efficientnet_b0_ns() -> nn.Module:
    """EfficientNet-B0 with TensorFlow's padding for 264 classes, input (b, 1, 128, 313)."""
    # `_ns` is a set of weights; the network of that name is this one.
    network = _build("tf_efficientnet_b0", num_classes=264, in_chans=1)
    return _calibrated_on_noise("tf_efficientnet_b0_ns", network)


def eca_nfnet_l0() -> nn.Module:
    """NFNet-L0 with efficient channel attention for 264 classes, input (b, 1, 128, 313)."""
    return _build("eca_nfnet_l0", num_classes=264, in_chans=1).eval()


def resnet18() -> nn.Module:
    """ResNet-18 for 1,000 classes, input (b, 3, 224, 224)."""
    return _calibrated_on_noise("resnet18", _build("resnet18", num_classes=1000, zero_init_last=False))


def mobilenetv3_large_100() -> nn.Module:
    """MobileNetV3-Large for 1,000 classes, input (b, 3, 224, 224)."""
    return _calibrated_on_noise("mobilenetv3_large_100", _build("mobilenetv3_large_100"))


def tf_efficientnetv2_s_in21k() -> nn.Module:
    """EfficientNetV2-S with TensorFlow's padding for 264 classes, input (b, 1, 128, 313)."""
    # `_in21k` is a set of weights; the network of that name is this one.
    network = _build("tf_efficientnetv2_s", num_classes=264, in_chans=1)
    return _calibrated_on_noise("tf_efficientnetv2_s_in21k", network)


def convnext_tiny() -> nn.Module:
    """ConvNeXt-T for 1,000 classes, input (b, 3, 224, 224)."""
    return _build("convnext_tiny").eval()


def vit_small_patch16_224() -> nn.Module:
    """ViT-S/16 for 1,000 classes, input (b, 3, 224, 224)."""
    return _build("vit_small_patch16_224").eval()


FACTORIES = (
    *(resnet50, tf_efficientnet_b0_ns, eca_nfnet_l0, resnet18, mobilenetv3_large_100),
    *(tf_efficientnetv2_s_in21k, convnext_tiny, vit_small_patch16_224),
)


def network(name: str) -> nn.Module:
    """Return a model of `INPUT_SHAPES` by name."""
    return {factory.__name__: factory for factory in FACTORIES}[name]()


def noise(name: str, n: int, *, seed: int = 0) -> np.ndarray:
    """Return standard normal samples for a model, float32 of shape (n, c, h, w)."""
    return np.random.default_rng(seed).standard_normal((n, *INPUT_SHAPES[name]), dtype=np.float32)


def calibrate(module: nn.Module, batches: Iterable[torch.Tensor]) -> nn.Module:
    """Set BatchNorm's statistics to the plain mean over batches; return the module in eval mode."""
    import torch

    norms = [child for child in module.modules() if isinstance(child, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: all batches count alike
    module.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()


def let_children_import_timm() -> None:
    """Put the folder that makes torchvision importable on `PYTHONPATH`, for child processes."""
    given = os.environ.get("PYTHONPATH", "")
    if str(SUPPORT) not in given.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), given]))


def _build(name: str, **options: Any) -> nn.Module:
    timm = import_timm()
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=False, **options)


def _calibrated_on_noise(name: str, module: nn.Module) -> nn.Module:
    import torch

    batches = (
        torch.from_numpy(noise(name, CALIBRATION_BATCH, seed=1 + index))
        for index in range(CALIBRATION_BATCHES)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # layers may be dropped at random in training mode
        return calibrate(module, batches)


def import_timm() -> Any:
    """Return timm. It imports torchvision, which fails beside a torch of another build without help."""
    if str(SUPPORT) not in sys.path:
        sys.path.insert(0, str(SUPPORT))
    if "timm" not in sys.modules:
        # Before the first try: a failed import of torchvision leaves a half-imported package behind.
        spec = importlib.util.spec_from_file_location("torchvision_hook", SUPPORT / "sitecustomize.py")
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    import timm

    return timm
