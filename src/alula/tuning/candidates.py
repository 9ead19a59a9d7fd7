"""What there is to try: recipes in the order of promise, and the settings of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from alula.core import ExportFormat, Precision, Recipe, Scenario, Settings, Signature
from alula.engines import engine_named, engine_names
from alula.errors import UsageError, closest
from alula.quantization import quantizer_for, quantizer_named, quantizer_names
from alula.sources import Source

__all__ = [
    "BATCH_SIZES",
    "batch_neighbours",
    "export_format_of",
    "layout_neighbours",
    "offered_recipes",
    "settings_grid",
    "startable_recipes",
]

BATCH_SIZES = (1, 8, 32)
SERVER_BATCH_SIZES = (1, 4)  # at most so many queries that wait together

# Cheap to build and often fast first, so that a short budget ends with a good answer.
_ORDER = (
    "openvino/fp32",
    "onnxruntime/fp32",
    "openvino/int8-nncf",
    "openvino/int8-nncf-bf16",
    "openvino/int8-nncf-bf16-dense",
    # For networks that lose too much in those, such as many with SiLU; where they do not, these cost nothing.
    "openvino/int8-nncf-mixed",
    "openvino/int8-nncf-mixed-bf16-dense",
    "onnxruntime/int8-static",
    "openvino/int8-nncf-no-edges",
    "openvino/int8-nncf-dense",
    "openvino/bf16",
    "onnxruntime/int8-static-no-edges",
    "torchscript/fp32",
    "torch/fp32",
    "openvino/int8-nncf-full-bias",
    "onnxruntime/int8-static-percentile",
    "openvino/int8-nncf-direct",
    "torchscript/int8-fx",
    "inductor/fp32",
    "inductor/int8-pt2e",
)


def offered_recipes(
    isa: Collection[str],
    *,
    engines: tuple[str, ...] | None = None,
    precisions: tuple[Precision, ...] | None = None,
) -> tuple[Recipe, ...]:
    """Return the recipes to try, most promising first, whether their engines are installed or not.

    Args:
        isa: instruction sets of the CPU; what cannot be fast there is not offered.
        engines: only these; None means all that are offered.
        precisions: only these; None means all.

    Raises:
        UsageError: an engine of that name is not known.
    """
    known = engine_names()
    for name in engines or ():
        if name not in known:
            raise UsageError(
                f"There is no engine `{name}`; known are {', '.join(known)}.{closest(name, known)}"
            )
    chosen = engines or tuple(name for name in known if engine_named(name).offered)
    recipes = [recipe for name in chosen for recipe in engine_named(name).recipes(isa)]
    for name in quantizer_names():
        if name.partition("/")[0] in chosen:
            recipes += quantizer_named(name).recipes(isa)
    if precisions is not None:
        recipes = [recipe for recipe in recipes if recipe.precision in precisions]
    order = {name: index for index, name in enumerate(_ORDER)}
    return tuple(sorted(recipes, key=lambda recipe: order.get(recipe.name, len(order))))


def startable_recipes(recipes: Sequence[Recipe], source: Source) -> tuple[Recipe, ...]:
    """Return the recipes that can start from a model: of an ONNX file there is no other export than itself.

    Raises:
        UsageError: none can.
    """
    if source.kind != "onnx":
        return tuple(recipes)
    found = tuple(recipe for recipe in recipes if export_format_of(recipe) == "onnx")
    if not found:
        raise UsageError(
            f"{source.spec} is an ONNX file, and {', '.join(sorted({one.engine for one in recipes}))} starts "
            "from PyTorch modules only. Give the module, or the engines onnxruntime or openvino."
        )
    return found


def export_format_of(recipe: Recipe) -> ExportFormat:
    """Return what a recipe starts from."""
    if recipe.precision == "int8":
        return quantizer_for(recipe).export_format(recipe)
    return engine_named(recipe.engine).export_format(recipe)


def settings_grid(
    threads: int, signature: Signature, *, scenario: Scenario = "offline"
) -> tuple[Settings, ...]:
    """Return the coarse settings: every way to share the threads, at each of a few batch sizes.

    Those of one batch size stand together, the middle size first. A model whose batch axis is fixed has
    that size only. In the single-stream scenario there is one instance and one sample, with all threads or
    fewer; a server has batches of no more than a few queries.

    >>> from alula.core import TensorSpec
    >>> spec = TensorSpec("x", "float32", ("b", 3, 32, 32))
    >>> [str(s) for s in settings_grid(4, Signature((spec,), ()))][:3]
    ['1x4 threads, batch 8', '2x2 threads, batch 8', '4x1 threads, batch 8']
    """
    fixed = signature.inputs[0].shape[0]
    if scenario == "single-stream":
        size = fixed if isinstance(fixed, int) else 1
        return tuple(
            Settings(threads=one, batch_size=size)
            for one in sorted({threads, (threads + 1) // 2, 1}, reverse=True)
        )
    sizes = BATCH_SIZES if scenario == "offline" else SERVER_BATCH_SIZES
    batches = (fixed,) if isinstance(fixed, int) else tuple(sorted(sizes, key=lambda b: (b != sizes[1], b)))
    return tuple(
        Settings(threads=per_instance, instances=instances, batch_size=batch)
        for batch in batches
        for per_instance, instances in _layouts(threads)
    )


def _layouts(threads: int) -> list[tuple[int, int]]:
    """Return threads per instance and instances: one wide, many narrow, and one way between."""
    layouts = [(threads, 1)]
    if threads >= 4:
        layouts.append((threads // 2, 2))
    if threads > 1:
        layouts.append((1, threads))
    return layouts


def batch_neighbours(
    settings: Settings, signature: Signature, *, scenario: Scenario = "offline"
) -> tuple[Settings, ...]:
    """Return the same settings at half and at twice the batch size, where the model allows it.

    At most twice the largest of the coarse settings, so that a server's stay those of a few queries.

    >>> from alula.core import TensorSpec
    >>> spec = TensorSpec("x", "float32", ("b", 3, 32, 32))
    >>> [s.batch_size for s in batch_neighbours(Settings(batch_size=8), Signature((spec,), ()))]
    [4, 16]
    """
    if isinstance(signature.inputs[0].shape[0], int):
        return ()
    size, coarse = settings.batch_size, BATCH_SIZES if scenario == "offline" else SERVER_BATCH_SIZES
    sizes = [size // 2] * (size > 1) + [size * 2] * (size < 2 * max(coarse))
    return tuple(msgspec.structs.replace(settings, batch_size=one) for one in sizes)


def layout_neighbours(settings: Settings, threads: int) -> tuple[Settings, ...]:
    """Return the same settings with half and with twice the threads per instance, all threads in use.

    Knobs are left out: which there are depends on the layout.

    >>> [str(one) for one in layout_neighbours(Settings(threads=4, instances=4, batch_size=8), 16)]
    ['8x2 threads, batch 8', '2x8 threads, batch 8']
    >>> layout_neighbours(Settings(threads=1), 1)
    ()
    """
    wide = settings.threads
    per_instance = [wide // 2] * (wide > 1) + [min(2 * wide, threads)] * (wide < threads)
    return tuple(
        msgspec.structs.replace(settings, threads=one, instances=threads // one, knobs={})
        for one in per_instance
    )
