"""What this machine can multiply and move at most, measured: the roof over every speed.

The products run through the engines that run models, on graphs that are nothing but wide layers: what an
engine reaches there is what it could reach elsewhere, and the best of the installed engines is the peak. The
idea is that of Williams, Waterman and Patterson 2009 (Communications of the ACM 52(4)).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alula.core import ARTIFACT_FILES, Precision, Recipe, Roofline, Settings, Signature, TensorSpec
from alula.engines import Session, engine_named
from alula.errors import AlulaError, EngineError, EngineUnavailableError, MeasurementError
from alula.graphs import read_onnx, total_macs
from alula.hardware import Cpu, read_cpu, read_memory, thread_budget
from alula.measure import Clock, Concurrency, Round, interleave

if TYPE_CHECKING:
    import onnx

__all__ = ["SHORT", "Peaks", "Workload", "measure_roofline", "open_peaks"]

ENGINES = ("openvino", "onnxruntime")  # those that take an ONNX file, quantized ones too
BANDWIDTH = "memory"
WARM_UP_S = 2.0
# McCalpin's rule: arrays of four times the last-level cache, so that nothing of one pass is left for the
# next.
_CACHES_PER_ARRAY = 4
_UNKNOWN_CACHE_BYTES = 16 * 2**20
_MEMORY_SHARE = 8  # of the memory available, for each of three arrays: less than a half for all
_OPSET = 19
_IR_VERSION = 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is computed to find the peaks.

    Attributes:
        layers: of either graph.
        channels: of the 3x3 convolutions, in and out.
        size: height and width of what they read.
        rows: of a sample of the matrix products.
        features: of the square matrices.
        array_bytes: of each of the three arrays in memory; None for four times the last-level cache.
    """

    layers: int = 4
    channels: int = 512
    size: int = 28
    rows: int = 512
    features: int = 1024
    array_bytes: int | None = None


SHORT = Workload(layers=2, size=14, rows=256)
"""Enough work for the peaks of products within a few percent of the longer one's, a quarter of the time."""


def measure_roofline(
    *,
    threads: int | None = None,
    seconds: float = 0.4,
    rounds: int = 5,
    memory: bool = True,
    clock: Clock | None = None,
    workload: Workload | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Roofline:
    """Return the peaks of this machine, each the best of interleaved rounds.

    A disturbed round is slower and never faster, and a peak is to be a bound: so the best one counts, where
    the speed of a model is a median.

    Args:
        threads: thread budget; None takes min(affinity, CPU quota).
        seconds: length of a round.
        rounds: how often each is timed.
        memory: whether memory is measured, too.
        clock: tells the time.
        workload: what is computed.
        report: gets lines of text about what is being done.

    Raises:
        EngineUnavailableError: onnx, or both OpenVINO and ONNX Runtime, are not installed.
        MeasurementError: no engine could run the products of a precision, or there are no rounds.
    """
    budget = thread_budget(threads)
    with open_peaks(threads=budget, memory=memory, clock=clock, workload=workload, report=report) as peaks:
        report(f"measuring {rounds} rounds of {seconds:g} s each")
        done, dropped = interleave(peaks.contenders, rounds=rounds, seconds=seconds)
        method = f"best of {rounds} interleaved rounds of {seconds:g} s, {budget} threads"
        return peaks.roofline(done, failures=dropped, method=method)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Loaded and warmed-up contenders for the peaks.

    Attributes:
        contenders: by name, a function that runs for about the seconds it is given.
        threads: that each of them uses.
        products: what the samples of each but the memory's are.
        failures: what could not be loaded, by name.
        array_bytes: of each array of the memory's; None where memory takes no part.
    """

    contenders: dict[str, Callable[[float], Round]]
    threads: int
    products: dict[str, _Product]
    failures: dict[str, AlulaError]
    array_bytes: int | None

    def roofline(
        self, rounds: Mapping[str, Sequence[Round]], *, failures: Mapping[str, AlulaError], method: str
    ) -> Roofline:
        """Return the peaks that rounds of the contenders show.

        Args:
            rounds: by contender; others than this object's own are left out.
            failures: of contenders that took no part to the end.
            method: how the rounds were taken, for the words of the result.

        Raises:
            MeasurementError: no contender of a precision has rounds.
        """
        speeds = {name: max(one.per_s for one in taken) for name, taken in rounds.items()}
        macs_per_s = {name: speeds[name] * one.macs for name, one in self.products.items() if name in speeds}
        lost = {**self.failures, **failures}
        found: dict[Precision, float] = {}
        words = []
        for precision in ("fp32", "bf16", "int8"):
            of_it = [name for name, one in self.products.items() if one.precision == precision]
            best = max(
                (name for name in of_it if name in macs_per_s), key=macs_per_s.__getitem__, default=None
            )
            if best is not None:
                found[precision] = macs_per_s[best] / 1e9
                words.append(f"{precision.upper()} from {self.products[best]}")
            elif precision != "bf16":
                reasons = " ".join(f"{name}: {error}" for name, error in lost.items() if precision in name)
                raise MeasurementError(f"No engine could compute products in {precision}. {reasons}".rstrip())
        if self.array_bytes is not None:
            if BANDWIDTH not in speeds:
                raise MeasurementError(f"The memory could not be measured: {lost.get(BANDWIDTH)}")
            size_mib = self.array_bytes / 2**20
            words.append(f"memory from a = b + c over three arrays of {size_mib:.0f} MiB (STREAM's add)")
        return Roofline(
            fp32_gmacs_per_s=found["fp32"],
            int8_gmacs_per_s=found["int8"],
            bf16_gmacs_per_s=found.get("bf16"),
            bandwidth_gb_per_s=None if self.array_bytes is None else speeds[BANDWIDTH] / 1e9,
            threads=self.threads,
            method=f"{'; '.join(words)}; {method}",
        )


@dataclass(frozen=True)
class _Product:
    """What one sample of a contender is."""

    engine: str
    precision: Precision
    kind: str
    macs: int

    def __str__(self) -> str:
        return f"{self.engine} on {self.kind}"


@contextlib.contextmanager
def open_peaks(
    *,
    threads: int,
    memory: bool = True,
    clock: Clock | None = None,
    workload: Workload | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[Peaks]:
    """Give what finds the peaks, ready to take turns with each other and with other contenders.

    Args:
        threads: how many compute, each on a sample of its own.
        memory: whether memory takes part, too.
        clock: tells the time.
        workload: what is computed.
        report: gets lines of text about what is being done.

    Raises:
        EngineUnavailableError: onnx, or both OpenVINO and ONNX Runtime, are not installed.
    """
    _require_onnx()
    work = workload or Workload()
    cpu = read_cpu()
    array_bytes: int | None = None
    if memory:
        array_bytes = work.array_bytes or _array_bytes(cpu, threads, read_memory().available_bytes)
    products: dict[str, _Product] = {}
    failures: dict[str, AlulaError] = {}
    contenders: dict[str, Callable[[float], Round]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alula-roofline-")))

        def enter(name: str, run: Callable[[int], int]) -> None:
            concurrency = stack.enter_context(Concurrency(threads, clock=clock))
            concurrency.warm_up(run, max_s=WARM_UP_S)
            contenders[name] = lambda seconds: concurrency.round(run, seconds=seconds)

        for product, graph in _graphs(work, folder, isa=cpu.isa):
            name = f"{product.engine} {product.precision} {product.kind}"
            report(f"loading {name}")
            try:
                session = _loaded(product, graph, folder / name.replace(" ", "-"), threads=threads)
                stack.callback(session.close)
                enter(name, _one_sample(session, graph.sample))
            except EngineError as error:
                failures[name] = error
            else:
                products[name] = product
        if array_bytes is not None:
            enter(BANDWIDTH, _adder(array_bytes, threads))
        yield Peaks(
            contenders=contenders,
            threads=threads,
            products=products,
            failures=failures,
            array_bytes=array_bytes,
        )


# Memory.


def _array_bytes(cpu: Cpu, threads: int, available_bytes: int) -> int:
    cache_bytes = max(cpu.l3_bytes, threads * cpu.l2_bytes, _UNKNOWN_CACHE_BYTES)
    wanted = _CACHES_PER_ARRAY * cache_bytes
    return min(wanted, available_bytes // _MEMORY_SHARE) if available_bytes else wanted


def _adder(array_bytes: int, threads: int) -> Callable[[int], int]:
    """Return what adds arrays, a slice for each instance, and returns the bytes that it read and wrote.

    The kernel `add` of STREAM (McCalpin 1995, IEEE TCCA Newsletter): one pass that reads two arrays and
    writes one, like its triad, which NumPy could only do in two passes. As there, what a cache reads before
    it writes is not counted. NumPy lets go of the interpreter's lock meanwhile.
    """
    items = max(1, array_bytes // threads // 8)
    arrays: dict[int, tuple[NDArray[np.float64], ...]] = {}

    def run(instance: int) -> int:
        if instance not in arrays:
            # By the thread that will use them, so that they lie in the memory of its own socket.
            arrays[instance] = (np.zeros(items), np.ones(items), np.full(items, 2.0))
        total, left, right = arrays[instance]
        np.add(left, right, out=total)
        return 3 * total.nbytes

    return run


# Products.


@dataclass(frozen=True)
class _Graph:
    """An ONNX file of nothing but products, and a sample for it."""

    folder: Path
    signature: Signature
    sample: NDArray[np.float32]
    macs: int


def _graphs(work: Workload, folder: Path, *, isa: Sequence[str]) -> Iterator[tuple[_Product, _Graph]]:
    """Yield every engine that is installed with every precision and graph that it can run."""
    installed = [name for name in ENGINES if _is_installed(name)]
    if not installed:
        raise EngineUnavailableError(
            " or ".join(ENGINES), install="pip install 'alula[onnxruntime]' or pip install 'alula[openvino]'"
        )
    for kind, write in (("3x3 convolutions", _convolutions), ("matrix products", _matrix_products)):
        plain = write(folder / f"{kind}-fp32", work, quantized=False)
        quantized = write(folder / f"{kind}-int8", work, quantized=True)
        for engine in installed:
            yield _Product(engine, "fp32", kind, plain.macs), plain
            yield _Product(engine, "int8", kind, plain.macs), quantized
            if Recipe(engine, "bf16") in engine_named(engine).recipes(isa):
                yield _Product(engine, "bf16", kind, plain.macs), plain


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise EngineUnavailableError("onnx", install="pip install 'alula[onnxruntime]'") from error


def _is_installed(engine: str) -> bool:
    try:
        engine_named(engine).version()
    except EngineUnavailableError:
        return False
    return True


def _loaded(product: _Product, graph: _Graph, artifact: Path, *, threads: int) -> Session:
    engine = engine_named(product.engine)
    # An INT8 graph says so itself; to the engine it is an ONNX file like others.
    recipe = Recipe(product.engine, "bf16" if product.precision == "bf16" else "fp32")
    artifact.mkdir()
    engine.build(graph.folder, artifact, recipe=recipe)
    return engine.load(
        artifact, recipe=recipe, signature=graph.signature, settings=Settings(threads=1, instances=threads)
    )


def _one_sample(session: Session, sample: NDArray[np.float32]) -> Callable[[int], int]:
    def run(_instance: int) -> int:
        session.run((sample,))
        return 1

    return run


def _convolutions(folder: Path, work: Workload, *, quantized: bool) -> _Graph:
    wide = work.channels
    chance = np.random.default_rng(0)
    chain = _Chain(quantized=quantized)
    weights = chain.weights(chance, (wide, wide, 3, 3), fan_in=9 * wide)
    for _ in range(work.layers):
        chain.layer("Conv", weights, pads=[1, 1, 1, 1])
    chain.add("GlobalAveragePool")
    chain.add("Flatten")
    return chain.written(folder, sample=_sample(chance, (wide, work.size, work.size)), outputs=wide)


def _matrix_products(folder: Path, work: Workload, *, quantized: bool) -> _Graph:
    wide = work.features
    chance = np.random.default_rng(0)
    chain = _Chain(quantized=quantized)
    weights = chain.weights(chance, (wide, wide), fan_in=wide)
    for _ in range(work.layers):
        chain.layer("MatMul", weights)
    chain.add("ReduceMean", chain.store("axes", np.array([1], np.int64)), keepdims=0)
    return chain.written(folder, sample=_sample(chance, (work.rows, wide)), outputs=wide)


def _sample(chance: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.abs(chance.standard_normal((1, *shape), dtype=np.float32))


@dataclass
class _Chain:
    """Builds a graph in which each node reads the one before.

    Quantized, every layer reads and gives unsigned bytes and has signed weights, in the form of
    QuantizeLinear and DequantizeLinear that both engines take (ONNX Runtime's "QDQ").
    """

    quantized: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    last: str = "x"

    def __post_init__(self) -> None:
        if self.quantized:
            # Activations of unit scale seldom exceed 4.
            self.store("scale", np.float32(4 / 255))
            self.store("zero", np.uint8(0))
            self._round()

    def store(self, name: str, values: NDArray[Any] | np.generic) -> str:
        """Keep values in the file under a name; return the name."""
        from onnx import numpy_helper

        self.stored.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weights(self, chance: np.random.Generator, shape: tuple[int, ...], *, fan_in: int) -> str:
        """Keep weights that preserve the scale of what passes a ReLU (He et al. 2015); return their name.

        All layers share them: the file stays small, and the products are the same.
        """
        values = chance.standard_normal(shape, dtype=np.float32) * np.float32((2 / fan_in) ** 0.5)
        if not self.quantized:
            return self.store("weights", values)
        scale = np.abs(values).max() / 127
        self.store("weights_8", np.rint(values / scale).astype(np.int8))
        self.store("weights_scale", np.float32(scale))
        self.store("weights_zero", np.int8(0))
        self._node("DequantizeLinear", ["weights_8", "weights_scale", "weights_zero"], "weights")
        return "weights"

    def layer(self, operator: str, weights: str, **attributes: Any) -> None:
        """Add a product with weights and a ReLU."""
        self.add(operator, weights, **attributes)
        self.add("Relu")
        if self.quantized:
            self._round()

    def add(self, operator: str, *others: str, **attributes: Any) -> None:
        """Add a node that reads the last one, and other tensors after it."""
        output = f"{operator}_{len(self.nodes)}"
        self._node(operator, [self.last, *others], output, **attributes)
        self.last = output

    def _round(self) -> None:
        self.add("QuantizeLinear", "scale", "zero")
        self.add("DequantizeLinear", "scale", "zero")

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def written(self, folder: Path, *, sample: NDArray[np.float32], outputs: int) -> _Graph:
        """Write the file and return it with its work, counted from the graph."""
        import onnx
        from onnx import TensorProto, helper

        shape = sample.shape[1:]
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("b", *shape))],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, ("b", outputs))],
            self.stored,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        folder.mkdir()
        onnx.save(model, folder / ARTIFACT_FILES["onnx"])
        return _Graph(
            folder=folder,
            signature=Signature(
                (TensorSpec("x", "float32", ("b", *shape)),),
                (TensorSpec(self.last, "float32", ("b", outputs)),),
            ),
            sample=sample,
            macs=total_macs(read_onnx(model)),
        )
