"""Features of several models from one file, each computed once.

Models that ask for equal features get the same array. Audio models that ask for other mel bands of the same
spectrum share the FFT; those that ask for other spectra of the same windows share the windows; those of one
sample rate share the resampling. What two descriptions have in common is told by keys, which ignore
differences in writing that make none in the features.

A model may give several rows of each of its windows. Then these rows belong together: the others get as many
windows at once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from alula.core import ArrayInput, AudioInput, ImageInput, InputDescription, LogMel
from alula.errors import UsageError
from alula.features.audio import count_windows, cut_stretches, mixed, normalize, resampled
from alula.features.mel import MelSpectrograms, spectrum_key

__all__ = ["Demand", "SharedAudioFeatures", "SharedRow", "canonical", "distinct_demands", "feature_key"]

Float32 = npt.NDArray[np.float32]


class Demand(NamedTuple):
    """What a model wants to see of a file.

    Attributes:
        description: how a file becomes its input.
        keep_s: of audio, see `alula.core.View`; None for whole windows.
        rows: of audio, likewise: that the model gives of each window.
    """

    description: InputDescription
    keep_s: float | None = None
    rows: int = 1


class SharedRow(NamedTuple):
    """One row of a recording for all models, or those rows that belong together.

    Attributes:
        start_s: where the stretch that it is about begins, in seconds; of several, the first one's.
        end_s: where it ends; of several, where the last one of the recording does.
        arrays: one per demand, float32, shape (t,) or (c, f, t); with several rows to a demand's window that
            of its window, and for the other demands that of as many windows, (rows, t) or (rows, c, f, t).
            Windows behind the last row of the recording are zeros.
        rows: how many rows of the recording it stands for.
    """

    start_s: float
    end_s: float
    arrays: tuple[Float32, ...]
    rows: int = 1


def canonical(description: InputDescription) -> InputDescription:
    """Return the description as it would be written with every default said and nothing that has no effect.

    >>> canonical(AudioInput(hop_s=5.0)) == canonical(AudioInput(window_s=5.0))
    True
    """
    match description:
        case AudioInput(mel=mel):
            return msgspec.structs.replace(
                description,
                hop_s=description.window_s if description.hop_s is None else description.hop_s,
                mel=None if mel is None else _canonical_mel(mel, description.sample_rate_hz),
            )
        case ImageInput(channels=channels, mean=mean, std=std):
            return msgspec.structs.replace(
                description,
                mean=mean if len(mean) == channels else mean * channels,
                std=std if len(std) == channels else std * channels,
            )
        case ArrayInput():
            return description


def _canonical_mel(mel: LogMel, rate_hz: int) -> LogMel:
    spectrum = spectrum_key(mel)
    in_db = mel.log == "db"
    return msgspec.structs.replace(
        mel,
        win=spectrum.win,
        pad_mode=spectrum.pad_mode,
        f_max_hz=rate_hz / 2 if mel.f_max_hz is None else mel.f_max_hz,
        amin=mel.amin if mel.log is not None else 1.0,
        ref=mel.ref if in_db else 1.0,
        top_db=mel.top_db if in_db else None,
        channel_mode=mel.channel_mode if mel.channels == 3 else "repeat",
    )


def feature_key(demand: Demand) -> str:
    """Return 16 hexadecimal digits that are the same for demands that give the same features.

    They stay the same between processes and machines, so that what is stored under them can be found again.

    >>> a, b = AudioInput(mel=LogMel()), AudioInput(mel=LogMel(win=2048))
    >>> feature_key(Demand(a)) == feature_key(Demand(b)) == feature_key(Demand(a, keep_s=5.0))
    True
    """
    description = canonical(demand.description)
    keep_s = demand.keep_s
    if isinstance(description, AudioInput) and keep_s is None:
        keep_s = _seen_s(description, demand.rows)
    said = msgspec.json.encode((description, None if keep_s is None else float(keep_s)))
    # Once there and back, because 5 and 5.0 are one number and two texts.
    said = msgspec.json.encode(msgspec.json.decode(said, type=tuple[InputDescription, float | None]))
    if demand.rows > 1:
        said += b" %d" % demand.rows
    return hashlib.sha256(said).hexdigest()[:16]


def distinct_demands(demands: Sequence[Demand]) -> tuple[tuple[Demand, ...], tuple[int, ...]]:
    """Return the demands without repetitions, and for each of those given its place among them.

    Raises:
        UsageError: they are not about the same kind of files, or their rows not about the same stretches of
            time, or of some windows other numbers of rows are made.

    >>> wave = Demand(AudioInput())
    >>> distinct_demands([wave, Demand(AudioInput(mel=LogMel())), wave])[1]
    (0, 1, 0)
    """
    first = demands[0]
    for number, demand in enumerate(demands, 1):
        if type(demand.description) is not type(first.description):
            raise UsageError(
                f"Model {number} reads {_kind(demand)} and the first one {_kind(first)}; expected one kind "
                "of files. Make an ensemble for each kind."
            )
        if _grid(demand) != _grid(first):
            raise UsageError(
                f"Model {number} gives a row for {_grid_in_words(demand)} and the first one for "
                f"{_grid_in_words(first)}; expected rows about the same stretches of time. Say with `keep_s` "
                "which part of a longer window its row is about, or make its bundle with another hop."
            )
    if len(numbers := {demand.rows for demand in demands} - {1}) > 1:
        raise UsageError(
            f"Models give {' and '.join(map(str, sorted(numbers)))} rows of a window; expected one number, "
            "beside models that give one row."
        )
    places: dict[str, int] = {}
    distinct: list[Demand] = []
    indices = []
    for demand in demands:
        key = feature_key(demand)
        if key not in places:
            places[key] = len(distinct)
            distinct.append(demand)
        indices.append(places[key])
    return tuple(distinct), tuple(indices)


def _kind(demand: Demand) -> str:
    return str(demand.description.__struct_config__.tag)


def _row_grid(demand: Demand) -> tuple[float, float]:
    """Return the seconds between two rows of a recording and those that a row is about.

    Raises:
        UsageError: it is no audio, or its rows are impossible.
    """
    audio = demand.description
    if not isinstance(audio, AudioInput):
        raise UsageError(f"A description is of {_kind(demand)}; expected audio.")
    return _hop_s(audio) / demand.rows, _checked_keep_s(audio, demand.keep_s, demand.rows)


def _grid(demand: Demand) -> tuple[Fraction, float] | None:
    """Return the same, so that equal ones compare equal; None for files without times.

    The first is exact, by samples: what differs by less than one would be a window after a day.
    """
    audio = demand.description
    if not isinstance(audio, AudioInput):
        return None
    _, keep_s = _row_grid(demand)
    return Fraction(audio.hop_samples, audio.sample_rate_hz * demand.rows), round(keep_s, 6)


def _grid_in_words(demand: Demand) -> str:
    hop_s, keep_s = _grid(demand) or (Fraction(0), 0.0)
    return f"{keep_s:g} s every {float(hop_s):.9g} s"


@dataclass(frozen=True, eq=False)
class _Waves:
    """Windows as waves, scaled in one way, and what is computed from them."""

    scaling: AudioInput  # one that asks for this way
    plain: tuple[int, ...]  # demands that take the wave itself
    spectra: tuple[tuple[MelSpectrograms, tuple[int, ...]], ...]


@dataclass(frozen=True, eq=False)
class _Cut:
    """One way to cut a recording into windows of some rows each."""

    rate_hz: int
    length: int
    hop: int
    lead: int
    trail: int
    rows: int
    waves: tuple[_Waves, ...]  # one for each way to scale them

    @property
    def row_hop(self) -> int:
        """Samples from one row to the next."""
        return self.hop // self.rows

    @property
    def seen(self) -> int:
        """Samples that one row of a window sees."""
        return self.length - (self.rows - 1) * self.row_hop

    def known_rows(self, filled: int) -> int:
        """Return how many rows of a window there are, when so many of its samples are the recording's."""
        return min(self.rows, 1 + max(0, -(-(filled - self.seen) // self.row_hop)))


class SharedAudioFeatures:
    """Turns recordings into the rows of several models.

    Thread-safe: one object may serve any number of threads at once. Every array has the bits that
    `AudioFeatures` gives for its description alone, with the recording in silence where `keep_s` asks for
    context.

    Args:
        demands: of audio, from `distinct_demands`.

    Raises:
        UsageError: a description is impossible, or `keep_s` is longer than what a row sees or shorter than
            what lies between rows.
        EngineUnavailableError: scipy is missing and a spectrogram is asked for.

    >>> demands = [Demand(AudioInput(sample_rate_hz=4, window_s=2.0, hop_s=1.0), keep_s=1.0)]
    >>> rows = SharedAudioFeatures(demands).rows([np.ones((6, 1), np.float32)], 4)
    >>> [(row.start_s, row.arrays[0].tolist()) for row in rows]
    [(0.0, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), (1.0, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])]
    """

    def __init__(self, demands: Sequence[Demand]) -> None:
        described: list[AudioInput] = []
        users: dict[tuple[int, int, int, int, int], list[int]] = defaultdict(list)
        for index, demand in enumerate(demands):
            audio = demand.description
            if not isinstance(audio, AudioInput):
                raise UsageError(f"A description is of {_kind(demand)}; expected audio.")
            described.append(audio)
            keep = round(_row_grid(demand)[1] * audio.sample_rate_hz)
            cut = (audio.sample_rate_hz, audio.window_samples, audio.hop_samples, keep, demand.rows)
            users[cut].append(index)
        cuts = []
        for (rate_hz, length, hop, keep, rows), indices in users.items():
            around = length - (rows - 1) * hop // rows - keep
            cuts.append(
                _Cut(
                    rate_hz=rate_hz,
                    length=length,
                    hop=hop,
                    lead=around // 2,
                    trail=around - around // 2,
                    rows=rows,
                    waves=_scaled_waves(described, indices),
                )
            )
        # The first one counts the rows, and only windows of all rows that belong together can.
        self._cuts = tuple(sorted(cuts, key=lambda cut: -cut.rows))
        self._rows = self._cuts[0].rows
        self._keep_s = _row_grid(demands[0])[1]
        self._count = len(demands)

    def spans(self, duration_s: float) -> list[tuple[float, float]]:
        """Return where the rows of a recording of this length begin and end, in seconds, each by itself.

        Of a recording at another rate they may be one more or fewer, by the rounding of its last sample.
        """
        first = self._cuts[0]
        count = count_windows(
            round(duration_s * first.rate_hz),
            length=first.seen,
            hop=first.row_hop,
            lead=first.lead,
            trail=first.trail,
        )
        return [self._span(index) for index in range(count)]

    def spans_between(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """Return where each row begins and ends of those that a `SharedRow` from here to there stands for."""
        first = self._cuts[0]
        row_hop_s = first.row_hop / first.rate_hz
        index = round(start_s / row_hop_s)
        last = index + round((end_s - start_s - self._keep_s) / row_hop_s)
        return [self._span(row) for row in range(index, last + 1)]

    def _span(self, index: int) -> tuple[float, float]:
        """Return where a row lies, counted from the recording's first: always the same two numbers."""
        start_s = index * self._cuts[0].row_hop / self._cuts[0].rate_hz
        return start_s, start_s + self._keep_s

    def rows(
        self,
        blocks: Iterable[npt.NDArray[Any]],
        rate_hz: int,
        *,
        wanted: Callable[[int], Collection[int]] | None = None,
    ) -> Iterator[SharedRow]:
        """Yield the rows of one recording, in order, while its blocks come in.

        There are as many as the first demand has windows, of those with most rows. Where another rate makes
        one more or one fewer of another, by the rounding of the last sample, it is left out or silent.

        Args:
            blocks: consecutive pieces of the recording, each float32 of shape (t, c), any t.
            rate_hz: samples per second of the blocks.
            wanted: given the number of what is yielded, says which demands are to be computed; the arrays of
                others hold anything. None computes all.

        Raises:
            DataError: a block has another shape or type.
            EngineUnavailableError: soxr is missing and a rate is another.
        """
        first = self._cuts[0]
        windows = self._windows(map(mixed, blocks), rate_hz)
        for index, (wave, filled) in enumerate(windows[0]):
            arrays: list[Float32 | None] = [None] * self._count
            chosen = None if wanted is None else wanted(index)
            _compute(first, wave, arrays, chosen)
            known = first.known_rows(filled)
            for cut, others in zip(self._cuts[1:], windows[1:], strict=True):
                if cut.rows == first.rows:
                    _compute(cut, _next(others, cut), arrays, chosen)
                else:
                    self._compute_several(cut, others, arrays, chosen, known=known)
            start_s, _ = self._span(index * first.rows)
            _, end_s = self._span(index * first.rows + known - 1)
            yield SharedRow(start_s, end_s, tuple(array for array in arrays if array is not None), known)

    def _compute_several(
        self,
        cut: _Cut,
        windows: Iterator[tuple[Float32, int]],
        arrays: list[Float32 | None],
        chosen: Collection[int] | None,
        *,
        known: int,
    ) -> None:
        """Compute what belongs to windows of one row each, as many as belong together."""
        for row in range(known):
            found: list[Float32 | None] = [None] * self._count
            _compute(cut, _next(windows, cut), found, chosen)
            for index, array in enumerate(found):
                if array is None:
                    continue
                together = arrays[index]
                if together is None:
                    together = arrays[index] = np.zeros((self._rows, *array.shape), np.float32)
                together[row] = array

    def _windows(self, mono: Iterator[Float32], rate_hz: int) -> list[Iterator[tuple[Float32, int]]]:
        """Return the windows of every cut; asked for by turns, so that little is held for the last."""
        rates = dict.fromkeys(cut.rate_hz for cut in self._cuts)
        sources = dict(zip(rates, itertools.tee(mono, len(rates)), strict=True))
        streams: dict[int, Iterator[Iterator[Float32]]] = {}
        for rate, source in sources.items():
            waves = iter(source if rate == rate_hz else resampled(source, rate_hz, rate))
            streams[rate] = iter(itertools.tee(waves, sum(cut.rate_hz == rate for cut in self._cuts)))
        return [
            cut_stretches(
                next(streams[cut.rate_hz]), length=cut.length, hop=cut.hop, lead=cut.lead, trail=cut.trail
            )
            for cut in self._cuts
        ]


def _next(windows: Iterator[tuple[Float32, int]], cut: _Cut) -> Float32:
    found = next(windows, None)
    return np.zeros(cut.length, np.float32) if found is None else found[0]


def _hop_s(audio: AudioInput) -> float:
    return audio.window_s if audio.hop_s is None else audio.hop_s


def _seen_s(audio: AudioInput, rows: int) -> float:
    """Return the seconds that one row of a window sees: all of it where there is one row."""
    if rows == 1:
        return audio.window_s
    return (audio.window_samples - (rows - 1) * audio.hop_samples / rows) / audio.sample_rate_hz


def _checked_keep_s(audio: AudioInput, keep_s: float | None, rows: int) -> float:
    seen_s, hop_s = _seen_s(audio, rows), _hop_s(audio) / rows
    if audio.hop_samples % rows:
        raise UsageError(
            f"A window every {audio.hop_samples} samples got {rows} rows; expected a number that divides "
            "them, so that rows lie a whole number of samples apart."
        )
    if keep_s is None:
        return seen_s
    # In samples, as differences of seconds are rounded.
    hop, keep, seen = (round(seconds * audio.sample_rate_hz) for seconds in (hop_s, keep_s, seen_s))
    if not hop <= keep <= seen:
        raise UsageError(
            f"`keep_s` got {keep_s:g}; expected at least the hop of {hop_s:g} s, or stretches between rows "
            f"would belong to none, and at most the window of {seen_s:g} s."
        )
    return keep_s


def _scaled_waves(described: Sequence[AudioInput], indices: Sequence[int]) -> tuple[_Waves, ...]:
    scalings: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    for index in indices:
        audio = described[index]
        scalings[audio.peak_normalize, bool(audio.std_normalize)].append(index)
    return tuple(_waves_of(described, alike) for alike in scalings.values())


def _waves_of(described: Sequence[AudioInput], indices: Sequence[int]) -> _Waves:
    kinds: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    plain = []
    for index in indices:
        mel = described[index].mel
        if mel is None:
            plain.append(index)
        else:
            kinds[spectrum_key(mel)].append(index)
    spectra = []
    for alike in kinds.values():
        audio = described[alike[0]]
        mels = [mel for index in alike if (mel := described[index].mel) is not None]
        shared = MelSpectrograms(mels, rate_hz=audio.sample_rate_hz, samples=audio.window_samples)
        spectra.append((shared, tuple(alike)))
    return _Waves(described[indices[0]], tuple(plain), tuple(spectra))


def _compute(cut: _Cut, wave: Float32, arrays: list[Float32 | None], chosen: Collection[int] | None) -> None:
    def is_wanted(indices: Iterable[int]) -> bool:
        return chosen is None or any(index in chosen for index in indices)

    for waves in cut.waves:
        scaled = wave.copy()  # the window's memory is that of the next one, too
        if is_wanted(itertools.chain(waves.plain, *(indices for _, indices in waves.spectra))):
            normalize(scaled[None], waves.scaling)
        for index in waves.plain:
            arrays[index] = scaled
        for spectrograms, indices in waves.spectra:
            outs = [np.empty(shape, np.float32) for shape in spectrograms.shapes]
            if is_wanted(indices):
                spectrograms.transform_into(scaled, outs)
            for index, out in zip(indices, outs, strict=True):
                arrays[index] = out
