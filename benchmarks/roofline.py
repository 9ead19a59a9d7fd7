"""What this CPU can multiply at most, and what that allows ResNet-50: a bound for every speed-up.

python benchmarks/roofline.py [--rounds 7] [--seconds 1] [--markdown FILE]

A chain of wide convolutions without anything else (512 channels on 28x28, batch 8) runs as close to
the CPU's peak as its best kernels get, in FP32 and in INT8, through OpenVINO with one stream a thread.
ResNet-50 at 224x224 has 4.09 GMAC (counted here from its layers), so peak / 4.09 bounds its samples/s;
that bound over eager PyTorch, measured in the same interleaved rounds, bounds its speed-up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import output
import zoo
from alula.core import Settings, Signature
from alula.engines import Session, engine_named
from alula.export import export_module
from alula.hardware import thread_budget
from alula.measure import Concurrency, Round, interleave
from alula.quantization import Material, quantizer_for

CHANNELS, SIZE, LAYERS, BATCH = 512, 28, 6, 8


def chain() -> object:
    """Return the chain of wide convolutions."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def gmacs(network: object, shape: tuple[int, ...]) -> float:
    """Return the multiply-accumulates of the convolutions and linear layers for one sample, in 1e9."""
    import torch
    from torch import nn

    total = 0

    def count(layer: nn.Module, _inputs: object, result: torch.Tensor) -> None:
        nonlocal total
        per_output = layer.weight.numel() // layer.weight.shape[0]
        total += result.numel() * per_output

    assert isinstance(network, nn.Module)
    hooks = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total / 1e9


def sessions(threads: int, folder: Path) -> tuple[dict[str, Session], np.ndarray]:
    """Return the chain in FP32 and INT8, loaded, and one batch for it."""
    sample = np.random.default_rng(0).standard_normal((BATCH, CHANNELS, SIZE, SIZE)).astype(np.float32)
    (folder / "onnx").mkdir()
    signature: Signature = export_module(
        chain(), [sample[:2]], target="onnx", folder=folder / "onnx"
    ).signature
    settings = Settings(threads=1, instances=threads, batch_size=BATCH)
    engine = engine_named("openvino")
    loaded = {}
    for recipe in (Recipe("openvino", "fp32"), Recipe("openvino", "int8", "nncf")):
        artifact = folder / recipe.precision
        artifact.mkdir()
        if recipe.precision == "fp32":
            engine.build(folder / "onnx", artifact, recipe=recipe)
        else:
            material = Material(
                export=folder / "onnx",
                module=lambda: network,
                batches=lambda: iter([(sample,)]),
                signature=signature,
                saturating=False,
            )
            quantizer_for(recipe).quantize(material, artifact, recipe=recipe)
        loaded[recipe.precision] = engine.load(
            artifact, recipe=recipe, signature=signature, settings=settings
        )
    return loaded, sample


def eager(batch: int, threads: int) -> Callable[[float], Round]:
    """Return a timer of ResNet-50 in eager PyTorch."""
    import torch

    network = zoo.resnet50()
    x = torch.randn(batch, 3, 224, 224)
    torch.set_num_threads(threads)

    def run(_instance: int) -> int:
        with torch.inference_mode():
            network(x)
        return batch

    def measure(seconds: float) -> Round:
        with Concurrency(1) as concurrency:
            return concurrency.round(run, seconds=seconds)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    output.add_markdown_option(parser)
    options = parser.parse_args()
    threads = thread_budget()
    resnet_gmac = gmacs(zoo.network("resnet50"), zoo.INPUT_SHAPES["resnet50"])
    chain_gmac = gmacs(chain(), (CHANNELS, SIZE, SIZE))
    with tempfile.TemporaryDirectory() as scratch:
        loaded, sample = sessions(threads, Path(scratch))

        def timer(session: Session) -> Callable[[float], Round]:
            def run(_instance: int) -> int:
                session.run((sample,))
                return BATCH

            def measure(seconds: float) -> Round:
                with Concurrency(threads) as concurrency:
                    return concurrency.round(run, seconds=seconds)

            return measure

        contenders = {f"chain {name}": timer(session) for name, session in loaded.items()}
        contenders |= {f"eager resnet50, batch {batch}": eager(batch, threads) for batch in (1, 8, 32)}
        for measure in contenders.values():
            measure(0.5)
        output.say(f"{options.rounds} rounds of {options.seconds} s")
        rounds = interleave(contenders, rounds=options.rounds, seconds=options.seconds).rounds
    per_s = {name: float(np.median([item.per_s for item in items])) for name, items in rounds.items()}
    best_eager = max(value for name, value in per_s.items() if name.startswith("eager"))
    rows = []
    for name in ("fp32", "int8"):
        peak = per_s[f"chain {name}"] * chain_gmac
        bound = peak / resnet_gmac
        rows.append([name, f"{peak:.0f}", f"{bound:.1f}", f"{best_eager:.1f}", f"{bound / best_eager:.2f}"])
    text = output.table(
        [
            "precision",
            "peak GMAC/s",
            "ResNet-50 at peak, images/s",
            "eager, images/s",
            "bound of the speed-up",
        ],
        rows,
    )
    output.publish(
        f"ResNet-50: {resnet_gmac:.2f} GMAC an image. {time.strftime('%Y-%m-%d')}.\n\n{text}",
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
