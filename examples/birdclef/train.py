"""Train the networks of a pipeline for some minutes: `python train.py c CLIPS -o weights`.

CLIPS is what `alula optimize` takes as labelled audio: a folder of class folders, or a table
`path,label,start_s,end_s`, in which a row may have several labels.

A few passes over some hundred windows, from random weights; the large detectors of pipeline B go on from what
its classifiers have learned. That gives scores that follow a sound, which is enough to see what an engine, a
blend or a cascade does to them. It gives no good detector of birds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pipelines import HERE, Member, Pipeline, read_pipeline
from safetensors.torch import load_file, save_file
from torch import nn

from alula.data import Samples, open_audio, open_samples
from alula.features import AudioFeatures
from alula.sources import load_model, parse_source

EPOCHS = 8
BATCH = 16
RATE = 2e-3

RELATIVES = {"sed_v2s": "cnn_v2s", "sed_b3": "cnn_b3"}
"""Which network has the same backbone, with time and frequency exchanged, and takes a third of the time."""

FURTHER_EPOCHS = 2
"""Of a network that goes on from its relative."""
MOST_WINDOWS = 12
"""Of one sample, so that a long recording does not outweigh the others."""


def windows_of(member: Member, samples: Samples, lead_s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows (n, c, f, t) of recordings, and of each the number of the sample it belongs to (n,).

    Args:
        member: whose input it is.
        samples: stretches of recordings. One window follows the other; a rest makes no window of its own.
        lead_s: how much earlier than its row a window begins; there is silence outside of a recording.
    """
    description = member.description()
    features = AudioFeatures(description)
    rate_hz, length, hop = description.sample_rate_hz, description.window_samples, description.hop_samples
    waves: dict[Path, np.ndarray] = {}
    found, owners = [], []
    for number, item in enumerate(samples.items):
        assert item.path is not None
        if item.path not in waves:
            waves = {item.path: read_wave(item.path, rate_hz)}
        wave = waves[item.path]
        first = round(item.start_s * rate_hz)
        last = len(wave) if item.end_s is None else round(item.end_s * rate_hz)
        for k in range(min(MOST_WINDOWS, max(1, (last - first) // hop))):
            start = first + k * hop - round(lead_s * rate_hz)
            part = wave[max(start, 0) : max(start + length, 0)]
            window = np.zeros(length, np.float32)
            window[max(-start, 0) : max(-start, 0) + len(part)] = part
            found.append(torch.from_numpy(features.transform(window[None])[0]))
            owners.append(number)
    return torch.stack(found), torch.tensor(owners)


def read_wave(path: Path, rate_hz: int) -> np.ndarray:
    """Return a recording as mono, float32 of shape (t,)."""
    import soxr

    with open_audio(path) as audio:
        wave = np.concatenate(list(audio.blocks())).mean(axis=1, dtype=np.float32)
        return np.asarray(soxr.resample(wave, audio.rate_hz, rate_hz), np.float32)


def targets_of(samples: Samples, classes: int) -> torch.Tensor:
    """Return 1.0 where a class is in a sample, (n, classes).

    The first class that is there belongs to the first output, and so on; where classes are called
    `species_NNN`, as in bundles of `make.py`, to the output of that number.
    """
    if samples.targets is None or samples.labels is None:
        raise SystemExit(f"{samples.source} has no labels; expected class folders, or a column `label`.")
    outputs = [number_of(label, index) for index, label in enumerate(samples.labels)]
    if max(outputs) >= classes:
        raise SystemExit(f"{samples.source} has the class {max(outputs)}; the networks have {classes}.")
    targets = torch.zeros(len(samples.items), classes)
    given = torch.tensor(samples.targets)
    if given.ndim == 1:
        targets[torch.arange(len(given)), torch.tensor(outputs)[given]] = 1.0
    else:
        targets[:, outputs] = given.float()
    return targets


def number_of(label: str, index: int) -> int:
    """Return which output is a class.

    >>> number_of("species_017", 3), number_of("robin", 3)
    (17, 3)
    """
    name, _, number = label.partition("_")
    return int(number) if name == "species" and number.isdecimal() else index


def exchanged(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a backbone's weights for an exchanged height and width: kernels (o, i, h, w) transposed."""
    return {
        name: tensor.transpose(2, 3).contiguous() if tensor.ndim == 4 else tensor
        for name, tensor in state.items()
        if name.startswith("maps.")
    }


def train(
    member: Member,
    samples: Samples,
    pipeline: Pipeline,
    *,
    epochs: int,
    backbone: Mapping[str, torch.Tensor],
    autocast: bool,
) -> nn.Module:
    """Return a member's network that has learned to tell the classes apart.

    Args:
        member: of the pipeline.
        samples: with labels.
        pipeline: whose member it is.
        epochs: over the samples.
        backbone: weights to begin with; empty for random ones.
        autocast: whether most is computed in bfloat16.
    """
    module = load_model(parse_source(str(HERE / member.model))).module
    assert module is not None
    module.load_state_dict({**module.state_dict(), **backbone})
    x, owners = windows_of(member, samples, pipeline.lead_s(member))
    y = targets_of(samples, pipeline.classes)[owners]
    known = y.any(dim=0)
    module = module.requires_grad_(True).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.01)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs=epochs, steps_per_epoch=steps)
    torch.manual_seed(0)
    for epoch in range(epochs):
        started_s, total = time.monotonic(), 0.0
        for picked in torch.randperm(len(x)).split(BATCH):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = module(x[picked].contiguous(memory_format=torch.channels_last)).float()
            if member.activation == "sigmoid":
                loss = nn.functional.binary_cross_entropy_with_logits(output[:, known], y[picked][:, known])
            else:
                loss = nn.functional.binary_cross_entropy(output[:, known], y[picked][:, known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(picked)
        took_s = time.monotonic() - started_s
        print(f"{member.name}: epoch {epoch + 1}, loss {total / len(x):.4f}, {took_s:.0f} s", flush=True)
    return module.eval().to(memory_format=torch.contiguous_format)


def train_pipeline(
    letter: str,
    clips: Path,
    output: Path,
    *,
    only: Sequence[str] | None = None,
    epochs: int = EPOCHS,
    autocast: bool = False,
) -> None:
    """Write `NAME.safetensors` of each network of a pipeline into a folder, but for those that are there.

    Args:
        letter: `a`, `b`, `c` or `d`.
        clips: labelled audio.
        output: the folder.
        only: names of members; None for all.
        epochs: over the clips, for networks that begin with random weights.
        autocast: whether most is computed in bfloat16, which is faster where the CPU has AVX512-BF16 or AMX.

    Raises:
        SystemExit: the clips have no labels, or more classes than the networks.
    """
    pipeline = read_pipeline(letter, only)
    samples = open_samples(clips)
    output.mkdir(parents=True, exist_ok=True)
    # Relatives first.
    for member in sorted(pipeline.members, key=lambda member: member.name in RELATIVES):
        target = output / f"{member.name}.safetensors"
        if target.is_file():
            continue
        relative = output / f"{RELATIVES.get(member.name, member.name)}.safetensors"
        backbone = exchanged(load_file(relative)) if relative.is_file() else {}
        module = train(
            member,
            samples,
            pipeline,
            epochs=min(epochs, FURTHER_EPOCHS) if backbone else epochs,
            backbone=backbone,
            autocast=autocast,
        )
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", choices=["a", "b", "c", "d"])
    parser.add_argument("clips", type=Path, help="folder of class folders, or a table of stretches")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of NAME.safetensors")
    parser.add_argument("--only", help="names of members, comma-separated (default all)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"over the clips (default {EPOCHS})")
    parser.add_argument(
        "--bf16", action="store_true", help="faster where the CPU has AVX512-BF16 or AMX, else slower"
    )
    options = parser.parse_args()
    only = None if options.only is None else options.only.split(",")
    train_pipeline(
        options.pipeline,
        options.clips,
        options.output,
        only=only,
        epochs=options.epochs,
        autocast=options.bf16,
    )


if __name__ == "__main__":
    main()
