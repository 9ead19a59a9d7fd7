"""One peer in a process of its own, used as its documentation shows: prepared, then run on request.

    python peers_child.py prepare PEER FOLDER BATCH THREADS
    python peers_child.py serve PEER FOLDER BATCH THREADS   (requests on standard input, which stays open)

`FOLDER` holds `module.pkl` (the network), `calibration.npy` and what other preparations left. Served are the
requests that Alula's own worker takes for predictions and rounds, so that all contenders are asked alike.

Threads: every peer is left to its default, which is one per core, unless the budget is smaller than that.
Then it is told the number in the way that it offers.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.hardware import stolen_share, take_snapshot
from alula.measure import Round, offline_round
from alula.tuning.messages import Measured, MeasureRequest, Predicted, PredictRequest

Floats = NDArray[np.float32]

INPUT = "input"
OUTPUT = "output"
CACHED_BATCHES = 16
WARM_UP_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is prepared or served.

    Attributes:
        folder: of the model, shared by all peers.
        batch: samples of one call.
        threads: thread budget.
    """

    folder: Path
    batch: int
    threads: int

    @property
    def fewer_threads(self) -> bool:
        """Whether the budget is smaller than the machine."""
        return self.threads < (os.cpu_count() or 1)

    @property
    def calibration(self) -> Floats:
        """Samples for quantizers, shape (n, c, h, w)."""
        loaded: Floats = np.load(self.folder / "calibration.npy")
        return loaded

    def module(self) -> Any:
        """Return the network."""
        import torch

        return torch.load(self.folder / "module.pkl", weights_only=False)

    def made(self, name: str) -> Path:
        """Return a folder for what is made."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class Running(Protocol):
    """A peer that is ready to run."""

    def outputs(self, batch: Floats) -> Floats:
        """Return the outputs of a batch."""
        ...

    def timed(self, batches: list[Floats], seconds: float) -> Round:
        """Return what was done with batches, again and again, for so many seconds."""
        ...


class OneByOne:
    """A peer called with one batch after the other, from one thread.

    Args:
        taken: turns an array into what the peer takes; not timed.
        call: runs one batch.
        given: turns its result into an array; not timed.
    """

    def __init__(
        self,
        taken: Callable[[Floats], Any],
        call: Callable[[Any], Any],
        given: Callable[[Any], Floats] = np.asarray,
    ) -> None:
        self._taken, self._call, self._given = taken, call, given
        self._known: dict[int, Any] = {}

    def outputs(self, batch: Floats) -> Floats:
        """See `Running`."""
        return self._given(self._call(self._taken(batch)))

    def timed(self, batches: list[Floats], seconds: float) -> Round:
        """See `Running`."""
        inputs = [self._known.setdefault(id(batch), self._taken(batch)) for batch in batches]
        turn = 0

        def run(_instance: int) -> int:
            nonlocal turn
            self._call(inputs[turn % len(inputs)])
            turn += 1
            return len(batches[0])

        return offline_round(run, instances=1, seconds=seconds)


class InFlight:
    """OpenVINO as `benchmark_app` runs it: as many requests in flight as the hint wants, with new data."""

    def __init__(self, path: Path, job: Job) -> None:
        ov = _openvino()
        core = ov.Core()
        options: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
        if job.fewer_threads:
            options["INFERENCE_NUM_THREADS"] = job.threads
        model = core.read_model(path)
        model.reshape([job.batch, *job.calibration.shape[1:]])
        compiled = core.compile_model(model, "CPU", options)
        self._ov, self._compiled, self._queue = ov, compiled, ov.AsyncInferQueue(compiled, 0)
        self._tensors: dict[int, Any] = {}
        _report(
            f"{len(self._queue)} requests in flight, {compiled.get_property('NUM_STREAMS')} streams, "
            f"{_precision(compiled)}"
        )

    def outputs(self, batch: Floats) -> Floats:
        """See `Running`."""
        found: Floats = self._compiled(batch)[0]
        return found

    def timed(self, batches: list[Floats], seconds: float) -> Round:
        """See `Running`."""
        tensors = [
            self._tensors.setdefault(id(batch), self._ov.Tensor(batch, shared_memory=True))
            for batch in batches
        ]
        started_s, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - started_s < seconds:
            self._queue.start_async({0: tensors[calls % len(tensors)]})
            calls += 1
        self._queue.wait_all()
        return Round(samples=calls * len(batches[0]), wall_s=time.perf_counter() - started_s, calls=())


def _openvino() -> Any:
    # It would report its use to a server.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _precision(compiled: Any) -> str:
    """Return what floating point the plug-in chose by itself, such as `bf16`."""
    name: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return name


def _report(text: str) -> None:
    print(f"how: {text}", file=sys.stderr)


def convert_to_openvino(job: Job) -> None:
    """Write `openvino-fp32/model.xml`: converted from PyTorch and saved with the defaults."""
    path = job.made("openvino-fp32") / "model.xml"
    if path.exists():
        return
    ov = _openvino()
    import torch

    ov.save_model(ov.convert_model(job.module(), example_input=torch.from_numpy(job.calibration[:2])), path)


def quantize_with_nncf(job: Job) -> None:
    """Write `openvino-int8/model.xml`: `nncf.quantize`, its defaults; `TRANSFORMER` with attention."""
    ov = _openvino()
    import nncf
    import torch

    module = job.module()
    model = ov.convert_model(module, example_input=torch.from_numpy(job.calibration[:2]))
    attention = any("attention" in type(part).__name__.lower() for part in module.modules())
    items = [sample[None] for sample in job.calibration]
    options = {"model_type": nncf.ModelType.TRANSFORMER} if attention else {}
    ov.save_model(
        nncf.quantize(model, nncf.Dataset(items), **options), job.made("openvino-int8") / "model.xml"
    )


def export_to_onnx(job: Job) -> Path:
    """Return `onnx/model.onnx`, written by `torch.onnx.export` with a free batch size if it is not there."""
    path = job.made("onnx") / "model.onnx"
    if not path.exists():
        import torch

        draft = path.with_suffix(".part")
        torch.onnx.export(
            job.module(),
            (torch.from_numpy(job.calibration[:2]),),
            draft,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
        )
        draft.replace(path)
    return path


def quantize_with_onnxruntime(job: Job) -> None:
    """Write `onnxruntime-int8/model.onnx`: pre-processed, then `quantize_static` with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self._items = ({INPUT: sample[None]} for sample in job.calibration)

        def get_next(self) -> dict[str, Floats] | None:
            return next(self._items, None)

    folder = job.made("onnxruntime-int8")
    quant_pre_process(export_to_onnx(job), folder / "prepared.onnx")
    quantize_static(folder / "prepared.onnx", folder / "model.onnx", Reader())


def open_onnxruntime(path: Path, job: Job, options: dict[str, Any]) -> Running:
    """Return a session with options of a few names; with none it has ONNX Runtime's defaults."""
    import onnxruntime as ort

    chosen = ort.SessionOptions()
    if job.fewer_threads:
        chosen.intra_op_num_threads = job.threads
    for name in ("intra_op_num_threads", "inter_op_num_threads"):
        if options.get(name):
            setattr(chosen, name, options[name])
    if options.get("execution_mode") is not None:
        chosen.execution_mode = ort.ExecutionMode(options["execution_mode"])
    if options.get("graph_optimization_level") is not None:
        chosen.graph_optimization_level = ort.GraphOptimizationLevel(options["graph_optimization_level"])
    for name, value in (options.get("extra_session_config") or {}).items():
        chosen.add_session_config_entry(name, str(value))
    session = ort.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
    _report(f"session options {json.dumps(options)}" if options else "default options")
    return OneByOne(
        lambda batch: {session.get_inputs()[0].name: batch},
        lambda feed: session.run(None, feed),
        lambda outputs: outputs[0],
    )


def open_olive(job: Job) -> Running:
    """Return a session on Olive's model with the options that it found."""
    folder = job.folder / "olive-int8"
    return open_onnxruntime(folder / "model.onnx", job, json.loads((folder / "session.json").read_text()))


def open_optimum(job: Job) -> Running:
    """Return optimum-intel's model as its own class runs it: latency hint, free sizes, one call at a time."""
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if job.fewer_threads:
        options["INFERENCE_NUM_THREADS"] = job.threads
    core = _openvino().Core()
    compiled = core.compile_model(job.folder / "optimum-intel" / "openvino_model.xml", "CPU", options)
    request = compiled.create_infer_request()
    _report(f"latency hint, {_precision(compiled)}")
    return OneByOne(lambda batch: batch, request.infer, lambda outputs: outputs[0].copy())


def open_compiled(job: Job) -> Running:
    """Return the module through `torch.compile` with its defaults."""
    import torch

    _report("default mode")
    return _torch_calls(torch.compile(job.module().eval()), channels_last=False)


def open_pt2e(job: Job) -> Running:
    """Return the module quantized for x86 and compiled, as torchao's tutorial of X86InductorQuantizer does.

    Exported at the batch size, channels last; default static configuration; Inductor's freezing.
    """
    import torch
    import torch._inductor.config
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch._inductor.config.freezing = True
    samples = torch.from_numpy(job.calibration).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exported = torch.export.export(job.module().eval(), (samples[: job.batch],)).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        for start in range(0, len(samples), job.batch):
            prepared(samples[start : start + job.batch])
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        compiled = torch.compile(converted)
    _report("X86InductorQuantizer, freezing, channels last")
    return _torch_calls(compiled, channels_last=True)


def _torch_calls(compiled: Callable[[Any], Any], *, channels_last: bool) -> Running:
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format

    def call(batch: Any) -> Any:
        with torch.no_grad():
            return compiled(batch)

    return OneByOne(
        lambda batch: torch.from_numpy(batch).contiguous(memory_format=layout),
        call,
        lambda output: output.numpy(),
    )


PREPARED: dict[str, Callable[[Job], object]] = {
    "openvino-fp32": convert_to_openvino,
    "openvino-int8": quantize_with_nncf,
    "onnxruntime-fp32": export_to_onnx,
    "onnxruntime-int8": quantize_with_onnxruntime,
    "olive-int8": export_to_onnx,
}
"""What has to be made before a peer can be opened; Olive's own part is made by `peers_olive.py` after it."""

OPENED: dict[str, Callable[[Job], Running]] = {
    "openvino-fp32": lambda job: InFlight(job.folder / "openvino-fp32" / "model.xml", job),
    "openvino-int8": lambda job: InFlight(job.folder / "openvino-int8" / "model.xml", job),
    "onnxruntime-fp32": lambda job: open_onnxruntime(job.folder / "onnx" / "model.onnx", job, {}),
    "onnxruntime-int8": lambda job: open_onnxruntime(job.folder / "onnxruntime-int8" / "model.onnx", job, {}),
    "torch-compile": open_compiled,
    "torchao-pt2e": open_pt2e,
    "olive-int8": open_olive,
    "optimum-intel": open_optimum,
}


class Served:
    """Answers requests about one peer."""

    def __init__(self, running: Running, batch: int) -> None:
        self._running, self._batch = running, batch
        self._batches: list[Floats] = []

    def answer(self, request: MeasureRequest | PredictRequest) -> Measured | Predicted:
        """Return a reply."""
        inputs = np.load(request.inputs[0])
        if isinstance(request, PredictRequest):
            started_s = time.perf_counter()
            outputs = [self._running.outputs(batch) for batch in self._whole(inputs)]
            np.save(request.outputs[0], np.concatenate(outputs))
            return Predicted(n=len(inputs), samples_per_s=len(inputs) / (time.perf_counter() - started_s))
        if not self._batches:
            self._batches = list(self._whole(inputs))[:CACHED_BATCHES]
            self._running.timed(self._batches, WARM_UP_S)
        before, cpu_s = take_snapshot(), time.process_time()
        found = self._running.timed(self._batches, request.seconds)
        return Measured(
            samples=found.samples,
            wall_s=found.wall_s,
            calls_s=found.calls,
            instances=found.instances,
            cpu_s=time.process_time() - cpu_s,
            stolen=stolen_share(before, take_snapshot()),
        )

    def _whole(self, inputs: Floats) -> Iterator[Floats]:
        for start in range(0, len(inputs) - self._batch + 1, self._batch):
            yield np.ascontiguousarray(inputs[start : start + self._batch])


def serve(peer: str, job: Job) -> None:
    """Answer requests from standard input until it ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A reader of its own: Python aborts, and tells no error, if it ends while a thread reads its `sys.stdin`.
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def watch() -> None:
        for line in requests:
            lines.put(line)
        os._exit(0)  # who asked is gone, and a compilation may run for minutes

    threading.Thread(target=watch, daemon=True).start()
    served = Served(OPENED[peer](job), job.batch)
    decoder = msgspec.json.Decoder(MeasureRequest | PredictRequest)
    while True:
        line = lines.get()
        replies.write(msgspec.json.encode(served.answer(decoder.decode(line))) + b"\n")
        replies.flush()


def main() -> None:
    what, peer, folder, batch, threads = sys.argv[1:]
    job = Job(folder=Path(folder), batch=int(batch), threads=int(threads))
    warnings.simplefilter("ignore")
    if what == "prepare":
        PREPARED[peer](job)
    else:
        serve(peer, job)


if __name__ == "__main__":
    main()
