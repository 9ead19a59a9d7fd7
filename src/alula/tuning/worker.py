"""A trial's child process: carries out requests one by one, until its input ends.

Run as `python -m alula.tuning.worker < requests.jsonl`; the search does so, and so can a user who
wants to see a failure again. Replies go to the original standard output; everything that libraries
print goes to standard error.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.core import Settings, Signature
from alula.engines import Arrays, Session, engine_named, filled, run_in_batches
from alula.errors import AlulaError, DataError, EngineError, ModelError
from alula.export import export_module, rewritten, signature_of_module, signature_of_onnx
from alula.graphs import products_of, read_fx, read_onnx, read_openvino
from alula.hardware import disk_full, stolen_share, take_snapshot
from alula.measure import Concurrency, serve, single_stream
from alula.quantization import Material, quantizer_for
from alula.sources import LoadedModel, Source, load_model
from alula.tuning.files import save_array
from alula.tuning.messages import (
    BuildRequest,
    Built,
    Counted,
    CountRequest,
    Described,
    DescribeRequest,
    DiskFull,
    ExportRequest,
    Loaded,
    LoadModelRequest,
    LoadRequest,
    Measured,
    MeasureRequest,
    PeaksMeasured,
    PeaksRequest,
    Predicted,
    PredictRequest,
    Problem,
    Reply,
    Request,
    Served,
    ServeRequest,
    Streamed,
    StreamRequest,
)
from alula.tuning.process import end_group
from alula.tuning.roofline import measure_roofline

__all__ = ["Worker", "main"]

CALIBRATION_BATCH = 8
SERVED_WARM_UP_S = 4.0  # for all sizes of batch together, beyond two calls of each
INPUT_CACHE_BYTES = 64 * 2**20  # distinct batches kept for timing: more than any cache, less than a model


class Worker:
    """Carries out requests. Not thread-safe: one request at a time."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._settings = Settings()
        self._signature = Signature((), ())
        self._concurrency: Concurrency | None = None
        self._stack = contextlib.ExitStack()
        self._warm = False
        self._warm_to_serve = False
        self._batches: tuple[tuple[tuple[str, ...], int, int], list[Arrays]] | None = None

    def answer(self, request: Request) -> Reply:
        """Return the reply to one request; what fails on purpose is a `Problem`, a full disk `DiskFull`."""
        try:
            return self._carry_out(request)
        except (AlulaError, OSError) as error:
            full = disk_full(error, what="it", path=Path(tempfile.gettempdir()))
            if full is not None:
                return DiskFull(path=full.path, free_bytes=full.free_bytes)
            if isinstance(error, OSError):
                raise
            return Problem(error=str(error))
        except MemoryError:
            return Problem(error="The process ran out of memory.")

    def _carry_out(self, request: Request) -> Reply:
        reply: Reply
        match request:
            case DescribeRequest():
                reply = self._describe(request)
            case ExportRequest():
                reply = self._export(request)
            case CountRequest():
                reply = self._count(request)
            case PeaksRequest():
                roofline = measure_roofline(
                    threads=request.threads,
                    workload=request.workload,
                    rounds=request.rounds,
                    seconds=request.seconds,
                    memory=False,
                )
                reply = PeaksMeasured(roofline=roofline)
            case BuildRequest():
                reply = self._build(request)
            case LoadRequest():
                reply = self._load(
                    lambda: engine_named(request.recipe.engine).load(
                        Path(request.artifact),
                        recipe=request.recipe,
                        signature=request.signature,
                        settings=request.settings,
                    ),
                    request.settings,
                    request.signature,
                )
            case LoadModelRequest():
                reply = self._load(
                    lambda: model_session(request.source, request.signature, request.settings),
                    request.settings,
                    request.signature,
                )
            case PredictRequest():
                reply = self._predict(request)
            case MeasureRequest():
                reply = self._measure(request)
            case StreamRequest():
                reply = self._stream(request)
            case ServeRequest():
                reply = self._serve(request)
        return reply

    def _describe(self, request: DescribeRequest) -> Described:
        model = load_model(request.source)
        if model.onnx_path is not None:
            return Described(signature=signature_of_onnx(model.onnx_path))
        return Described(signature=signature_of_module(_module(model), _heads(request.samples)))

    def _export(self, request: ExportRequest) -> Described:
        model = load_model(request.source)
        exported = export_module(
            _module(model), _heads(request.samples), target=request.target, folder=Path(request.folder)
        )
        return Described(signature=exported.signature, notes=exported.notes)

    def _count(self, request: CountRequest) -> Counted:
        path = Path(request.path)
        if request.target == "onnx":
            # A file of the user's may leave sizes open; an export's are those of the samples anyway.
            signature = signature_of_onnx(path)
            shapes = {
                spec.name: array.shape
                for spec, array in zip(signature.inputs, _heads(request.samples), strict=True)
                if any(isinstance(size, str) for size in spec.shape[1:])
            }
            graph = read_onnx(path, shapes=shapes)
        elif request.target == "exported":
            import torch

            graph = read_fx(torch.export.load(path).module())
        elif request.target == "openvino":
            import openvino

            graph = read_openvino(openvino.Core().read_model(path))
        else:
            raise ModelError(f"The work of an export to {request.target} cannot be counted.")
        return Counted(products=products_of(graph))

    def _build(self, request: BuildRequest) -> Built:
        started = time.perf_counter()
        export, artifact = Path(request.export), Path(request.artifact)
        if request.recipe.precision == "int8":
            material = Material(
                export=export,
                module=lambda: rewritten(_module(load_model(request.source)), _heads(request.calibration))[0],
                batches=lambda: _calibration_batches(_mapped(request.calibration), request.signature),
                signature=request.signature,
                saturating=request.saturating,
            )
            quantizer_for(request.recipe).quantize(material, artifact, recipe=request.recipe)
        else:
            engine_named(request.recipe.engine).build(export, artifact, recipe=request.recipe)
        return Built(seconds=time.perf_counter() - started)

    def _load(self, load: Callable[[], Session], settings: Settings, signature: Signature) -> Loaded:
        self.close()
        started = time.perf_counter()
        self._session = load()
        self._settings = settings
        self._signature = signature
        self._stack.callback(self._session.close)
        self._concurrency = self._stack.enter_context(Concurrency(settings.instances))
        self._warm = self._warm_to_serve = False
        return Loaded(seconds=time.perf_counter() - started)

    def _loaded(self) -> tuple[Session, Concurrency]:
        if self._session is None or self._concurrency is None:
            raise EngineError("Nothing is loaded; a load request must come first.")
        return self._session, self._concurrency

    def _predict(self, request: PredictRequest) -> Predicted:
        session, concurrency = self._loaded()
        inputs = _mapped(request.inputs)
        n = min(len(inputs[0]), request.limit or len(inputs[0]))
        size, instances = self._settings.batch_size, self._settings.instances
        share = math.ceil(math.ceil(n / size) / instances) * size  # whole batches for every instance

        def run(instance: int) -> list[Arrays]:
            first, end = instance * share, min(n, (instance + 1) * share)
            mine = tuple(array[first:end] for array in inputs)
            return list(run_in_batches(session, mine, specs=self._signature.inputs, batch_size=size))

        started = time.perf_counter()
        batches = list(itertools.chain.from_iterable(concurrency.each(run)))
        elapsed = time.perf_counter() - started
        for path, parts in zip(request.outputs, zip(*batches, strict=True), strict=False):
            save_array(Path(path), np.concatenate(parts))
        return Predicted(n=n, samples_per_s=n / elapsed)

    def _measure(self, request: MeasureRequest) -> Measured:
        session, concurrency = self._loaded()
        batches = self._timing_batches(request.inputs)
        position = list(range(self._settings.instances))

        def run(instance: int) -> int:
            batch = batches[position[instance] % len(batches)]
            position[instance] += self._settings.instances
            session.run(batch)
            return int(batch[0].shape[0])

        self._warm_up(run, max_s=max(2.0, 2 * request.seconds))
        before, cpu = take_snapshot(), time.process_time()
        measured = concurrency.round(run, seconds=request.seconds)
        return Measured(
            samples=measured.samples,
            wall_s=measured.wall_s,
            calls_s=measured.calls,
            instances=measured.instances,
            cpu_s=time.process_time() - cpu,
            stolen=stolen_share(before, take_snapshot()),
        )

    def _warm_up(self, run: Callable[[int], int], *, max_s: float) -> None:
        _, concurrency = self._loaded()
        if not self._warm:
            concurrency.warm_up(run, max_s=max_s)
            self._warm = True

    def _stream(self, request: StreamRequest) -> Streamed:
        session, _ = self._loaded()
        samples = itertools.cycle([self._part(batch, 1) for batch in self._timing_batches(request.inputs)])

        def run() -> None:
            session.run(next(samples))

        def warm(_instance: int) -> int:
            run()
            return 1

        self._warm_up(warm, max_s=2.0)
        found = single_stream(
            run, seconds=request.seconds, max_s=request.max_s, min_queries=request.min_queries
        )
        return Streamed(latency=found)

    def _serve(self, request: ServeRequest) -> Served:
        session, concurrency = self._loaded()
        batches = self._timing_batches(request.inputs)
        # Every instance has a batch of its own; queries that wait together are one call.
        mine = [batches[instance % len(batches)] for instance in range(self._settings.instances)]

        def run(instance: int, samples: int) -> None:
            session.run(self._part(mine[instance], samples))

        if not self._warm_to_serve:
            # Engines prepare themselves for each size of batch that they meet; in a queue all sizes occur.
            for size in range(1, self._settings.batch_size + 1):

                def warm(instance: int, size: int = size) -> int:
                    run(instance, size)
                    return size

                concurrency.warm_up(warm, max_s=SERVED_WARM_UP_S / self._settings.batch_size)
            self._warm = self._warm_to_serve = True
        return Served(
            found=serve(
                run,
                threads=concurrency,
                rate_per_s=request.rate_per_s,
                seconds=request.seconds,
                batch_size=self._settings.batch_size,
                limit_s=request.limit_s,
                seed=request.seed,
            )
        )

    def _timing_batches(self, inputs: tuple[str, ...]) -> list[Arrays]:
        """Return distinct full batches in memory: a shared buffer would flatter the caches."""
        fixed = self._signature.inputs[0].shape[0]
        size = fixed if isinstance(fixed, int) else self._settings.batch_size
        key = (inputs, size, self._settings.instances)
        if self._batches is None or self._batches[0] != key:
            arrays = _mapped(inputs)
            bytes_per_batch = sum(array[:1].nbytes for array in arrays) * size
            count = max(self._settings.instances, min(32, INPUT_CACHE_BYTES // bytes_per_batch))
            n = len(arrays[0])
            picks = [np.arange(i * size, (i + 1) * size) % n for i in range(count)]
            batches = [tuple(np.ascontiguousarray(array[pick]) for array in arrays) for pick in picks]
            self._batches = (key, batches)
        return self._batches[1]

    def _part(self, batch: Arrays, samples: int) -> Arrays:
        """Return the first samples of a batch, filled up where the model has fixed its batch axis."""
        return filled(self._signature.inputs, tuple(array[:samples] for array in batch))

    def close(self) -> None:
        """Free the loaded session."""
        self._stack.close()
        self._session = self._concurrency = None


def model_session(source: Source, signature: Signature, settings: Settings) -> Session:
    """Return a session on the user's own module in eager PyTorch.

    Raises:
        ModelError: the source cannot be loaded or is no module.
    """
    from alula.engines.torch_eager import TorchSession

    module = _module(load_model(source))
    return TorchSession("torch", module, signature=signature, settings=settings)


def _module(model: LoadedModel) -> Any:
    if model.module is None:
        raise ModelError(f"`{model.name}` is an ONNX file; expected a PyTorch module for this step.")
    return model.module


def _mapped(paths: Sequence[str]) -> list[NDArray[Any]]:
    try:
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    except (OSError, ValueError) as error:
        raise DataError(paths[0], f"The prepared samples cannot be read: {error}") from error


def _heads(paths: Sequence[str]) -> list[NDArray[Any]]:
    # Two samples: enough for a batch axis that is not mistaken for a constant of one.
    return [np.array(array[:2]) for array in _mapped(paths)]


def _calibration_batches(arrays: Sequence[NDArray[Any]], signature: Signature) -> Iterator[Arrays]:
    fixed = signature.inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else CALIBRATION_BATCH
    for start in range(0, len(arrays[0]), size):
        batch = tuple(np.ascontiguousarray(array[start : start + size]) for array in arrays)
        yield filled(signature.inputs, batch)


def main() -> None:
    """Answer requests from standard input until it ends."""
    # OpenVINO and NNCF report every use to a server through this package, and leave it where it is absent.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A reader of its own: Python aborts, and tells no error, if it ends while a thread reads its `sys.stdin`.
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    from_search = stat.S_ISFIFO(os.fstat(requests.fileno()).st_mode)

    def watch() -> None:
        for line in requests:
            lines.put(line)
        lines.put(b"")
        if from_search:
            # The search is gone. A request may hang or run for minutes, and nobody will read its reply.
            end_group()

    threading.Thread(target=watch, daemon=True).start()
    worker = Worker()
    decoder, encoder = msgspec.json.Decoder(Request), msgspec.json.Encoder()
    while line := lines.get():
        replies.write(encoder.encode(worker.answer(decoder.decode(line))) + b"\n")
        replies.flush()
    worker.close()


if __name__ == "__main__":
    main()
