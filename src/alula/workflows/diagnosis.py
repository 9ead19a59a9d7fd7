"""What this machine can do: CPU, budget, engines, and if asked its measured peaks."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from alula._version import __version__
from alula.core import Roofline
from alula.engines import Engine, engine_named, engine_names
from alula.errors import EngineUnavailableError
from alula.hardware import Cpu, CpuLimits, Memory, doctor_findings, read_cpu, read_limits, read_memory
from alula.quantization import Quantizer, quantizer_named, quantizer_names
from alula.tuning import measure_roofline
from alula.workflows.peaks import cache_folder, keep_roofline

__all__ = ["Diagnosis", "Part", "TorchBuild", "diagnose"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """An engine or quantizer: its version, or how to install it."""

    name: str
    version: str | None
    install: str


class TorchBuild(msgspec.Struct, frozen=True, kw_only=True):
    """What the installed PyTorch was built with and what it uses on this CPU."""

    cpu_capability: str
    onednn: bool
    mkl: bool
    openmp: bool
    quantized_engines: tuple[str, ...]


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `alula doctor`."""

    alula: str
    cpu: Cpu
    limits: CpuLimits
    threads: int
    memory: Memory
    engines: tuple[Part, ...]
    quantizers: tuple[Part, ...]
    torch: TorchBuild | None
    findings: tuple[str, ...]
    roofline: Roofline | None = None


def diagnose(*, roofline: bool = False, report: Callable[[str], None] = lambda text: None) -> Diagnosis:
    """Return what this machine can do; imports every installed engine.

    Args:
        roofline: whether to measure the machine's peaks too, which takes about half a minute. They are kept
            for the shares that other results state, where they are higher than those that were.
        report: gets lines of text about what is being measured.

    Raises:
        EngineUnavailableError: the roofline is asked for, and nothing that measures it is installed.
    """
    # Before any engine: OpenMP may pin threads on import, and the affinity would read smaller.
    cpu, limits = read_cpu(), read_limits()
    peaks = measure_roofline(threads=limits.budget, report=report) if roofline else None
    engines = tuple(_part(engine_named(name), name) for name in engine_names() if engine_named(name).offered)
    quantizers = tuple(_part(quantizer_named(name), name) for name in quantizer_names())
    folder = cache_folder()
    if peaks is not None and folder is not None:
        keep_roofline(peaks, [folder])
    torch_build = _torch_build() if any(p.name == "torch" and p.version for p in engines) else None
    return Diagnosis(
        alula=__version__,
        cpu=cpu,
        limits=limits,
        threads=limits.budget,
        memory=read_memory(),
        engines=engines,
        quantizers=quantizers,
        torch=torch_build,
        findings=(*doctor_findings(cpu, limits), *_missing(engines)),
        roofline=peaks,
    )


def _part(part: Engine | Quantizer, name: str) -> Part:
    try:
        return Part(name=name, version=part.version(), install=part.install)
    except EngineUnavailableError:
        return Part(name=name, version=None, install=part.install)


def _torch_build() -> TorchBuild:
    import torch

    return TorchBuild(
        cpu_capability=str(torch.backends.cpu.get_cpu_capability()),
        onednn=bool(torch.backends.mkldnn.is_available()),
        mkl=bool(torch.backends.mkl.is_available()),
        openmp=bool(torch.backends.openmp.is_available()),
        quantized_engines=tuple(e for e in torch.backends.quantized.supported_engines if e != "none"),
    )


def _missing(engines: tuple[Part, ...]) -> tuple[str, ...]:
    missing = [part for part in engines if part.version is None]
    if not missing:
        return ()
    names = ", ".join(part.name for part in missing)
    return (f"Not installed: {names}. Searches go on without; more engines find faster bundles.",)
