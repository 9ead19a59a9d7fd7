"""What a job reads: recordings by their length and kind, from a folder or a few words."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alula.core import AudioInput, InputDescription
from alula.data import Kind, find_inputs, open_audio
from alula.errors import DataError, UsageError
from alula.planning import Workload, parse_workload
from alula.workflows.durations import parse_duration_s
from alula.workflows.prediction import kind_of_input

__all__ = ["Inputs", "SoundKind", "inputs_of"]

_SAMPLE_FILES = 8
_NOISE_S = 60
# Rates that every Vorbis encoder takes.
_VORBIS_HZ = range(8_000, 48_001)


@dataclass(frozen=True, kw_only=True)
class SoundKind:
    """Recordings that are decoded alike.

    Attributes:
        suffix: of the files, in lower case.
        rate_hz: samples per second.
        channels: how many.
    """

    suffix: str
    rate_hz: int
    channels: int

    def __str__(self) -> str:
        stereo = "" if self.channels == 1 else f" {self.channels} ch"
        return f"{self.suffix} {self.rate_hz / 1000:g} kHz{stereo}"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a job reads, and files to measure that with.

    Attributes:
        workload: how much.
        kind: of the files.
        samples: files by the kind of their sound; of images and arrays all under None.
        shares: of the seconds of the workload that each kind of sound has; of images and arrays 1 under None.
        notes: what a reader must know of the figures.
    """

    workload: Workload
    kind: Kind
    samples: Mapping[SoundKind | None, tuple[Path, ...]]
    shares: Mapping[SoundKind | None, float]
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> SoundKind | None:
        """The kind of most of the workload."""
        return max(self.shares, key=lambda kind: self.shares[kind])


def inputs_of(
    workload: str | Path,
    *,
    description: InputDescription,
    row_s: float | None,
    examples: Sequence[Path],
    scratch: Path,
) -> Inputs:
    """Return what a job reads.

    Args:
        workload: `200x10m`; for images and arrays a count; or a folder, which is looked through.
        description: of the files.
        row_s: seconds of a recording that a row of the output stands for; None for images and arrays.
        examples: other files of this kind, for a workload that names none.
        scratch: folder for a made-up recording where there are no examples.

    Raises:
        UsageError: it is no workload, or there is nothing to measure with.
        DataError: the folder holds nothing to read.
    """
    kind = kind_of_input(description)
    text = str(workload)
    if Path(workload).exists():
        files = find_inputs([workload], kind=kind)
        return _audio_inputs(files, row_s) if row_s is not None else _file_inputs(files, len(files), kind)
    if row_s is None:
        if not text.strip().isdigit() or int(text) == 0:
            raise UsageError(
                f"`{text}` is no workload of {kind} files; expected a folder or a count such as 5000."
            )
        if not examples:
            raise UsageError(f"There are no {kind} files to measure with. Give a folder as the workload.")
        return _file_inputs(list(examples), int(text), kind)
    if not any(mark in text for mark in "x×"):
        raise UsageError(
            f"The workload {text} is no folder that exists; expected one, or count and length: 200x10m."
        )
    planned = parse_workload(text, row_s=row_s, seconds=parse_duration_s)
    assert isinstance(description, AudioInput)
    if examples:
        found = _audio_inputs(list(examples), row_s)
        note = "decoding was measured on the data, not on the files of the job"
    else:
        made = _made_up(scratch, description.sample_rate_hz)
        found = _audio_inputs([made], row_s)
        note = f"decoding was measured on noise as {made.suffix}, not on the files of the job"
    return Inputs(
        workload=planned, kind=kind, samples=found.samples, shares=found.shares, notes=(*found.notes, note)
    )


def _file_inputs(files: Sequence[Path], count: int, kind: Kind) -> Inputs:
    step = max(1, len(files) // _SAMPLE_FILES)
    return Inputs(
        workload=Workload(files=count, rows=count, longest_rows=1),
        kind=kind,
        samples={None: tuple(files[::step][:_SAMPLE_FILES])},
        shares={None: 1.0},
    )


def _audio_inputs(files: Sequence[Path], row_s: float) -> Inputs:
    lengths_s: list[float] = []
    total_s: defaultdict[SoundKind, float] = defaultdict(float)
    by_kind: defaultdict[SoundKind, list[Path]] = defaultdict(list)
    without_length, problems = 0, []
    # Headers: what counts is the disk's latency.
    with ThreadPoolExecutor(8, thread_name_prefix="alula-scan") as pool:
        for path, found in zip(files, pool.map(_header, files), strict=True):
            if isinstance(found, DataError):
                problems.append(found)
                continue
            kind, length_s = found
            by_kind[kind].append(path)
            if length_s is None:
                without_length += 1
                continue
            lengths_s.append(length_s)
            total_s[kind] += length_s
    if not lengths_s:
        reason = problems[0].reason if problems else "no file says how long it is; give count and length."
        raise DataError(files[0].parent, f"None of its {len(files)} files can be planned for: {reason}")
    notes = []
    if problems:
        notes.append(f"{len(problems)} files cannot be read and are left out, for example {problems[0]}")
    if without_length:
        mean_s = statistics.fmean(lengths_s)
        lengths_s += [mean_s] * without_length
        notes.append(f"{without_length} files do not say how long they are; taken for {mean_s:.0f} s each")
    whole_s = sum(total_s.values())
    return Inputs(
        workload=Workload.of_lengths(lengths_s, row_s=row_s),
        kind="audio",
        samples={
            kind: tuple(paths[:: max(1, len(paths) // _SAMPLE_FILES)][:_SAMPLE_FILES])
            for kind, paths in by_kind.items()
            if kind in total_s
        },
        shares={kind: part_s / whole_s for kind, part_s in total_s.items()},
        notes=tuple(notes),
    )


def _header(path: Path) -> tuple[SoundKind, float | None] | DataError:
    try:
        with open_audio(path) as audio:
            kind = SoundKind(suffix=path.suffix.lower(), rate_hz=audio.rate_hz, channels=audio.channels)
            return kind, audio.duration_s
    except DataError as error:
        return error


def _made_up(scratch: Path, rate_hz: int) -> Path:
    """Write a minute of noise that falls with the frequency, as soundscapes do, and return its path."""
    import soundfile

    random = np.random.default_rng(0)
    vorbis = rate_hz in _VORBIS_HZ
    path = scratch / ("noise.ogg" if vorbis else "noise.flac")
    how = {"format": "OGG", "subtype": "VORBIS"} if vorbis else {"format": "FLAC", "subtype": "PCM_16"}
    with soundfile.SoundFile(path, "w", rate_hz, 1, **how) as file:
        # In pieces: one long write has made the Vorbis encoder of libsndfile overflow its stack.
        for _ in range(_NOISE_S):
            white = random.standard_normal(rate_hz + 31).astype(np.float32)
            file.write(0.02 * np.convolve(white, np.ones(32, np.float32) / 6, mode="valid"))
    return path
