"""Shared features: the bits of each description alone, each step done once, keys that know what is equal."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.core import ArrayInput, AudioInput, ImageInput, LogMel, ZScore
from alula.errors import UsageError
from alula.features import (
    AudioFeatures,
    Demand,
    MelSpectrogram,
    MelSpectrograms,
    SharedAudioFeatures,
    canonical,
    distinct_demands,
    feature_key,
    spectrum_key,
)
from alula.features import shared as shared_module

RATE_HZ = 8_000
MEL = LogMel(n_fft=256, hop=100, n_mels=16)


def audio(**fields: object) -> AudioInput:
    return AudioInput(**{"sample_rate_hz": RATE_HZ, "window_s": 0.5, **fields})  # type: ignore[arg-type]


def noise(seconds: float, *, seed: int = 0, channels: int = 1) -> np.ndarray:
    size = (round(seconds * RATE_HZ), channels)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, size).astype(np.float32)


def alone(demand: Demand, wave: np.ndarray) -> list[np.ndarray]:
    """The windows of one description by `AudioFeatures`, in silence where there is context."""
    description = demand.description
    assert isinstance(description, AudioInput)
    around = round((description.window_s - (demand.keep_s or description.window_s)) * RATE_HZ)
    lead = np.zeros((around // 2, wave.shape[1]), np.float32)
    trail = np.zeros((around - around // 2, wave.shape[1]), np.float32)
    blocks = [np.concatenate([lead, wave, trail])] if len(wave) else []
    return [window.samples for window in AudioFeatures(description).windows(blocks, RATE_HZ)]


SHARING = [
    Demand(audio(mel=MEL)),
    Demand(audio(mel=LogMel(n_fft=256, hop=100, n_mels=8, f_min_hz=300.0, power=1, log=None))),
    Demand(audio(mel=LogMel(n_fft=512, hop=100, n_mels=16, pad_mode="constant"))),
    Demand(audio()),
    Demand(audio(peak_normalize=True)),
    Demand(audio(peak_normalize=True, mel=msgspec.structs.replace(MEL, normalize=(ZScore(),)))),
    Demand(audio(window_s=1.0, hop_s=0.5, mel=MEL), keep_s=0.5),
    Demand(audio(window_s=0.75, hop_s=0.5), keep_s=0.5),
]


@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(0, 3 * RATE_HZ),
    chosen=st.lists(st.integers(0, len(SHARING) - 1), min_size=1, max_size=5, unique=True),
    cuts=st.integers(1, 6),
    channels=st.integers(1, 2),
)
def test_each_gets_the_bits_of_its_description_alone(
    frames: int, chosen: list[int], cuts: int, channels: int
) -> None:
    demands = [SHARING[index] for index in chosen]
    wave = noise(frames / RATE_HZ, seed=frames, channels=channels)
    rows = list(SharedAudioFeatures(demands).rows(np.array_split(wave, cuts), RATE_HZ))
    for index, demand in enumerate(demands):
        expected = alone(demand, wave)
        assert len(rows) == len(expected)
        for row, window in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(row.arrays[index], window)
    assert [row.start_s for row in rows] == [0.5 * k for k in range(len(rows))]
    assert all(row.end_s == row.start_s + 0.5 for row in rows)


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(0, 3 * RATE_HZ), index=st.integers(0, len(SHARING) - 1))
def test_spans_are_those_of_the_rows(frames: int, index: int) -> None:
    features = SharedAudioFeatures([SHARING[index]])
    rows = features.rows([noise(frames / RATE_HZ)], RATE_HZ) if frames else iter(())
    assert features.spans(frames / RATE_HZ) == [(row.start_s, row.end_s) for row in rows]


def test_what_nobody_wants_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    features = SharedAudioFeatures(SHARING)
    wave = noise(2.2)
    expected = list(features.rows([wave], RATE_HZ))
    asked: list[int] = []
    real = MelSpectrograms.transform_into

    def counted(self: MelSpectrograms, samples: np.ndarray, outs: list[np.ndarray]) -> None:
        asked.append(len(outs))
        real(self, samples, outs)

    monkeypatch.setattr(MelSpectrograms, "transform_into", counted)
    chosen = [{0}, set(), set(range(len(SHARING))), {3}, {len(SHARING) - 1}]
    rows = list(features.rows([wave], RATE_HZ, wanted=chosen.__getitem__))
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    for wanted, row, other in zip(chosen, rows, expected, strict=True):
        for index in wanted:
            np.testing.assert_array_equal(row.arrays[index], other.arrays[index])
    shared = sum(1 for demand in SHARING if demand.description.mel is not None)  # type: ignore[union-attr]
    assert sum(asked) < 3 * shared


def test_windows_divided_by_their_deviation_are_those_of_each_description_alone() -> None:
    scalings = ({}, {"peak_normalize": True}, {"std_normalize": True})
    demands = [Demand(audio(**scaling, mel=mel)) for mel in (None, MEL) for scaling in scalings]
    wave = noise(1.3, seed=1)
    wave[4_000:8_000] *= 0.01  # the second window is much quieter than the first
    rows = list(SharedAudioFeatures(demands).rows(np.array_split(wave, 3), RATE_HZ))
    for index, demand in enumerate(demands):
        got = [row.arrays[index] for row in rows]
        np.testing.assert_array_equal(got, alone(demand, wave))
    _, by_peak, by_deviation = rows[1].arrays[:3]
    assert np.abs(by_peak).max() == 1.0
    assert by_deviation.std() == pytest.approx(1.0, abs=1e-5)


TOGETHER = Demand(audio(window_s=2.5, hop_s=2.0), keep_s=0.5, rows=4)  # each of four rows sees 1 s
ONE_EACH = Demand(audio(window_s=1.0, hop_s=0.5), keep_s=0.5)


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(0, 6 * RATE_HZ), cuts=st.integers(1, 6), order=st.permutations(range(4)))
def test_rows_of_one_window_hold_the_windows_of_each(frames: int, cuts: int, order: list[int]) -> None:
    wave = noise(frames / RATE_HZ, seed=frames)
    demands = [
        TOGETHER,
        ONE_EACH,
        Demand(audio(mel=MEL)),
        Demand(audio(window_s=1.0, hop_s=0.5, mel=MEL), 0.5),
    ]
    demands = [demands[place] for place in order]
    rows = list(SharedAudioFeatures(demands).rows(np.array_split(wave, cuts), RATE_HZ))
    plain = [alone(demand, wave) for demand in demands]
    count = len(alone(ONE_EACH, wave))
    assert len(rows) == -(-count // 4)
    for number, row in enumerate(rows):
        known = min(4, count - 4 * number)
        assert (row.start_s, row.end_s, row.rows) == (2.0 * number, 2.0 * number + 0.5 * known, known)
        for demand, array, windows in zip(demands, row.arrays, plain, strict=True):
            if demand is TOGETHER:
                single = wave[:, 0][round((2.0 * number - 0.25) * RATE_HZ) if number else 0 :]
                expected = np.concatenate([np.zeros(0 if number else RATE_HZ // 4, np.float32), single])
                expected = np.pad(expected, (0, 20_000))[:20_000]
                np.testing.assert_array_equal(array, expected)
                continue
            assert len(array) == 4
            np.testing.assert_array_equal(array[:known], windows[4 * number :][:known])
            assert not array[known:].any()


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(0, 6 * RATE_HZ), keep_s=st.sampled_from([0.5, 0.75, 1.0]))
def test_spans_are_those_of_each_row_of_a_window(frames: int, keep_s: float) -> None:
    features = SharedAudioFeatures([TOGETHER._replace(keep_s=keep_s)])
    each = SharedAudioFeatures([ONE_EACH._replace(keep_s=keep_s)])
    wave = noise(frames / RATE_HZ)
    rows = list(features.rows([wave], RATE_HZ)) if frames else []
    spans = features.spans(frames / RATE_HZ)
    assert spans == each.spans(frames / RATE_HZ)
    found = [features.spans_between(row.start_s, row.end_s) for row in rows]
    assert [len(spans) for spans in found] == [row.rows for row in rows]
    assert [span for spans in found for span in spans] == spans


def test_spans_are_the_same_numbers_wherever_they_come_from() -> None:
    """Rows are looked up by them, so times that no float holds exactly must be rounded in one way."""
    joint = Demand(audio(window_s=0.7, hop_s=0.6), keep_s=0.2, rows=6)
    features = SharedAudioFeatures([joint])
    spans = features.spans(100.0)
    rows = features.rows([noise(100.0)], RATE_HZ)
    assert [span for row in rows for span in features.spans_between(row.start_s, row.end_s)] == spans
    assert spans == SharedAudioFeatures([Demand(audio(window_s=0.2, hop_s=0.1))]).spans(100.0)
    assert len(spans) == 999


def test_windows_of_each_row_are_left_out_where_nobody_wants_them() -> None:
    demands = [TOGETHER, Demand(audio(window_s=1.0, hop_s=0.5, mel=MEL), 0.5), ONE_EACH]
    features = SharedAudioFeatures(demands)
    wave = noise(9.3)
    expected = list(features.rows([wave], RATE_HZ))
    chosen = [{0}, {1, 2}, set(), {2}, {0, 1}]
    rows = list(features.rows([wave], RATE_HZ, wanted=chosen.__getitem__))
    assert len(rows) == len(chosen)
    for wanted, row, other in zip(chosen, rows, expected, strict=True):
        assert (row.start_s, row.end_s, row.rows) == (other.start_s, other.end_s, other.rows)
        assert [array.shape for array in row.arrays] == [array.shape for array in other.arrays]
        for index in wanted:
            np.testing.assert_array_equal(row.arrays[index], other.arrays[index])


def test_a_key_tells_rows_apart() -> None:
    assert feature_key(TOGETHER) != feature_key(Demand(TOGETHER.description, keep_s=0.5))
    assert feature_key(TOGETHER) == feature_key(Demand(TOGETHER.description, keep_s=0.5, rows=4))
    assert feature_key(Demand(TOGETHER.description, keep_s=1.0, rows=4)) == feature_key(
        Demand(TOGETHER.description, rows=4)
    )


def test_rows_keep_their_arrays_when_the_next_one_comes() -> None:
    rows = list(SharedAudioFeatures([Demand(audio())]).rows([noise(2.0)], RATE_HZ))
    np.testing.assert_array_equal(np.concatenate([row.arrays[0] for row in rows]), noise(2.0)[:, 0])


def test_other_rates_are_resampled_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = shared_module.resampled

    def counted(waves: Iterator[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
        asked.append(to_hz)
        return real(waves, from_hz, to_hz)

    monkeypatch.setattr(shared_module, "resampled", counted)
    rates = (4_000, RATE_HZ, 4_000, 5_000)
    demands = [
        Demand(audio(sample_rate_hz=rate, window_s=window_s, hop_s=0.5), keep_s=0.5)
        for rate, window_s in zip(rates, (0.5, 0.5, 1.0, 0.5), strict=True)
    ]
    wave = noise(1.73)
    rows = list(SharedAudioFeatures(demands).rows(np.array_split(wave, 5), RATE_HZ))
    assert sorted(asked) == [4_000, 5_000]
    assert [array.shape for array in rows[0].arrays] == [(2_000,), (4_000,), (4_000,), (2_500,)]
    for index in (0, 1, 3):
        description = demands[index].description
        assert isinstance(description, AudioInput)
        expected = list(AudioFeatures(description).windows([wave], RATE_HZ))
        assert len(expected) == len(rows) == 4
        for row, window in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(row.arrays[index], window.samples)


def test_one_spectrum_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = MelSpectrograms.transform_into

    def counted(self: MelSpectrograms, wave: np.ndarray, outs: list[np.ndarray]) -> None:
        asked.append(len(outs))
        real(self, wave, outs)

    monkeypatch.setattr(MelSpectrograms, "transform_into", counted)
    list(SharedAudioFeatures(SHARING[:3]).rows([noise(0.5)], RATE_HZ))
    assert sorted(asked) == [1, 2]


def test_spectrograms_that_share_an_fft_have_the_bits_of_each_alone() -> None:
    mels = [
        LogMel(n_mels=64, f_min_hz=500.0, f_max_hz=3_000.0),
        LogMel(power=1, channels=3, channel_mode="deltas"),
        LogMel(log="ln", scale="slaney", mel_norm="slaney", normalize=(ZScore(),)),
        LogMel(power=1, log=None, n_mels=20),
    ]
    (wave,) = noise(2.0).T
    together = MelSpectrograms(mels, rate_hz=RATE_HZ, samples=len(wave))
    outs = [np.full(shape, np.nan, np.float32) for shape in together.shapes]
    together.transform_into(wave, outs)
    for mel, out in zip(mels, outs, strict=True):
        one = MelSpectrogram(mel, rate_hz=RATE_HZ, samples=len(wave))
        expected = np.empty(one.shape, np.float32)
        one.transform_into(wave, expected)
        np.testing.assert_array_equal(out, expected)


def test_other_spectra_cannot_share() -> None:
    with pytest.raises(UsageError, match="2 kinds of spectrum"):
        MelSpectrograms([LogMel(), LogMel(hop=320)], rate_hz=RATE_HZ, samples=RATE_HZ)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (audio(), audio(hop_s=0.5)),
        (audio(mel=LogMel()), audio(mel=LogMel(win=2048, f_max_hz=RATE_HZ / 2))),
        (audio(mel=LogMel(log="ln")), audio(mel=LogMel(log="ln", ref="max", top_db=10.0))),
        (audio(mel=LogMel(log=None)), audio(mel=LogMel(log=None, amin=1e-3))),
        (audio(mel=LogMel(center=False)), audio(mel=LogMel(center=False, pad_mode="constant"))),
        (audio(mel=LogMel()), audio(mel=LogMel(channel_mode="deltas"))),
        (ImageInput(mean=(0.5,)), ImageInput(mean=(0.5, 0.5, 0.5))),
    ],
)
def test_descriptions_that_mean_the_same_have_one_key(left: object, right: object) -> None:
    assert left != right
    assert canonical(left) == canonical(right)  # type: ignore[arg-type]
    assert feature_key(Demand(left)) == feature_key(Demand(right))  # type: ignore[arg-type]


def test_the_defaults_that_keys_drop_change_no_features() -> None:
    wave = noise(1.0)
    for left, right in (
        (LogMel(log="ln"), LogMel(log="ln", ref="max", top_db=10.0)),
        (LogMel(log=None), LogMel(log=None, amin=1e-3)),
        (LogMel(center=False), LogMel(center=False, pad_mode="constant")),
    ):
        both = [alone(Demand(audio(mel=mel)), wave) for mel in (left, right)]
        np.testing.assert_array_equal(*both)


def test_a_key_tells_every_field_apart() -> None:
    base = audio(mel=LogMel(channels=3))
    others = [
        msgspec.structs.replace(base, peak_normalize=True),
        msgspec.structs.replace(base, std_normalize=True),
        msgspec.structs.replace(base, hop_s=0.25),
        *(
            msgspec.structs.replace(base, mel=msgspec.structs.replace(base.mel, **{name: value}))
            for name, value in {
                "n_fft": 1024,
                "hop": 320,
                "win": 1024,
                "n_mels": 64,
                "f_min_hz": 1.0,
                "f_max_hz": 3000.0,
                "scale": "slaney",
                "mel_norm": "slaney",
                "power": 1,
                "center": False,
                "pad_mode": "constant",
                "log": "ln",
                "amin": 1e-5,
                "ref": "max",
                "top_db": None,
                "normalize": (ZScore(),),
                "channels": 1,
                "channel_mode": "deltas",
            }.items()
        ),
    ]
    keys = [feature_key(Demand(each)) for each in (base, *others)]
    keys += [feature_key(Demand(base, keep_s=0.5)), feature_key(Demand(audio(hop_s=0.25), keep_s=0.25))]
    assert len(set(keys)) == len(keys) - 1  # to keep all of a window is what happens anyway
    assert feature_key(Demand(audio(window_s=1))) == feature_key(Demand(audio(window_s=1.0)))


def test_keys_stay_the_same_between_releases() -> None:
    assert feature_key(Demand(AudioInput(mel=LogMel()))) == "a2bc84be11adb04c"


def test_distinct_demands() -> None:
    same = Demand(audio(mel=msgspec.structs.replace(MEL, win=256)))
    demands, places = distinct_demands([SHARING[0], SHARING[3], same, SHARING[6]])
    assert demands == (SHARING[0], SHARING[3], SHARING[6])
    assert places == (0, 1, 0, 2)
    assert spectrum_key(MEL) != spectrum_key(LogMel())


@pytest.mark.parametrize(
    ("demands", "says"),
    [
        ([Demand(audio()), Demand(ImageInput())], "Model 2 reads image and the first one audio"),
        (
            [Demand(audio()), Demand(audio(window_s=1.0))],
            "a row for 1 s every 1 s and the first one for 0.5 s",
        ),
        ([Demand(audio()), Demand(audio(hop_s=0.25))], "0.5 s every 0.25 s"),
        (
            # 15,600 and 21,498.75 samples: after a day the one would be a window behind the other.
            [Demand(AudioInput(sample_rate_hz=rate, window_s=0.975)) for rate in (16_000, 22_050)],
            r"0\.975\d* s every 0\.975011338 s and the first one for 0\.975 s",
        ),
        ([Demand(audio(), keep_s=0.6)], "`keep_s` got 0.6"),
        ([Demand(audio(), rows=3)], "a whole number of samples apart"),
        ([TOGETHER, Demand(audio(window_s=1.5, hop_s=1.0), keep_s=0.5, rows=2)], "give 2 and 4 rows"),
        ([Demand(audio(), keep_s=0.4)], "expected at least the hop of 0.5 s"),
    ],
)
def test_demands_that_do_not_go_together(demands: list[Demand], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        distinct_demands(demands)


def test_only_recordings_have_windows() -> None:
    with pytest.raises(UsageError, match="expected audio"):
        SharedAudioFeatures([Demand(ArrayInput())])
