"""Core-seconds to turn ten minutes of 32 kHz audio into log-mel windows, ours beside other ways.

Each way takes 120 windows of 5 s to 128 HTK bands in dB (n_fft 2048, hop 512, top_db 80 per window), on
one thread. The rounds are interleaved, so a busy machine disturbs all ways alike; the table gives medians
of process CPU time and of wall time, and the CPU time as a multiple of ours. Decoding and resampling of
the same ten minutes stand beside them for scale.

    python benchmarks/features.py [--rounds 9] [--minutes 10] [--markdown FILE]
"""

# ruff: noqa: E402  (NumPy's BLAS reads the number of its threads once, when it is imported)

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import scipy.fft
import soundfile
import soxr
import torch

import output
from alula.core import AudioInput, LogMel
from alula.data.audio import open_audio
from alula.features import AudioFeatures

RATE_HZ = 32_000
WINDOW_S = 5.0
WINDOW = round(RATE_HZ * WINDOW_S)
N_FFT, HOP, N_MELS, TOP_DB = 2048, 512, 128, 80.0

Way = Callable[[np.ndarray], np.ndarray]


def ours() -> Way:
    features = AudioFeatures(AudioInput(sample_rate_hz=RATE_HZ, window_s=WINDOW_S, mel=LogMel(top_db=TOP_DB)))

    def run(waves: np.ndarray) -> np.ndarray:
        return np.concatenate([features.transform(wave[None])[:, 0] for wave in waves])

    return run


def filters() -> np.ndarray:
    return librosa.filters.mel(sr=RATE_HZ, n_fft=N_FFT, n_mels=N_MELS, htk=True, norm=None)


def with_torch(windows_at_once: int) -> Way:
    torch.set_num_threads(1)
    window = torch.hann_window(N_FFT)
    bands = torch.from_numpy(filters())

    def run(waves: np.ndarray) -> np.ndarray:
        results = []
        with torch.inference_mode():
            for start in range(0, len(waves), windows_at_once):
                chunk = torch.from_numpy(waves[start : start + windows_at_once])
                spectrum = torch.stft(chunk, N_FFT, HOP, window=window, center=True, return_complex=True)
                mel = torch.matmul(bands, spectrum.real.square() + spectrum.imag.square())
                decibels = mel.clamp_(min=1e-10).log10_().mul_(10.0)
                floor = decibels.amax(dim=(1, 2), keepdim=True) - TOP_DB
                results.append(torch.maximum(decibels, floor).numpy())
        return np.concatenate(results)

    return run


def with_scipy() -> Way:
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    bands = filters()

    def run(waves: np.ndarray) -> np.ndarray:
        results = []
        for wave in waves:
            padded = np.pad(wave, N_FFT // 2, mode="reflect")
            frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
            spectrum = scipy.fft.rfft(frames * window, axis=1)
            mel = bands @ (spectrum.real**2 + spectrum.imag**2).T
            decibels = 10.0 * np.log10(np.maximum(mel, 1e-10))
            results.append(np.maximum(decibels, decibels.max() - TOP_DB))
        return np.stack(results)

    return run


def with_librosa() -> Way:
    def run(waves: np.ndarray) -> np.ndarray:
        results = []
        for wave in waves:
            mel = librosa.feature.melspectrogram(
                y=wave,
                sr=RATE_HZ,
                n_fft=N_FFT,
                hop_length=HOP,
                n_mels=N_MELS,
                htk=True,
                norm=None,
                pad_mode="reflect",
            )
            results.append(librosa.power_to_db(mel, top_db=TOP_DB))
        return np.stack(results)

    return run


def recording(minutes: float) -> np.ndarray:
    """Return noise with chirps in it: something a codec has to work at."""
    rng = np.random.default_rng(0)
    time_s = np.arange(round(minutes * 60 * RATE_HZ)) / RATE_HZ
    chirps = np.sin(2 * np.pi * (3_000.0 * time_s + 800.0 * np.sin(2 * np.pi * 3.0 * time_s)))
    return (0.02 * rng.standard_normal(len(time_s)) + 0.2 * chirps * (time_s % 2.0 < 0.5)).astype(np.float32)


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return median CPU and wall seconds of each, from interleaved rounds after one to warm up."""
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            before_wall, before_cpu = time.perf_counter(), time.process_time()
            run()
            after_cpu, after_wall = time.process_time(), time.perf_counter()
            if turn:
                cpu[name].append(after_cpu - before_cpu)
                wall[name].append(after_wall - before_wall)
    return {name: (statistics.median(cpu[name]), statistics.median(wall[name])) for name in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of audio (default 10)")
    output.add_markdown_option(parser)
    options = parser.parse_args()

    audio = recording(options.minutes)
    waves = audio[: len(audio) // WINDOW * WINDOW].reshape(-1, WINDOW)
    spectrograms: dict[str, Way] = {
        "log-mel: Alula": ours(),
        "log-mel: torch.stft + matmul, a window at a time": with_torch(1),
        "log-mel: torch.stft + matmul, 30 windows at a time": with_torch(30),
        "log-mel: scipy.fft + matmul, straightforward": with_scipy(),
        "log-mel: librosa melspectrogram + power_to_db": with_librosa(),
    }
    expected = spectrograms["log-mel: Alula"](waves[:30])
    for name, way in spectrograms.items():
        # Float32 against float32: both sides round, and a window of chirps has bands of next to no energy.
        difference_db = float(np.abs(way(waves[:30]) - expected).max())
        if difference_db > 0.02:
            raise SystemExit(f"{name} differs from ours by {difference_db:.3g} dB; the times mean nothing.")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.ogg"
        at_48k = soxr.resample(audio, RATE_HZ, 48_000)
        # In pieces: one long write has made the Vorbis encoder of libsndfile overflow its stack.
        with soundfile.SoundFile(path, "w", RATE_HZ, 1, format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(audio), RATE_HZ):
                file.write(audio[start : start + RATE_HZ])
        waveform = AudioFeatures(AudioInput(sample_rate_hz=RATE_HZ, window_s=WINDOW_S))
        blocks_48k = [at_48k[start : start + 960_000, None] for start in range(0, len(at_48k), 960_000)]
        ways: dict[str, Callable[[], object]] = {
            name: partial(way, waves) for name, way in spectrograms.items()
        }
        ways["decode: OGG Vorbis, 32 kHz mono"] = lambda: sum(map(len, open_audio(path).blocks()))
        ways["resample: soxr HQ, 48 to 32 kHz, cut into windows"] = lambda: sum(
            1 for _ in waveform.windows(blocks_48k, 48_000)
        )
        medians = measure(ways, options.rounds)

    base_s = medians["log-mel: Alula"][0]
    rows = [
        (name, f"{cpu:.3f}", f"{wall:.3f}", f"{cpu / base_s:.2f}") for name, (cpu, wall) in medians.items()
    ]
    output.publish(
        f"{options.minutes:g} minutes of {RATE_HZ} Hz, {len(waves)} windows, "
        f"median of {options.rounds} rounds, one thread; "
        f"{platform.machine()}, NumPy {np.__version__}, torch {torch.__version__}.\n\n"
        + output.table(("step", "CPU s", "wall s", "CPU, Alula's log-mel = 1"), rows),
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
