"""Messages cross the pipe as one line each and come out as they went in."""

from __future__ import annotations

import msgspec
import pytest

from alula.core import Recipe, Roofline, Settings, Signature, TensorSpec
from alula.graphs import Products
from alula.measure import simulated_round, single_stream
from alula.sources import Source
from alula.tuning import messages as m
from alula.tuning.roofline import SHORT

SIGNATURE = Signature(
    (TensorSpec("x\n", "float32", ("b", 3, "t")), TensorSpec("ids", "int64", (4, 2))),
    (TensorSpec("ü", "float32", ("b", 5)),),
)
SOURCE = Source(
    kind="module", spec="/tmp/a b.pkl", weights="w.pth", search_path=("/x", "/y"), sha256="0" * 64
)
SETTINGS = Settings(threads=2, instances=3, batch_size=4, knobs={"pin": True, "level": "all"})

REQUESTS = (
    m.DescribeRequest(source=SOURCE, samples=("a.npy", "b.npy")),
    m.ExportRequest(source=SOURCE, samples=("a.npy",), target="onnx", folder="/f"),
    m.CountRequest(target="exported", path="/f", samples=("a.npy",)),
    m.PeaksRequest(threads=2, workload=SHORT, rounds=3, seconds=0.1),
    m.BuildRequest(
        recipe=Recipe("openvino", "int8", "nncf"),
        source=SOURCE,
        export="/e",
        artifact="/a",
        calibration=("c.npy",),
        signature=SIGNATURE,
        saturating=True,
    ),
    m.LoadRequest(recipe=Recipe("fake", "fp32"), artifact="/a", signature=SIGNATURE, settings=SETTINGS),
    m.LoadModelRequest(source=SOURCE, signature=SIGNATURE, settings=SETTINGS),
    m.PredictRequest(inputs=("a.npy",), outputs=("y.npy", "z.npy"), limit=7),
    m.PredictRequest(inputs=("a.npy",), outputs=("y.npy",)),
    m.MeasureRequest(inputs=("a.npy",), seconds=0.25),
    m.StreamRequest(inputs=("a.npy",), seconds=2.5, max_s=7.0, min_queries=92),
    m.ServeRequest(inputs=("a.npy",), rate_per_s=12.5, seconds=3.0, limit_s=0.05, seed=4),
)
REPLIES = (
    m.Described(signature=SIGNATURE, notes=("folded one weight",)),
    m.Counted(
        products=(Products(kind="conv", role="stem", macs=7), Products(kind="matmul", role="head", macs=0))
    ),
    m.PeaksMeasured(
        roofline=Roofline(fp32_gmacs_per_s=1.5, int8_gmacs_per_s=6.0, threads=2, method="by hand")
    ),
    m.Built(seconds=0.5),
    m.Loaded(seconds=1e-9),
    m.Predicted(n=3, samples_per_s=4.5),
    m.Measured(samples=16, wall_s=0.1, calls_s=(0.05, 0.05), instances=2, cpu_s=0.2, stolen=0.1),
    m.Streamed(latency=single_stream(lambda: None, seconds=0.0, min_queries=3)),
    m.Served(found=simulated_round(lambda samples: 0.01, rate_per_s=20.0, seconds=1.0, limit_s=None, seed=1)),
    m.Problem(error="It failed.\nTwice: »über«"),
    m.DiskFull(path="/a b/ü", free_bytes=0),
)


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_requests_round_trip(message: m.Request) -> None:
    line = msgspec.json.encode(message)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=m.Request) == message


@pytest.mark.parametrize("message", REPLIES, ids=lambda message: type(message).__name__)
def test_replies_round_trip(message: m.Reply) -> None:
    line = msgspec.json.encode(message)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=m.Reply) == message


def test_no_message_is_left_out() -> None:
    both = {type(message).__name__ for message in (*REQUESTS, *REPLIES)}
    assert both | {"Request", "Reply"} == set(m.__all__)


def test_a_misspelt_field_is_refused() -> None:
    line = msgspec.json.encode(REQUESTS[-1]).replace(b"seconds", b"secnods")
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line, type=m.Request)
