"""Audio files as blocks of samples, through libsndfile (`soundfile`)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from alula.errors import DataError, EngineUnavailableError, UsageError

__all__ = ["AUDIO_SUFFIXES", "AudioBlocks", "open_audio"]

AUDIO_SUFFIXES = frozenset(
    {
        ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd",
        ".w64", ".wav", ".wave",
    }
)  # fmt: skip
"""Extensions, in lower case, of the files that `open_audio` reads."""

# 16 MiB of float32: what one block may take, whatever the rate and the number of channels.
_MAX_BLOCK_VALUES = 1 << 22

_MIN_RATE_HZ = 1_000
_MAX_RATE_HZ = 1_000_000  # above the 500 kHz of bat detectors

# Integers stored as floats without scaling reach 2**31; anything far beyond is not sound, and its power
# would overflow float32.
_MAX_AMPLITUDE = 1e10

# libsndfile's number of frames for a stream that does not say how long it is.
_UNKNOWN_FRAMES = (1 << 63) - 1

# Two encoder delays of MP3 with a frame: what a whole file may lack of the length in its header.
_LOOK_BYTES = 1 << 20
_CODEC_PADDING_FRAMES = 4_608

# Sizes that programs write into a header when they stream and cannot come back to correct it.
_STREAMED_SIZE = 0x7FFF_0000

# libsndfile's log when the file ends before the samples that its header announces: WAV, AIFF, AU, W64, RF64.
_CUT_SHORT = re.compile(
    r"^\s*(?:data|SSND|riff|Data Size|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE
)

# An Ogg page: capture pattern and version, flags, position, serial, sequence and sum, number of segments.
_OGG_PAGE = b"OggS\x00"
_OGG_HEADER_BYTES = 27
_OGG_MAX_PAGE_BYTES = 65_307

# What may follow the music in an MP3: tags.
_MP3_TAIL_BYTES = 16_384


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ImportError as error:
        raise EngineUnavailableError("soundfile", install="pip install 'alula[audio]'") from error
    except OSError as error:  # the Python part is there, the library libsndfile is not
        raise EngineUnavailableError(
            "libsndfile", install="pip install --force-reinstall soundfile"
        ) from error
    module: ModuleType = soundfile
    return module


class AudioBlocks:
    """One recording, or a part of it, that can be read block by block.

    Nothing stays open: the file is open while `blocks` runs and is closed when it ends, fails or is given
    up. In a `with` statement it is closed at the end of the statement at the latest. An object belongs to
    one thread at a time.

    Attributes:
        path: the file.
        rate_hz: samples per second.
        channels: number of channels.
        duration_s: seconds that `blocks` will deliver, as far as the header tells; None where it does not.
    """

    def __init__(
        self,
        path: Path,
        *,
        rate_hz: int,
        channels: int,
        frames: int | None,
        first: int,
        last: int | None,
        block_frames: int,
    ) -> None:
        self.path = path
        self.rate_hz = rate_hz
        self.channels = channels
        self._first = first
        self._last = last
        self._frames = frames
        self._block_frames = block_frames
        end = last if last is not None else frames
        self.duration_s = None if frames is None or end is None else (end - first) / rate_hz
        self._running: Generator[npt.NDArray[np.float32], None, None] | None = None

    def __enter__(self) -> AudioBlocks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file if `blocks` is still reading it."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the samples in order, from the start at each call.

        Returns:
            Arrays of shape (t, c), float32, about [-1, 1], finite; each is the caller's to keep. Every t but
            the last is the same; there is at least one block, and none is empty.

        Raises:
            DataError: the file ends early, is damaged, or holds values that are no sound.
        """
        self.close()
        self._running = self._read()
        return self._running

    def _read(self) -> Generator[npt.NDArray[np.float32], None, None]:
        with _opened(self.path) as (file, sound):
            if sound.samplerate != self.rate_hz or sound.channels != self.channels:
                raise DataError(self.path, "the file was changed while it was read.")
            at = self._first
            if at >= sound.frames:
                raise _starts_behind_end(self.path, at, sound)
            try:
                if at:  # never without need: a seek in MP3 decodes all that lies before
                    sound.seek(at)
                while self._last is None or at < self._last:
                    wanted = self._block_frames if self._last is None else self._last - at
                    block = sound.read(min(wanted, self._block_frames), dtype="float32", always_2d=True)
                    if not len(block):
                        break
                    self._check_values(block, at)
                    at += len(block)
                    yield block
            except _soundfile().SoundFileError as error:
                raise DataError(
                    self.path,
                    f"damaged or truncated: decoding stopped after {at / self.rate_hz:.2f} s. "
                    "Replace the file.",
                ) from (_disk_error(file) or error)
            self._check_end(file, sound, at)

    def _check_values(self, block: npt.NDArray[np.float32], at: int) -> None:
        # NumPy's maximum is NaN where any value is, so one comparison finds NaN, infinity and nonsense.
        peak = max(float(block.max()), -float(block.min()))
        if not peak <= _MAX_AMPLITUDE:
            what = f"samples of {peak:.1e}" if np.isfinite(block).all() else "NaN or infinite samples"
            raise DataError(
                self.path,
                f"holds {what} in the block at {at / self.rate_hz:.2f} s; "
                "expected finite values, about -1 to 1.",
            )

    def _check_end(self, file: BinaryIO, sound: Any, at: int) -> None:
        """Raise if reading ended before the samples did."""
        if at == self._first:
            raise DataError(self.path, "holds a header, but no samples.")
        if self._last is not None and at >= self._last:
            return
        if self._frames is not None:
            expected = self._frames if self._last is None else self._last
            if expected - at > _CODEC_PADDING_FRAMES:
                raise DataError(
                    self.path,
                    f"truncated: {expected / self.rate_hz:.2f} s announced, {at / self.rate_hz:.2f} s there.",
                ) from _disk_error(file)
        elif sound.format == "MP3":
            # libsndfile guesses the length from the bit rate of the first frame, and stops there.
            left = os.fstat(file.fileno()).st_size - os.lseek(file.fileno(), 0, os.SEEK_CUR)
            if left > _MP3_TAIL_BYTES:
                raise DataError(
                    self.path,
                    "an MP3 of variable bit rate without a Xing header: the decoder takes it for shorter "
                    f"than it is and stopped at {at / self.rate_hz:.2f} s. Convert it, for example to FLAC.",
                )


def open_audio(
    path: str | Path, *, start_s: float = 0.0, end_s: float | None = None, block_s: float = 20.0
) -> AudioBlocks:
    """Return a recording whose header has been read and checked, ready for its blocks.

    WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, AU, CAF, W64 and RF64 are read; what counts is the content,
    not the extension. An `end_s` behind the end means the end.

    Args:
        path: the file.
        start_s: where to begin, in seconds.
        end_s: where to stop, in seconds; None for the end.
        block_s: seconds in a block, fewer where a block would exceed 4 million values.

    Raises:
        DataError: the file is missing, empty, truncated, no audio, or without samples, or the times lie
            outside of it.
        UsageError: `block_s` is not positive.
        EngineUnavailableError: soundfile is missing.
    """
    path = Path(path)
    if not block_s > 0:
        raise UsageError(f"`block_s` is {block_s}; expected a positive number of seconds.")
    if not 0 <= start_s < float("inf"):
        raise DataError(path, f"`start_s` is {start_s}; expected a number of seconds from 0 up.")
    if end_s is not None and not end_s > start_s:
        raise DataError(path, f"`end_s` is {end_s}; expected more than `start_s`, which is {start_s}.")
    with _opened(path) as (file, sound):
        rate_hz, channels = int(sound.samplerate), int(sound.channels)
        if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
            raise DataError(
                path,
                f"its sample rate is {rate_hz} Hz; expected {_MIN_RATE_HZ} to {_MAX_RATE_HZ} Hz. "
                "The header is damaged, or it is no sound.",
            )
        if sound.frames == 0:
            raise DataError(path, "holds a header, but no samples.")
        _refuse_truncated(path, file, sound)
        guessed = sound.format == "MP3" and not _has_mp3_length(file)
        frames = None if guessed or sound.frames in (-1, _UNKNOWN_FRAMES) else int(sound.frames)
        first = round(start_s * rate_hz)
        last = None if end_s is None else round(end_s * rate_hz)
        if frames is not None and first >= frames:
            raise _starts_behind_end(path, first, sound)
        if last is not None and frames is not None and last >= frames:
            last = None
        return AudioBlocks(
            path,
            rate_hz=rate_hz,
            channels=channels,
            frames=frames,
            first=first,
            last=last,
            block_frames=max(1, min(round(block_s * rate_hz), _MAX_BLOCK_VALUES // channels)),
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """Open a file and its sound for one block of code.

    libsndfile gets a descriptor, not a name: so names of any encoding work, the extension has no say
    (`.raw` would be taken for headerless samples), and it is we who close it, whatever libsndfile does.
    """
    library = _soundfile()
    try:
        # Without O_NONBLOCK a named pipe would wait for its writer for ever.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
    except IsADirectoryError as error:
        raise DataError(path, "is a folder, not a file.") from error
    except FileNotFoundError as error:
        raise DataError(path, "there is no such file.") from error
    except OSError as error:
        raise DataError(path, f"cannot be opened: {error.strerror}.") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError(path, "is not a regular file.")
        if not status.st_size:
            raise DataError(path, "the file is empty (0 bytes).")
        try:
            sound = library.SoundFile(file.fileno(), closefd=False)
        except library.SoundFileError as error:
            reason = str(getattr(error, "error_string", error)).rstrip(". ")
            raise DataError(path, f"is not audio that libsndfile can read ({reason}).") from error
        with sound:
            yield file, sound


def _starts_behind_end(path: Path, first: int, sound: Any) -> DataError:
    rate_hz = sound.samplerate
    return DataError(
        path,
        f"`start_s` is {first / rate_hz:.2f}, but the recording ends at {sound.frames / rate_hz:.2f} s.",
    )


def _refuse_truncated(path: Path, file: BinaryIO, sound: Any) -> None:
    """Raise if the file ends before its header says, where that is known before decoding."""
    for announced, held in re.findall(_CUT_SHORT, sound.extra_info):
        if int(held) < int(announced) < _STREAMED_SIZE:
            raise DataError(path, f"truncated: {announced} bytes of samples announced, {held} there.")
    if sound.format != "OGG":
        return
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    tail_at = max(0, size - _OGG_MAX_PAGE_BYTES)
    tail = os.pread(descriptor, size - tail_at, tail_at)
    page = tail[max(0, tail.rfind(_OGG_PAGE)) :]
    # The header ends with the number of segments and the size of each.
    segments = page[_OGG_HEADER_BYTES - 1] if len(page) >= _OGG_HEADER_BYTES else 0
    sizes = page[_OGG_HEADER_BYTES : _OGG_HEADER_BYTES + segments]
    if len(page) < _OGG_HEADER_BYTES + segments + sum(sizes) or len(page) < _OGG_HEADER_BYTES:
        raise DataError(path, "truncated: the last page of the Ogg file is incomplete.")


def _disk_error(file: BinaryIO) -> OSError | None:
    """Return what keeps a file from being read to its end; None where nothing does, and it is damaged."""
    descriptor, at = file.fileno(), 0
    try:
        while data := os.pread(descriptor, _LOOK_BYTES, at):
            at += len(data)
    except OSError as error:
        return error
    return None


def _has_mp3_length(file: BinaryIO) -> bool:
    """Whether an MP3 says how long it is, in a Xing, Info or VBRI header in its first frame."""
    descriptor = file.fileno()
    head = os.pread(descriptor, 10, 0)
    at = 0
    if head[:3] == b"ID3" and len(head) == 10:
        # The tag's size: four bytes of seven bits.
        at = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    frame = os.pread(descriptor, 2048, at)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
