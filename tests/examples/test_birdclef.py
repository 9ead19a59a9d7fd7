"""The pipelines of `examples/birdclef` against straightforward ones: librosa, PyTorch and NumPy, per window.

The references repeat the numbers of the pipelines instead of reading the TOML files, and write the heads out
in NumPy. Backbones are small ones here, except where a test is for the real ones.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import librosa
import numpy as np
import pytest
import soundfile
import torch
from bundles import write_onnx_bundle
from torch import nn

import alula
from alula.core import ARTIFACT_FILES
from alula.data import open_samples
from alula.export import export_module
from alula.features import AudioFeatures, read_description
from alula.libraries import import_onnxruntime
from alula.sources import load_model, parse_source
from alula.workflows import make_ensemble

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "birdclef"
RATE_HZ = 32_000

# Decibels in float32 on both sides, and filters that are rounded to it in different places.
DECIBELS = 0.05
# Scores and logits around 1, after a backbone that does not dampen the differences of its input.
SCORES = 5e-3


@pytest.fixture(scope="module")
def birdclef() -> Iterator[dict[str, ModuleType]]:
    """Return the modules of the example by name, imported as a factory file imports its neighbours."""
    import importlib

    names = (
        *("birdclef_layers", "pipelines", "pipeline_a", "pipeline_b", "pipeline_c", "pipeline_d"),
        *("by_librosa", "reference", "train"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def waves(seconds: float, windows: int = 2) -> np.ndarray:
    """Return windows of noise with a chirp in each, (n, t)."""
    chance = np.random.default_rng(5)
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    found = []
    for index in range(windows):
        chirp = np.sin(2 * np.pi * (3_000.0 + 900.0 * index) * time_s * (1.0 + 0.01 * time_s))
        found.append(0.3 * chirp * (time_s % 1.0 < 0.4) + 0.02 * chance.standard_normal(len(time_s)))
    return np.stack(found).astype(np.float32)


def ours(toml: str, cut: np.ndarray) -> np.ndarray:
    return AudioFeatures(read_description(FOLDER / toml)).transform(cut)


def mel_db(
    wave: np.ndarray,
    *,
    n_fft: int,
    hop: int,
    n_mels: int,
    low: float,
    high: float,
    htk: bool,
    pad: str,
    top_db: float | None = 80.0,
    win: int | None = None,
) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=wave,
        sr=RATE_HZ,
        n_fft=n_fft,
        hop_length=hop,
        win_length=win,
        n_mels=n_mels,
        fmin=low,
        fmax=high,
        htk=htk,
        norm=None if htk else "slaney",
        pad_mode=pad,
    )
    return librosa.power_to_db(power, top_db=top_db)


def reference_a(wave: np.ndarray) -> np.ndarray:
    scaled = wave / np.abs(wave).max()
    image = mel_db(scaled, n_fft=2048, hop=512, n_mels=128, low=20, high=16_000, htk=True, pad="reflect")
    image = image - 10.0 * np.log10(np.square(librosa.filters.get_window("hann", 2048)).sum())
    image = (image - image.mean()) / image.std()
    return (image - image.min()) / (image.max() - image.min())


def reference_d(wave: np.ndarray) -> np.ndarray:
    image = mel_db(
        wave / wave.std(),
        n_fft=1536,
        win=1024,
        hop=717,
        n_mels=224,
        low=90,
        high=14_000,
        htk=True,
        pad="reflect",
        top_db=None,
    )
    return (image - 40.0) / 80.0


B_INPUTS = {
    # n_fft, hop, bands, low, high, offset in dB, divisor
    "b_sed_v2s.toml": (10.0, 2048, 417, 128, 0, 16_000, 80.0, 80.0, 768),
    "b_sed_b3.toml": (10.0, 1024, 535, 128, 50, 14_000, 0.0, 255.0, 599),
    "b_sed_seresnext26t.toml": (10.0, 2048, 627, 128, 0, 16_000, 0.0, 255.0, 511),
    "b_cnn_v2s.toml": (5.0, 1024, 320, 64, 50, 14_000, 0.0, 80.0, 501),
    "b_cnn_b3.toml": (5.0, 1024, 535, 128, 50, 14_000, 0.0, 80.0, 300),
    "b_cnn_128x256.toml": (5.0, 2048, 627, 128, 0, 16_000, 0.0, 255.0, 256),
}


@pytest.mark.parametrize("toml", B_INPUTS)
def test_features_of_b_are_librosas(toml: str) -> None:
    seconds, n_fft, hop, n_mels, low, high, offset, divisor, frames = B_INPUTS[toml]
    cut = waves(seconds)
    got = ours(toml, cut)
    assert got.shape == (2, 1, n_mels, frames)
    for wave, image in zip(cut, got, strict=True):
        decibels = mel_db(
            wave, n_fft=n_fft, hop=hop, n_mels=n_mels, low=low, high=high, htk=False, pad="constant"
        )
        np.testing.assert_allclose(image[0] * divisor, decibels + offset, atol=DECIBELS)


def test_features_of_a_c_and_d_are_librosas() -> None:
    short, long = waves(5.0), waves(10.0)
    for wave, image in zip(short, ours("a_mel.toml", short), strict=True):
        # From 0 to 1 for up to 80 dB.
        np.testing.assert_allclose(image[0], reference_a(wave), atol=DECIBELS / 40.0)
    for wave, image in zip(short, ours("d_mel.toml", short), strict=True):
        np.testing.assert_allclose(image[0] * 80.0, reference_d(wave) * 80.0, atol=DECIBELS)
    for wave, image in zip(long, ours("c_mel.toml", long), strict=True):
        decibels = mel_db(
            wave, n_fft=1024, hop=500, n_mels=128, low=40, high=15_000, htk=False, pad="constant", top_db=100
        )
        np.testing.assert_allclose(image[0], decibels, atol=DECIBELS)


def by_onnxruntime(module: nn.Module, x: np.ndarray, folder: Path) -> np.ndarray:
    """Return the outputs of the module's export, which is what Alula runs."""
    export_module(module, [x], target="onnx", folder=folder)
    session = import_onnxruntime().InferenceSession(
        str(folder / ARTIFACT_FILES["onnx"]), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def dense(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    """Return a linear layer, or a convolution of one position, of (b, c, t)."""
    weight = numbers(layer.weight).reshape(layer.weight.shape[:2])
    return np.einsum("oc,bct->bot", weight, x) + numbers(layer.bias)[:, None]


def images_in_eager(maps: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found = maps(torch.from_numpy(x.astype(np.float32)))
    return numbers(found[-1] if isinstance(found, list) else found)


def slopes(image: np.ndarray) -> np.ndarray:
    """Return the slope over five frames by its definition, frame by frame."""
    padded = np.pad(image, ((0, 0), (2, 2)), mode="edge")
    return np.stack(
        [
            sum(n * (padded[:, t + 2 + n] - padded[:, t + 2 - n]) for n in (1, 2)) / 10.0
            for t in range(image.shape[1])
        ],
        axis=1,
    )


def with_slopes(images: np.ndarray) -> np.ndarray:
    first = [slopes(image[0]) for image in images]
    return np.stack(
        [np.stack([image[0], one, slopes(one)]) for image, one in zip(images, first, strict=True)]
    )


class SmallBackbone(nn.Module):
    """Five strided convolutions: maps (b, 16, f / 32, t / 32), in a list where stages are asked for."""

    def __init__(self, in_channels: int, *, stages: bool = False) -> None:
        super().__init__()
        widths = (in_channels, 8, 8, 16, 16, 16)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()
                )
                for before, after in itertools.pairwise(widths)
            )
        )
        self.stages = stages

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        maps = self.layers(x)
        return [maps] if self.stages else maps


def by_eager(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_a_network_of_a_is_its_definition(birdclef: dict[str, ModuleType]) -> None:
    layers, a = birdclef["birdclef_layers"], birdclef["pipeline_a"]

    def make() -> nn.Module:
        return a.AttentionClassifier(SmallBackbone(1, stages=True), channels=16, classes=7)

    network = layers.settled(make, "a_mel.toml")
    cut = waves(5.0)
    got = by_eager(network, ours("a_mel.toml", cut))
    images = np.stack([reference_a(wave) for wave in cut])[:, None]
    maps = np.maximum(images_in_eager(network.stages, images), 1e-6)
    columns = np.mean(maps**3, axis=2) ** (1 / 3)
    hidden = np.maximum(dense(network.hidden[1], columns), 0.0)
    scores = sigmoid(dense(network.classes, hidden))
    clip = (softmax(np.tanh(dense(network.attention, hidden))) * scores).sum(axis=-1)
    np.testing.assert_allclose(got, 0.75 * clip + 0.25 * scores.max(axis=-1), atol=SCORES)


def test_a_detector_of_b_is_its_definition(birdclef: dict[str, ModuleType], tmp_path: Path) -> None:
    layers, b = birdclef["birdclef_layers"], birdclef["pipeline_b"]

    def make() -> nn.Module:
        maps = SmallBackbone(3)
        return b.EventDetector(maps, channels=16, n_mels=128, in_channels=3, shift=2, classes=7)

    network = layers.settled(make, "b_sed_seresnext26t.toml")
    cut = waves(10.0)
    x = ours("b_sed_seresnext26t.toml", cut)
    got = by_onnxruntime(network, x, tmp_path)
    images = np.stack(
        [
            mel_db(wave, n_fft=2048, hop=627, n_mels=128, low=0, high=16_000, htk=False, pad="constant")
            / 255.0
            for wave in cut
        ]
    )
    bands = network.bands
    gain = numbers(bands.weight) / np.sqrt(numbers(bands.running_var) + bands.eps)
    shift = numbers(bands.bias) - numbers(bands.running_mean) * gain
    scaled = with_slopes(images[:, None]) * gain[:, None] + shift[:, None]
    columns = images_in_eager(network.maps, scaled).mean(axis=2)
    around = np.pad(columns, ((0, 0), (0, 0), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(around, 3, axis=2)
    # After a ReLU nothing is negative, so that zeros beside the ends do not change a maximum.
    assert columns.min() >= 0.0
    columns = views.max(axis=-1) + views.mean(axis=-1)
    scores = sigmoid(dense(network.classes, np.maximum(dense(network.hidden, columns), 0.0)))
    assert scores.shape[-1] == 16
    mixed = 0.5 * scores[..., 4:12].max(-1) + 0.25 * (scores[..., 2:10].max(-1) + scores[..., 6:14].max(-1))
    np.testing.assert_allclose(sigmoid(got), mixed, atol=SCORES)
    np.testing.assert_allclose(got, np.log(mixed / (1.0 - mixed)), atol=10 * SCORES)


def test_a_classifier_of_b_is_its_definition(birdclef: dict[str, ModuleType]) -> None:
    layers, b = birdclef["birdclef_layers"], birdclef["pipeline_b"]

    def make() -> nn.Module:
        maps = SmallBackbone(3)
        return b.PooledClassifier(maps, channels=16, in_channels=3, frames=500, classes=7)

    network = layers.settled(make, "b_cnn_v2s.toml")
    cut = waves(5.0)
    got = by_eager(network, ours("b_cnn_v2s.toml", cut))
    images = np.stack(
        [
            mel_db(wave, n_fft=1024, hop=320, n_mels=64, low=50, high=14_000, htk=False, pad="constant")
            / 80.0
            for wave in cut
        ]
    )
    maps = images_in_eager(network.maps, with_slopes(images[:, None, :, :500]).swapaxes(2, 3))
    pooled = np.mean(np.maximum(maps, 1e-6) ** 3, axis=(2, 3)) ** (1 / 3)
    expected = pooled @ numbers(network.linear.weight).T + numbers(network.linear.bias)
    np.testing.assert_allclose(got, expected, atol=10 * SCORES)


def test_inputs_of_c_and_d_are_made_inside_their_networks(birdclef: dict[str, ModuleType]) -> None:
    layers = birdclef["birdclef_layers"]
    x = torch.rand(2, 1, 5, 9)
    torch.testing.assert_close(layers.Crop(8)(x), x[..., :8])
    three = layers.FrequencyRamp(5)(x)
    torch.testing.assert_close(three[:, :2], torch.cat([x, x], dim=1))
    assert three[0, 2, :, 3].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


# The small networks; `benchmarks/deadline.py` runs the large ones.
@pytest.mark.parametrize(
    ("letter", "name"),
    [
        ("a", "eca_nfnet_l0"),
        ("b", "cnn_b0"),
        ("c", "efficientnet_b0"),
        ("d", "mnasnet_100"),
    ],
)
def test_members_are_models_with_activations_of_unit_scale(
    birdclef: dict[str, ModuleType], letter: str, name: str
) -> None:
    pipeline = birdclef["pipelines"].read_pipeline(letter)
    (member,) = (one for one in pipeline.members if one.name == name)
    check_factory(member.model, pipeline.classes, member.input)


def test_a_factory_makes_the_same_network_again() -> None:
    spec = parse_source(f"{FOLDER / 'pipeline_d.py'}:mnasnet_100")
    one, other = load_model(spec).module, load_model(spec).module
    assert one is not None
    assert other is not None
    for first, second in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(first, second)


def check_factory(model: str, classes: int, toml: str) -> None:
    module = load_model(parse_source(f"{FOLDER / model}")).module
    assert module is not None
    deviations: list[float] = []

    def record(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        deviations.append(float(output.std()))

    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(record)
    description = AudioFeatures(read_description(FOLDER / toml))
    cut = waves(10.0 if description.sample_shape[2] > 501 else 5.0)
    with torch.no_grad():
        scores = module(torch.from_numpy(description.transform(cut)))
    assert scores.shape == (2, classes)
    assert bool(torch.isfinite(scores).all())
    # Other sounds than those that the statistics were measured on.
    assert len(deviations) == len(norms)
    assert all(0.02 < one < 50.0 for one in deviations)


def soundscape(folder: Path, seconds: float) -> Path:
    path = folder / "night.wav"
    wave = waves(seconds, 1)[0]
    soundfile.write(path, wave, RATE_HZ, subtype="FLOAT")
    return path


@pytest.mark.filterwarnings("ignore:.*is deprecated and slated for removal:DeprecationWarning")
def test_windows_of_the_reference_and_of_training_lie_alike(
    birdclef: dict[str, ModuleType], tmp_path: Path
) -> None:
    pipeline = birdclef["pipelines"].read_pipeline("b", ["sed_seresnext26t", "cnn_b0"])
    path = soundscape(tmp_path, 23.0)
    (tmp_path / "truth.csv").write_text(
        "path,label,start_s,end_s\n"
        "night.wav,a,0,5\nnight.wav,a;b,5,10\nnight.wav,;,10,15\nnight.wav,b,15,20\nnight.wav,b,20,23\n"
    )
    samples = open_samples(tmp_path / "truth.csv")
    for member, lead_s in zip(pipeline.members, (2.5, 0.0), strict=True):
        assert pipeline.lead_s(member) == lead_s
        wave = birdclef["by_librosa"].read_wave(path, RATE_HZ)
        expected = birdclef["by_librosa"].windows(wave, member, lead_s)
        got, owners = birdclef["train"].windows_of(member, samples, lead_s)
        assert owners.tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(got.numpy() * 255.0, expected * 255.0, atol=DECIBELS)
    assert birdclef["train"].targets_of(samples, 3).tolist() == [
        *([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    ]


def test_a_backbone_can_be_turned_for_its_relative(birdclef: dict[str, ModuleType]) -> None:
    module = nn.ModuleDict({"maps": nn.Conv2d(2, 4, (3, 5), bias=True), "linear": nn.Linear(4, 1)})
    turned = nn.Conv2d(2, 4, (5, 3), bias=True)
    state = birdclef["train"].exchanged(module.state_dict())
    turned.load_state_dict({name.removeprefix("maps."): tensor for name, tensor in state.items()})
    x = torch.randn(1, 2, 8, 9)
    torch.testing.assert_close(turned(x.transpose(2, 3)).transpose(2, 3), module["maps"](x))


@pytest.mark.filterwarnings("ignore:.*is deprecated and slated for removal:DeprecationWarning")
def test_the_reference_is_the_ensemble(
    birdclef: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two networks of pipeline B, one with a view, as an ensemble, against librosa and eager PyTorch."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from make import blend_of, post_of

    names = ("sed_seresnext26t", "cnn_b0")
    pipeline = birdclef["pipelines"].read_pipeline("b", names)
    labels = tuple(f"species_{index:03d}" for index in range(pipeline.classes))
    bundles = []
    for member in pipeline.members:
        description = member.description()
        golden = AudioFeatures(description).transform(waves(description.window_s))
        module = load_model(parse_source(str(FOLDER / member.model))).module
        scratch = tmp_path / member.name
        (scratch / "artifact").mkdir(parents=True)
        exported = export_module(module, [golden], target="onnx", folder=scratch / "artifact")
        bundles.append(
            write_onnx_bundle(
                tmp_path / f"{member.name}.alula",
                scratch,
                description,
                golden,
                signature=exported.signature,
                labels=labels,
                activation="sigmoid",
            )
        )
    path = soundscape(tmp_path, 33.0)
    make_ensemble(bundles, tmp_path / "b.alula", blend=blend_of("b"), post=post_of("b", names))
    with alula.load(tmp_path / "b.alula") as opened:
        [prediction] = opened.map([path])
    expected = birdclef["reference"].scores(pipeline, path, None)
    assert prediction.scores is not None
    found = birdclef["reference"].difference(expected, prediction.scores)
    assert found.rows == 7
    assert found.largest < birdclef["reference"].TOLERANCES["fp32"]
    assert found.cosine > birdclef["reference"].COSINES["fp32"]
    assert birdclef["reference"].lowest_precision(tmp_path / "b.alula") == "fp32"


def test_the_blends_are_what_they_say(birdclef: dict[str, ModuleType]) -> None:
    pipelines = birdclef["pipelines"]
    chance = np.random.default_rng(0)

    def outputs(letter: str) -> tuple[object, dict[str, np.ndarray]]:
        pipeline = pipelines.read_pipeline(letter)
        scale = (0.0, 1.0) if letter == "a" else (-4.0, 4.0)
        names = [member.name for member in pipeline.members]
        return pipeline, {name: chance.uniform(*scale, (6, 3)).astype(np.float32) for name in names}

    a, of_a = outputs("a")
    root = np.sqrt(np.mean([one**2 for one in of_a.values()], axis=0))
    np.testing.assert_allclose(a.joined(of_a), root, rtol=1e-6)
    b, of_b = outputs("b")
    assert len(of_b) == 7
    np.testing.assert_allclose(b.joined(of_b), sigmoid(np.mean(list(of_b.values()), axis=0)), rtol=1e-6)
    c, of_c = outputs("c")
    mean = np.mean([sigmoid(one) for one in of_c.values()], axis=0)
    got = c.joined(of_c)
    np.testing.assert_allclose(got[3], mean[1:6].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(got[0], mean[:3].mean(axis=0), rtol=1e-6)
