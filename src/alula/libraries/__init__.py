"""Third-party libraries that Alula can do without, and what everybody who uses one must know of it.

How it is imported without being reported to anyone, how it is installed where it is missing, what it raises,
and where in its messages the cause is. What is done with a library is told elsewhere: engines run, quantizers
quantize and exporters export with the same ones.
"""

from alula.libraries.onnxruntime import INSTALL_ONNXRUNTIME, import_onnxruntime, onnxruntime_failures
from alula.libraries.openvino import (
    INSTALL_OPENVINO,
    import_nncf,
    import_openvino,
    openvino_cause,
    openvino_conversion_failures,
)
from alula.libraries.pytorch import (
    INSTALL_TORCH,
    backend_of,
    copies,
    import_torch,
    leaves,
    require_torch,
    using_backend,
    with_flat_outputs,
)

__all__ = [
    "INSTALL_ONNXRUNTIME",
    "INSTALL_OPENVINO",
    "INSTALL_TORCH",
    "backend_of",
    "copies",
    "import_nncf",
    "import_onnxruntime",
    "import_openvino",
    "import_torch",
    "leaves",
    "onnxruntime_failures",
    "openvino_cause",
    "openvino_conversion_failures",
    "require_torch",
    "using_backend",
    "with_flat_outputs",
]
