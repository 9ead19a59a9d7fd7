"""How much of a network's work a recipe computes in which precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from alula.core import Recipe, Work
from alula.graphs import Kind, Products, is_left_in_float

__all__ = ["work_of"]

_ALL, _HALF = Fraction(1), Fraction(1, 2)

# What of a kind of layer runs in INT8 unless the scope leaves it in float, as read from artifacts that the
# quantizers made and, for OpenVINO, from the graph that it ran. NNCF rounds what enters an attention, so that
# queries meet keys in INT8, but not what leaves its softmax and meets the values: half of the products.
_IN_INT8: dict[str, Mapping[Kind, Fraction]] = {
    "openvino/nncf": {"conv": _ALL, "matmul": _ALL, "recurrent": _ALL, "attention": _HALF},
    "onnxruntime/static": {"conv": _ALL, "matmul": _ALL, "attention": _ALL},
    "onnxruntime/dynamic": {"matmul": _ALL},
    "torch/fx": {"conv": _ALL, "matmul": _ALL},
    "torch/dynamic": {"matmul": _ALL, "recurrent": _ALL},
    "torchscript/fx": {"conv": _ALL, "matmul": _ALL},
    "torchscript/dynamic": {"matmul": _ALL, "recurrent": _ALL},
    "inductor/pt2e": {"conv": _ALL, "matmul": _ALL},
}
# Of these it depends on what the graph does not tell: ONNX Runtime takes LSTMs and no other recurrent layers.
_NOT_TOLD: dict[str, frozenset[Kind]] = {"onnxruntime/dynamic": frozenset(("recurrent",))}


def work_of(products: Sequence[Products], recipe: Recipe) -> Work | None:
    """Return the work of one sample by the precision that a recipe computes it in, None if that is not known.

    Which layers an INT8 recipe quantizes follows from its scope (`alula.graphs.left_in_float`) and from what
    its quantizer takes. It is not known for quantizers of third parties, nor for PyTorch's eager mode, where
    the module itself says what is quantized.

    Args:
        products: of the network; none where they could not be counted.
        recipe: how it is run.

    >>> net = (
    ...     Products(kind="conv", role="stem", macs=100),
    ...     Products(kind="conv", role="depthwise", macs=30),
    ...     Products(kind="matmul", role="head", macs=20),
    ... )
    >>> work_of(net, Recipe.parse("openvino/int8-nncf-no-depthwise"))
    Work(fp32=30, bf16=0, int8=120)
    >>> work_of(net, Recipe.parse("openvino/int8-nncf-bf16-dense"))
    Work(fp32=0, bf16=30, int8=120)
    >>> work_of(net, Recipe.parse("onnxruntime/fp32")).fp32
    150
    """
    if not products:
        return None
    total = sum(one.macs for one in products)
    if recipe.precision == "fp32":
        return Work(fp32=total)
    if recipe.precision == "bf16":
        return Work(bf16=total)
    quantizer = f"{recipe.engine}/{recipe.quantizer}"
    taken = _IN_INT8.get(quantizer)
    if taken is None or any(one.kind in _NOT_TOLD.get(quantizer, ()) for one in products):
        return None
    int8 = sum(
        int(one.macs * taken.get(one.kind, Fraction(0)))
        for one in products
        if recipe.scope == "all" or not is_left_in_float(one.role, recipe.scope)
    )
    if recipe.rest_in_bf16:
        return Work(int8=int8, bf16=total - int8)
    return Work(int8=int8, fp32=total - int8)
