"""One line about the machine and the libraries: what a benchmark's numbers belong to.

python benchmarks/machine.py [--markdown FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

import output
from alula.hardware import fingerprint, int8_class, thread_budget

_LIBRARIES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "librosa", "numpy")


def machine_line() -> str:
    """Return CPU, cores, what INT8 can rely on, the thread budget, system and versions."""
    here = fingerprint()
    versions = [f"Alula {importlib.metadata.version('alula')}", f"Python {here.python}"]
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    name = here.model_name if here.vendor in here.model_name else f"{here.vendor} {here.model_name}"
    return (
        f"{name}, {here.physical_cores} cores with {here.logical_cores} hardware "
        f"threads, INT8 by {int8_class(here.isa)}, {thread_budget()} threads used, "
        f"{here.memory_bytes / 2**30:.0f} GiB; {platform.system()} {platform.machine()}; "
        + ", ".join(versions)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    output.add_markdown_option(parser)
    output.publish(machine_line(), markdown=parser.parse_args().markdown)


if __name__ == "__main__":
    main()
