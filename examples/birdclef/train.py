"""Train the heads of a pipeline's networks for a few minutes: `python train.py c CLIPS -o weights`.

CLIPS holds a folder of recordings per class, or recordings alone, each of which is a class of its own then.
The backbones stay as they are, random, but for the statistics of BatchNorm, which become those of the clips;
what follows them learns. That gives scores that follow a sound, which is enough to see what an engine or a
blend does to them. It gives no good detector of birds. Each step runs the whole network on a few windows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from birdclef_layers import zoo
from pipelines import HERE, Member, read_pipeline
from safetensors.torch import save_file
from torch import nn

from alula.data import open_audio
from alula.features import AudioFeatures
from alula.sources import load_model, parse_source

AUDIO = {".wav", ".flac", ".ogg", ".mp3"}
STEPS = 60
BATCH = 8

# The parts of the networks here that are heads, by the names of their attributes.
HEADS = ("hidden", "attention", "classes", "linear", "1.classifier", "1.head.fc", "1.head.classifier")


def classes_of(clips: Path) -> dict[str, list[Path]]:
    """Return the recordings of each class: folders, or the recordings themselves.

    Raises:
        SystemExit: there are none.
    """
    files = sorted(path for path in clips.rglob("*") if path.suffix.lower() in AUDIO)
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(path.parent.name if path.parent != clips else path.stem, []).append(path)
    if len(found) < 2:
        raise SystemExit(f"{clips} holds {len(found)} classes of recordings; expected at least 2.")
    return found


def windows_of(
    member: Member, classes: dict[str, list[Path]], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows (n, c, f, t) and the numbers of their classes (n,), at most so many per class."""
    features = AudioFeatures(member.description())
    found, targets = [], []
    for number, files in enumerate(classes.values()):
        taken = 0
        for path in files:
            with open_audio(path) as audio:
                for window in features.windows(audio.blocks(), audio.rate_hz):
                    if taken < most:
                        found.append(torch.from_numpy(window.samples))
                        targets.append(number)
                        taken += 1
    return torch.stack(found), torch.tensor(targets)


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to a head."""
    return any(name.startswith(f"{head}.") for head in HEADS)


def train(member: Member, classes: dict[str, list[Path]], *, steps: int, most: int) -> nn.Module:
    """Return a member's network whose head has learned to tell the classes apart."""
    module = load_model(parse_source(str(HERE / member.model))).module
    assert module is not None
    x, y = windows_of(member, classes, most)
    torch.manual_seed(0)  # of layers that are dropped at random
    # In random order, so that no batch holds one class alone; a last batch of one would have no variance.
    batches = x[torch.randperm(len(x))].split(BATCH)
    zoo().calibrate(module, [batch for batch in batches if len(batch) > 1])
    learned = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_head(name))
        if is_head(name):
            learned.append(parameter)
    if not learned:
        raise SystemExit(f"No head was found in `{member.model}`; name its attribute in HEADS.")
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    chance = torch.Generator().manual_seed(0)
    for step in range(steps):
        picked = torch.randint(len(x), (min(BATCH, len(x)),), generator=chance)
        output = module(x[picked])
        targets = torch.zeros_like(output)
        targets[torch.arange(len(picked)), y[picked]] = 1.0
        if member.activation == "sigmoid":
            loss = nn.functional.binary_cross_entropy_with_logits(output, targets)
        else:
            loss = nn.functional.binary_cross_entropy(output, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"{member.name}: step {step}, loss {loss.item():.4f}", flush=True)
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", choices=["a", "b", "c", "d"])
    parser.add_argument("clips", type=Path, help="folders of recordings by class, or recordings")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of NAME.safetensors")
    parser.add_argument("--only", help="names of members, comma-separated (default all)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} windows (default {STEPS})")
    parser.add_argument("--windows", type=int, default=12, help="of a class, at most (default 12)")
    options = parser.parse_args()
    pipeline = read_pipeline(options.pipeline)
    classes = classes_of(options.clips)
    if len(classes) > pipeline.classes:
        raise SystemExit(f"{len(classes)} classes, but the networks have {pipeline.classes}.")
    options.output.mkdir(parents=True, exist_ok=True)
    for member in pipeline.members:
        if options.only is None or member.name in options.only.split(","):
            module = train(member, classes, steps=options.steps, most=options.windows)
            state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
            save_file(state, options.output / f"{member.name}.safetensors")


if __name__ == "__main__":
    main()
