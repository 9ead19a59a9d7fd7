"""What a job reads: recordings by their length and kind, from a folder or a few words."""

from __future__ import annotations

import itertools
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from alula.core import AudioInput
from alula.data import Kind, find_inputs, open_audio
from alula.errors import DataError, UsageError
from alula.features import Demand
from alula.planning import Workload, parse_workload
from alula.workflows.durations import parse_duration_s
from alula.workflows.ensembling import SharedReader
from alula.workflows.prediction import kind_of_input

__all__ = ["PIECE_S", "Inputs", "SoundKind", "inputs_of"]

PIECE_S = 60.0
"""Of each recording that is decoded in a round: enough for its rate, and no long one takes the round."""

_SAMPLE_FILES = 8
_NOISE_S = 60
# Rates that every Vorbis encoder takes.
_VORBIS_HZ = range(8_000, 48_001)

T = TypeVar("T")
# Why files cannot be read.
_Problems: TypeAlias = Mapping[Path, DataError]


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
        samples: files that can be read, by the kind of their sound; of images and arrays all under None.
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
    demands: Sequence[Demand],
    row_s: float | None,
    examples: Sequence[Path],
    scratch: Path,
) -> Inputs:
    """Return what a job reads.

    Args:
        workload: `200x10m`; for images and arrays a count; or a folder, which is looked through.
        demands: what the members want to see of a file.
        row_s: seconds of a recording that a row of the output stands for; None for images and arrays.
        examples: other files of this kind, for a workload that names none.
        scratch: folder for a made-up recording where there are no examples.

    Raises:
        UsageError: it is no workload, or there is nothing to measure with.
        DataError: the folder holds nothing that can be read.
    """
    description = demands[0].description
    kind = kind_of_input(description)
    reader = SharedReader(demands)
    text = str(workload)
    if Path(workload).exists():
        files = find_inputs([workload], kind=kind)
        if row_s is not None:
            return _audio_inputs(files, reader, row_s)
        return _file_inputs(files, reader, kind, count=None)
    if row_s is None:
        if not text.strip().isdigit() or int(text) == 0:
            raise UsageError(
                f"`{text}` is no workload of {kind} files; expected a folder or a count such as 5000."
            )
        if not examples:
            raise UsageError(f"There are no {kind} files to measure with. Give a folder as the workload.")
        return _file_inputs(examples, reader, kind, count=int(text))
    if not any(mark in text for mark in "x×"):
        raise UsageError(
            f"The workload {text} is no folder that exists; expected one, or count and length: 200x10m."
        )
    planned = parse_workload(text, row_s=row_s, seconds=parse_duration_s)
    assert isinstance(description, AudioInput)
    if examples:
        found = _audio_inputs(examples, reader, row_s)
        note = "decoding was measured on the data, not on the files of the job"
    else:
        made = _made_up(scratch, description.sample_rate_hz)
        found = _audio_inputs([made], reader, row_s)
        note = f"decoding was measured on noise as {made.suffix}, not on the files of the job"
    return Inputs(
        workload=planned, kind=kind, samples=found.samples, shares=found.shares, notes=(*found.notes, note)
    )


def _file_inputs(files: Sequence[Path], reader: SharedReader, kind: Kind, *, count: int | None) -> Inputs:
    """Return the workload of so many files like these, or where no number is given of these."""

    def read(path: Path) -> None:
        for _ in reader.rows(path):
            pass

    samples, problems = _samples(files, read)
    if not samples:
        raise _nothing_left(files, problems)
    count = len(files) - len(problems) if count is None else count
    return Inputs(
        workload=Workload(files=count, rows=count, longest_rows=1),
        kind=kind,
        samples={None: samples},
        shares={None: 1.0},
        notes=_left_out(problems),
    )


def _audio_inputs(files: Sequence[Path], reader: SharedReader, row_s: float) -> Inputs:
    def read(path: Path) -> None:
        with open_audio(path, end_s=PIECE_S) as audio:
            for _ in audio.blocks():
                pass
        # A window may be longer than the piece.
        for _ in itertools.islice(reader.rows(path), 1):
            pass

    found: dict[Path, tuple[SoundKind, float | None]] = {}
    problems: dict[Path, DataError] = {}
    # Headers: what counts is the disk's latency.
    with ThreadPoolExecutor(8, thread_name_prefix="alula-scan") as pool:
        headers = pool.map(lambda path: _read(_header, path), files)
        for path, header in zip(files, headers, strict=True):
            if isinstance(header, DataError):
                problems[path] = header
            else:
                found[path] = header
    by_kind: defaultdict[SoundKind, list[Path]] = defaultdict(list)
    for path, (kind, _) in found.items():
        by_kind[kind].append(path)
    samples = {}
    for kind, paths in by_kind.items():
        samples[kind], damaged = _samples(paths, read)
        problems |= damaged
    whole = [header for path, header in found.items() if path not in problems]
    lengths_s = [length_s for _, length_s in whole if length_s is not None]
    if not lengths_s:
        raise _nothing_left(files, problems)
    notes = _left_out(problems)
    without_length = len(whole) - len(lengths_s)
    if without_length:
        mean_s = statistics.fmean(lengths_s)
        lengths_s += [mean_s] * without_length
        notes += (f"{without_length} files do not say how long they are; taken for {mean_s:.0f} s each",)
    total_s: defaultdict[SoundKind, float] = defaultdict(float)
    for kind, length_s in whole:
        if length_s is not None:
            total_s[kind] += length_s
    whole_s = sum(total_s.values())
    return Inputs(
        workload=Workload.of_lengths(lengths_s, row_s=row_s),
        kind="audio",
        samples={kind: samples[kind] for kind in total_s},
        shares={kind: part_s / whole_s for kind, part_s in total_s.items()},
        notes=notes,
    )


def _samples(files: Sequence[Path], read: Callable[[Path], None]) -> tuple[tuple[Path, ...], _Problems]:
    """Return files to measure with, spread over all, and why others that were tried cannot be read."""
    step = max(1, len(files) // _SAMPLE_FILES)
    samples: list[Path] = []
    problems: dict[Path, DataError] = {}
    # Those that are spread out come first; the others only in place of damaged ones.
    for place in sorted(range(len(files)), key=lambda place: place % step):
        if len(samples) == _SAMPLE_FILES:
            break
        error = _read(read, files[place])
        if error is None:
            samples.append(files[place])
        else:
            problems[files[place]] = error
    return tuple(samples), problems


def _read(read: Callable[[Path], T], path: Path) -> T | DataError:
    """Return what is read of a file, or why it cannot be read."""
    try:
        return read(path)
    except DataError as error:
        return error
    except OSError as error:  # of the disk, under a file that is open already
        return DataError(path, f"cannot be read: {error.strerror or error}.")


def _nothing_left(files: Sequence[Path], problems: _Problems) -> DataError:
    reasons = [error.reason for error in problems.values()]
    reason = reasons[0] if reasons else "no file says how long it is; give count and length."
    folder = Path(os.path.commonpath([os.path.abspath(path.parent) for path in files]))  # noqa: PTH100
    return DataError(folder, f"None of its {len(files)} files can be planned for: {reason}")


def _left_out(problems: _Problems) -> tuple[str, ...]:
    if not problems:
        return ()
    example = next(iter(problems.values()))
    return (f"{len(problems)} files cannot be read and are left out, for example {example}",)


def _header(path: Path) -> tuple[SoundKind, float | None]:
    with open_audio(path) as audio:
        kind = SoundKind(suffix=path.suffix.lower(), rate_hz=audio.rate_hz, channels=audio.channels)
        return kind, audio.duration_s


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
