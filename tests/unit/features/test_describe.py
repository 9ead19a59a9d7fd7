"""Descriptions by name and as TOML: what is read, what is written, what is refused and how."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.core import (
    Affine,
    ArrayInput,
    AudioInput,
    ImageInput,
    InputDescription,
    LogMel,
    MinMax,
    ZScore,
)
from alula.errors import UsageError
from alula.features import (
    PRESETS,
    ArrayFeatures,
    AudioFeatures,
    ImageFeatures,
    make_features,
    parse_description,
    read_description,
    to_toml,
)

EVERYTHING = AudioInput(
    sample_rate_hz=22_050,
    window_s=3.0,
    hop_s=1.5,
    peak_normalize=True,
    mel=LogMel(
        n_fft=1024,
        hop=320,
        win=800,
        n_mels=64,
        f_min_hz=50.0,
        f_max_hz=10_000.0,
        scale="slaney",
        mel_norm="slaney",
        power=1,
        center=False,
        pad_mode="constant",
        log=None,
        amin=1e-5,
        ref="max",
        top_db=None,
        normalize=(ZScore(), MinMax(eps=1e-8), Affine(mean=-1.0, std=2.5)),
        channels=3,
        channel_mode="deltas",
    ),
)

floats = st.floats(1e-12, 1e12, allow_nan=False)
descriptions = st.one_of(
    st.builds(
        ArrayInput,
        shape=st.none() | st.lists(st.integers(1, 999), max_size=4).map(tuple),
        dtype=st.sampled_from(["float32", "int64"]) | st.text(max_size=8),
    ),
    st.builds(
        ImageInput,
        resize=st.none() | st.integers(224, 999),
        mean=st.tuples(floats),
        std=st.tuples(floats, floats, floats),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    ),
    st.builds(
        AudioInput,
        window_s=st.floats(1.0, 100.0),
        hop_s=st.none() | st.floats(0.1, 1.0),
        peak_normalize=st.booleans(),
        mel=st.none()
        | st.builds(
            LogMel,
            ref=st.just("max") | floats,
            top_db=st.none() | floats,
            log=st.sampled_from(["db", "ln", None]),
            normalize=st.lists(
                st.builds(MinMax, eps=floats) | st.builds(Affine, mean=st.floats(-1e9, 1e9)), max_size=3
            ).map(tuple),
        ),
    ),
)


@given(description=descriptions)
def test_toml_goes_round(description: InputDescription) -> None:
    assert parse_description(to_toml(description)) == description


def test_text_of_any_characters_goes_round() -> None:
    description = ArrayInput(dtype="\x00\x1f\x7f\x85\u2028\U0001f426\"'\\\n\t none")
    assert parse_description(to_toml(description)) == description


@pytest.mark.parametrize("description", [EVERYTHING, *PRESETS.values()], ids=["everything", *PRESETS])
def test_toml_names_every_field_and_goes_round(description: InputDescription) -> None:
    text = to_toml(description)
    assert parse_description(text) == description
    assert set(tomllib.loads(text)) == {"type", *description.__struct_fields__}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("imagenet", (3, 224, 224)),
        ("cifar10", (3, 32, 32)),
        ("mel-128x313", (1, 128, 313)),
        ("mel-64x313", (1, 64, 313)),
        ("wave-5s-32k", (160_000,)),
        ("birdnet-wave", (144_000,)),
        ("array", None),
    ],
)
def test_presets_give_their_shapes(name: str, shape: tuple[int, ...] | None) -> None:
    assert make_features(read_description(name)).sample_shape == shape


def test_make_features_goes_by_type() -> None:
    assert isinstance(make_features(AudioInput()), AudioFeatures)
    assert isinstance(make_features(ImageInput()), ImageFeatures)
    assert isinstance(make_features(ArrayInput()), ArrayFeatures)


def test_presets_are_those_published() -> None:
    imagenet = PRESETS["imagenet"]
    assert isinstance(imagenet, ImageInput)
    assert (imagenet.resize, imagenet.mean, imagenet.std) == (
        256,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    birds = PRESETS["mel-128x313"]
    assert isinstance(birds, AudioInput)
    assert birds.mel is not None
    assert (birds.mel.n_fft, birds.mel.hop, birds.mel.scale, birds.mel.top_db) == (2048, 512, "htk", 80.0)
    assert birds.mel.normalize == (ZScore(), MinMax())


def test_a_file_may_have_an_input_table(tmp_path: Path) -> None:
    path = tmp_path / "birds.toml"
    path.write_text('[input]\ntype = "audio"\nwindow_s = 3\n[input.mel]\nn_mels = 40\n[other]\nx = 1\n')
    expected = AudioInput(window_s=3.0, mel=LogMel(n_mels=40))
    assert read_description(path) == read_description(str(path)) == expected


def test_a_preset_is_a_start_whose_tables_are_merged() -> None:
    text = 'preset = "mel-128x313"\nwindow_s = 10.0\n[mel]\nn_mels = 64\ntop_db = "none"\n'
    base = PRESETS["mel-128x313"]
    assert isinstance(base, AudioInput)
    assert base.mel is not None
    expected = msgspec.structs.replace(
        base, window_s=10.0, mel=msgspec.structs.replace(base.mel, n_mels=64, top_db=None)
    )
    assert parse_description(text) == expected


def test_a_table_of_a_preset_can_be_added_removed_and_replaced() -> None:
    assert parse_description('preset = "mel-64x313"\nmel = "none"').mel is None
    assert parse_description('preset = "wave-5s-32k"\n[mel]\nhop = 320').mel == LogMel(hop=320)
    replaced = parse_description('preset = "mel-64x313"\nmel.normalize = [{ type = "zscore" }]')
    assert replaced.mel.normalize == (ZScore(),)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("type = 'audio'\nwindw_s = 5", ["`windw_s`", "Did you mean `window_s`?"]),
        ("type = 'audio'\n[mel]\nn_ftt = 5", ["`mel.n_ftt`", "Did you mean `n_fft`?"]),
        ("[input]\ntype = 'audio'\n[input.mel]\nn_ftt = 5", ["`input.mel.n_ftt`"]),
        ("type = 'audoi'", ["`type`", "`audoi`", "Did you mean `audio`?"]),
        ("window_s = 5", ["`type`", "is missing", "array, audio, image"]),
        ("type = 'audio'\nmel.scale = 'htkk'", ["`mel.scale`", "Did you mean `htk`?"]),
        ("type = 'audio'\nmel.log = 'dB'", ["`mel.log`", "`dB`", "Expected one of db, ln, none"]),
        ("type = 'audio'\nmel.ref = 'maxx'", ["`mel.ref`", "Did you mean `max`?"]),
        ("type = 'audio'\nmel.normalize = [{ type = 'zscor' }]", ["`mel.normalize[0].type`", "`zscore`"]),
        ("type = 'audio'\nmel.normalize = [{ eps = 1.0 }]", ["`mel.normalize[0].type`", "is missing"]),
        (
            "type = 'audio'\nmel.normalize = [{ type = 'zscore', esp = 1 }]",
            ["`mel.normalize[0].esp`", "Did you mean `eps`?"],
        ),
        ("type = 'audio'\nmel.normalize = [1]", ["`mel.normalize[0]`"]),
        ("type = 'audio'\nmel.n_fft = 0", ["`mel.n_fft`", ">= 1"]),
        ("type = 'audio'\nmel = 5", ["`mel`"]),
        ("[input]\ntype = 'audio'\nwindow_s = 'long'", ["`input.window_s`", "float"]),
        ("type = 'audio'\nmel.win = 4096", ["`mel`", "must not exceed `n_fft`"]),
        ("type = 'audio'\nwindow_s = inf", ["`window_s`", "<= 86400"]),
        ("type = 'audio'\nwindow_s = 5\nhop_s = 6", ["`hop_s` must not exceed `window_s`"]),
        ("type = 'audio'\nwindow_s = 'none'", ["`window_s`", "got `str`"]),
        ("preset = 'mel-128x312'", ["`preset`", "Did you mean `mel-128x313`?"]),
        ("preset = 'imagenet'\ntype = 'audio'", ["`type`", "preset `imagenet` is of type `image`"]),
        ("preset = 3", ["`preset`"]),
        ("input = 3", ["`input`", "expected a table"]),
        ("type = \n", ["is not TOML", "line 1"]),
    ],
)
def test_errors_say_where_and_what_was_meant(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_description(text, name="birds.toml")
    for part in ["birds.toml", *parts]:
        assert part in str(caught.value)


def test_an_unknown_preset_names_the_closest() -> None:
    with pytest.raises(UsageError, match=r"`imagnet`. Did you mean `imagenet`\? Expected one of array,"):
        read_description("imagnet")


def test_unreadable_files_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_description(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_description(tmp_path / "imagenet")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_description(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_description(tmp_path / "bytes.toml")
