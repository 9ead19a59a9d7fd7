"""A child process comes to an end in all cases, and says in one line how."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny import CLASSES, FEATURES

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines.fake import FakeScript
from alula.errors import DiskFullError, EngineError
from alula.sources import Source
from alula.tuning import Child, ChildError, LoadRequest, measure_round, process, worker
from alula.tuning.messages import (
    BuildRequest,
    Built,
    Described,
    DescribeRequest,
    Loaded,
    Measured,
    MeasureRequest,
    Predicted,
    PredictRequest,
    Served,
    ServeRequest,
    Streamed,
    StreamRequest,
)

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("b", FEATURES)),), (TensorSpec("scores", "float32", ("b", CLASSES)),)
)
ANSWER_S = 60.0  # for what must answer: no test waits so long unless it fails
HANG_S = 1.0  # for what never answers
GIB = 2**30


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with Child(tmp_path / "logs", "trial", threads=1, memory_limit_bytes=2 * GIB) as child:
        yield child


@pytest.fixture
def samples(tmp_path: Path, rng: np.random.Generator) -> str:
    path = tmp_path / "x.npy"
    np.save(path, rng.normal(size=(20, FEATURES)).astype(np.float32))
    return str(path)


def scripted(folder: Path, *, batch_size: int = 8, **script: Any) -> LoadRequest:
    """Return the request that loads the fake engine with a script."""
    folder.mkdir(exist_ok=True)
    (folder / "fake.json").write_bytes(msgspec.json.encode(FakeScript(**script)))
    return LoadRequest(
        recipe=Recipe("fake", "fp32"),
        artifact=str(folder),
        signature=SIGNATURE,
        settings=Settings(batch_size=batch_size),
    )


def test_another_command_is_asked_as_the_worker_is(tmp_path: Path) -> None:
    script = tmp_path / "other worker.py"
    script.write_text(
        "import sys\n"
        "for line in sys.stdin:\n"
        """    print('{"type":"Predicted","n":%d,"samples_per_s":2.5}' % len(sys.argv[1]), flush=True)\n"""
    )
    command = (sys.executable, str(script), "seven c")
    with Child(tmp_path, "other", threads=1, memory_limit_bytes=GIB, command=command) as child:
        answer = child.ask(PredictRequest(inputs=(), outputs=()), Predicted, timeout_s=ANSWER_S)
    assert answer == Predicted(n=7, samples_per_s=2.5)
    assert shlex.split(child.reproduce.partition(" < ")[0])[1:] == [str(script), "seven c"]


def gone(pid: int, *, within_s: float = ANSWER_S) -> bool:
    """Whether a process, whoever's child it is, ends within that time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])  # readable when it has ended
    finally:
        os.close(descriptor)


def test_a_child_answers_request_after_request(child: Child, tmp_path: Path, samples: str) -> None:
    child.ask(scripted(tmp_path / "artifact", scale=2.0), Loaded, timeout_s=ANSWER_S)
    output = str(tmp_path / "y.npy")
    done = child.ask(PredictRequest(inputs=(samples,), outputs=(output,)), Predicted, timeout_s=ANSWER_S)
    assert done.n == 20
    np.testing.assert_array_equal(np.load(output), 2 * np.load(samples)[:, :CLASSES])
    limited = PredictRequest(inputs=(samples,), outputs=(output,), limit=11)
    assert child.ask(limited, Predicted, timeout_s=ANSWER_S).n == len(np.load(output)) == 11
    measured = child.ask(MeasureRequest(inputs=(samples,), seconds=0.0), Measured, timeout_s=ANSWER_S)
    assert measured.samples == 8 * len(measured.calls_s)
    assert child.alive


# Takes a quarter of the CPU time wanted between any two looks at the counters.
THIEF = """
import itertools
from alula.hardware import Disturbance
from alula.tuning import worker
looks = itertools.count()
def take_snapshot():
    look = next(looks)
    return Disturbance(cpus=2, busy_s=3.0 * look, stolen_s=1.0 * look)
worker.take_snapshot = take_snapshot
worker.main()
"""


def test_a_round_tells_what_the_hypervisor_gave_to_others(tmp_path: Path, samples: str) -> None:
    command = (sys.executable, "-c", THIEF)
    with Child(tmp_path / "logs", "trial", threads=1, memory_limit_bytes=2 * GIB, command=command) as child:
        child.ask(scripted(tmp_path), Loaded, timeout_s=ANSWER_S)
        taken, _ = measure_round(child, (samples,), 0.01, timeout_s=ANSWER_S)
    assert taken.stolen == 0.25


def test_all_instances_predict_and_the_order_is_that_of_the_samples(
    child: Child, tmp_path: Path, samples: str
) -> None:
    request = scripted(tmp_path / "artifact", scale=2.0)
    output = str(tmp_path / "y.npy")
    for instances, batch_size, limit in ((2, 3, 20), (3, 8, 20), (3, 8, 7), (2, 1, 1)):
        settings = Settings(instances=instances, batch_size=batch_size)
        child.ask(msgspec.structs.replace(request, settings=settings), Loaded, timeout_s=ANSWER_S)
        asked = PredictRequest(inputs=(samples,), outputs=(output,), limit=limit)
        child.ask(asked, Predicted, timeout_s=ANSWER_S)
        np.testing.assert_array_equal(np.load(output), 2 * np.load(samples)[:limit, :CLASSES])
        taken, _ = measure_round(child, (samples,), 0.0, timeout_s=ANSWER_S)
        assert taken.instances == instances == len(taken.calls)


def test_a_fixed_batch_axis_is_filled_up_for_single_samples_and_for_queues(
    child: Child, tmp_path: Path, samples: str
) -> None:
    fixed = Signature((TensorSpec("x", "float32", (8, FEATURES)),), SIGNATURE.outputs)
    request = scripted(tmp_path / "artifact", batch_size=1)
    child.ask(msgspec.structs.replace(request, signature=fixed), Loaded, timeout_s=ANSWER_S)
    stream = StreamRequest(inputs=(samples,), seconds=0.05, max_s=0.1, min_queries=368)
    assert child.ask(stream, Streamed, timeout_s=ANSWER_S).latency.n > 1
    serve = ServeRequest(inputs=(samples,), rate_per_s=200.0, seconds=0.2, limit_s=1.0, seed=0)
    assert child.ask(serve, Served, timeout_s=ANSWER_S).found.stopped is None
    taken, _ = measure_round(child, (samples,), 0.0, timeout_s=ANSWER_S)
    assert taken.samples == 8


def test_a_bound_child_may_run_on_as_many_cpus_as_it_has_threads(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    for threads, bound, expected in ((1, True, 1), (1, False, len(mine)), (len(mine) + 1, True, len(mine))):
        with Child(tmp_path, "bound", threads=threads, memory_limit_bytes=GIB, bound=bound) as child:
            allowed = os.sched_getaffinity(child.pid)
        assert len(allowed) == expected
        assert allowed <= mine


def test_a_child_is_ended_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    child = Child(tmp_path, "twice", threads=1, memory_limit_bytes=GIB)
    kill = os.killpg
    monkeypatch.setattr(os, "killpg", lambda pid, number: (killed.append(pid), kill(pid, number)))
    child.close()
    child.close()  # its number may belong to another process group by now
    assert killed == [child.pid]


def test_a_problem_is_reported_and_the_child_stays_usable(child: Child, tmp_path: Path, samples: str) -> None:
    with pytest.raises(ChildError, match="holds no fake script") as raised:
        child.ask(
            LoadRequest(
                recipe=Recipe("fake", "fp32"), artifact="absent", signature=SIGNATURE, settings=Settings()
            ),
            Loaded,
            timeout_s=ANSWER_S,
        )
    assert not raised.value.died
    assert child.alive
    child.ask(scripted(tmp_path / "artifact"), Loaded, timeout_s=ANSWER_S)


def build(folder: Path) -> BuildRequest:
    """Return the request that builds an artifact of the fake engine, which is one file."""
    return BuildRequest(
        recipe=Recipe("fake", "fp32"),
        source=Source(kind="onnx", spec="absent.onnx"),
        export=str(folder),
        artifact=str(folder),
        calibration=(),
        signature=SIGNATURE,
        saturating=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT COVERED HERE: there is no /dev/full")
def test_a_child_that_finds_no_space_says_so_and_stays_usable(child: Child, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "fake.json").symlink_to("/dev/full")
    with pytest.raises(
        DiskFullError, match=r"^The disk is full: the artifact of fake/fp32 could not be"
    ) as raised:
        child.ask(build(artifact), Built, timeout_s=ANSWER_S)
    assert not isinstance(raised.value, EngineError)  # nothing is wrong with the recipe
    assert child.alive
    (artifact / "fake.json").unlink()
    child.ask(build(artifact), Built, timeout_s=ANSWER_S)


def test_a_crash_on_a_full_disk_is_the_disks_fault(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "is_full", lambda folder: True)
    with pytest.raises(DiskFullError, match="what a child process writes could not be written"):
        child.ask(scripted(tmp_path / "artifact", fault="exit", fault_at="load"), Loaded, timeout_s=ANSWER_S)
    assert not child.alive


def test_a_request_before_any_load_is_a_problem(child: Child, samples: str) -> None:
    with pytest.raises(ChildError, match="Nothing is loaded"):
        child.ask(MeasureRequest(inputs=(samples,), seconds=0.0), Measured, timeout_s=ANSWER_S)


def test_an_answer_of_another_kind_is_refused(child: Child, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match=r"answered Loaded.*expected Built"):
        child.ask(scripted(tmp_path / "artifact"), Built, timeout_s=ANSWER_S)


def test_a_crash_gives_the_exit_code(child: Child, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match=r"^The process ended with exit code 41\.$") as raised:
        child.ask(scripted(tmp_path / "artifact", fault="exit", fault_at="load"), Loaded, timeout_s=ANSWER_S)
    assert raised.value.died
    assert not child.alive
    with pytest.raises(ChildError, match="has ended"):
        child.ask(scripted(tmp_path / "artifact"), Loaded, timeout_s=ANSWER_S)


def test_an_error_that_nobody_expected_is_told(child: Child, tmp_path: Path) -> None:
    child.ask(scripted(tmp_path / "artifact"), Loaded, timeout_s=ANSWER_S)
    with pytest.raises(ChildError, match=r"exit code 1: ZeroDivisionError: "):
        child.ask(MeasureRequest(inputs=(), seconds=0.0), Measured, timeout_s=ANSWER_S)


def test_the_last_line_of_the_log_explains_a_crash(tmp_path: Path) -> None:
    with Child(tmp_path, "mute", threads=1, memory_limit_bytes=GIB) as child:
        (tmp_path / "mute.log").write_text("warning: one\n\n  fatal: no such kernel  \n\n")
        with pytest.raises(ChildError, match=r"exit code 41: fatal: no such kernel\.$"):
            child.ask(scripted(tmp_path / "a", fault="exit", fault_at="load"), Loaded, timeout_s=ANSWER_S)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "SIGKILL (often the system's way to free memory)."), (signal.SIGSEGV, "SIGSEGV.")],
)
def test_a_signal_is_named(child: Child, tmp_path: Path, number: signal.Signals, words: str) -> None:
    child.ask(scripted(tmp_path / "artifact"), Loaded, timeout_s=ANSWER_S)
    os.kill(child.pid, number)
    with pytest.raises(ChildError) as raised:
        child.ask(scripted(tmp_path / "artifact"), Loaded, timeout_s=ANSWER_S)
    assert str(raised.value) == f"The process was ended by signal {words}"
    assert raised.value.died


def test_a_hanging_child_is_stopped(child: Child, tmp_path: Path, samples: str) -> None:
    child.ask(scripted(tmp_path / "artifact", fault="hang"), Loaded, timeout_s=ANSWER_S)
    with pytest.raises(ChildError, match=r"^Stopped: no answer within 1 s\.$") as raised:
        child.ask(MeasureRequest(inputs=(samples,), seconds=0.0), Measured, timeout_s=HANG_S)
    assert not raised.value.died  # it would hang again
    assert raised.value.timed_out
    assert gone(child.pid)


def test_a_child_that_eats_memory_is_stopped(tmp_path: Path, samples: str) -> None:
    with Child(tmp_path / "logs", "hungry", threads=1, memory_limit_bytes=GIB // 2) as child:
        with pytest.raises(ChildError, match=r"^Stopped: it used \d+\.\d GiB of memory; .* 0\.5 GiB\.$"):
            child.ask(
                scripted(tmp_path / "artifact", fault="memory", fault_at="load"), Loaded, timeout_s=ANSWER_S
            )
        assert gone(child.pid)


def test_the_child_ends_with_its_input_even_while_it_hangs(tmp_path: Path) -> None:
    hang = scripted(tmp_path / "artifact", fault="hang", fault_at="load")
    finished = subprocess.run(
        [sys.executable, "-m", "alula.tuning.worker"],
        input=msgspec.json.encode(hang) + b"\n",
        capture_output=True,
        timeout=ANSWER_S,
    )
    assert (finished.returncode, finished.stdout) == (0, b"")


_SEARCH_THAT_HANGS = """
import sys
from pathlib import Path
from alula.tuning import Child, LoadRequest
from alula.tuning.messages import Loaded
import msgspec
with Child(Path(sys.argv[1]), "orphan", threads=1, memory_limit_bytes=2**40) as child:
    print(child.pid, flush=True)
    child.ask(msgspec.json.decode(sys.argv[2], type=LoadRequest), Loaded, timeout_s=1000)
"""


def test_a_search_that_is_killed_leaves_no_child(tmp_path: Path) -> None:
    hang = scripted(tmp_path / "artifact", fault="hang", fault_at="load")
    with subprocess.Popen(
        [sys.executable, "-c", _SEARCH_THAT_HANGS, str(tmp_path), msgspec.json.encode(hang).decode()],
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        assert gone(pid)


_NOISY_FACTORY = """
import os, subprocess
from pathlib import Path
import torch

def noisy():
    print("a banner")
    os.write(1, b"a banner of a C library\\n")
    started = subprocess.Popen(["sleep", "1000"])
    Path(__file__).with_name("pid").write_text(str(started.pid))
    return torch.nn.Linear(8, 4)
"""


def test_prints_go_to_the_log_and_what_the_model_started_ends_with_the_child(
    child: Child, tmp_path: Path, samples: str
) -> None:
    (tmp_path / "noisy.py").write_text(_NOISY_FACTORY)
    source = Source(kind="factory", spec=f"{tmp_path}/noisy.py:noisy", search_path=(str(tmp_path),))
    request = DescribeRequest(source=source, samples=(samples,))
    described = child.ask(request, Described, timeout_s=ANSWER_S)
    assert described.signature.outputs[0].shape == ("b", 4)
    assert "a banner\n" in (log := (tmp_path / "logs" / "trial.log").read_text())
    assert "a banner of a C library\n" in log
    grandchild = int((tmp_path / "pid").read_text())
    assert not gone(grandchild, within_s=0)
    child.close()
    assert gone(child.pid)
    assert gone(grandchild)
    child.close()  # twice is allowed


_FORKING_FACTORY = """
import os, signal, time

def forking():
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(1000)  # with a copy of every pipe
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_crash_is_seen_although_a_fork_of_the_child_lives_on(
    child: Child, tmp_path: Path, samples: str
) -> None:
    """Some libraries fork: the pipe then stays open when the child is dead."""
    (tmp_path / "forking.py").write_text(_FORKING_FACTORY)
    source = Source(kind="factory", spec=f"{tmp_path}/forking.py:forking", search_path=(str(tmp_path),))
    with pytest.raises(ChildError, match=r"ended by signal SIGSEGV\.$") as raised:
        child.ask(DescribeRequest(source=source, samples=(samples,)), Described, timeout_s=ANSWER_S)
    assert raised.value.died


_TELLTALE = """
from pathlib import Path
Path(__file__).with_name("imported").write_text("")
raise RuntimeError("would send")
"""


def test_no_library_reports_what_the_search_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: str
) -> None:
    """OpenVINO and NNCF send what they do to a server, through a package that must not be imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "openvino_telemetry.py").write_text(_TELLTALE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    request = BuildRequest(
        recipe=Recipe("openvino", "int8", "nncf"),
        source=Source(kind="onnx", spec="absent.onnx"),
        export=str(tmp_path / "absent"),
        artifact=str(tmp_path),
        calibration=(samples,),
        signature=SIGNATURE,
        saturating=False,
    )
    with (
        Child(tmp_path / "logs", "quantize", threads=1, memory_limit_bytes=8 * GIB) as child,
        pytest.raises(ChildError, match="cannot quantize"),
    ):
        child.ask(request, Built, timeout_s=ANSWER_S)
    loaded = "from alula.engines import engine_named; print(engine_named('openvino').version())"
    told = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=ANSWER_S)
    assert told.returncode == 0, told.stderr
    assert not (tmp_path / "site" / "imported").exists()


def test_the_reproduce_command_repeats_the_failure(child: Child, tmp_path: Path, samples: str) -> None:
    child.ask(scripted(tmp_path / "artifact", fault="exit"), Loaded, timeout_s=ANSWER_S)
    with pytest.raises(ChildError, match="exit code 41"):
        child.ask(MeasureRequest(inputs=(samples,), seconds=0.0), Measured, timeout_s=ANSWER_S)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    again = subprocess.run(
        child.reproduce, shell=True, capture_output=True, env=environment, timeout=ANSWER_S
    )
    assert again.returncode == 41
    assert msgspec.json.decode(again.stdout)["type"] == "Loaded"


def test_children_of_one_name_keep_their_requests_apart(tmp_path: Path, samples: str) -> None:
    files = []
    for _ in range(2):
        with Child(tmp_path / "logs", "trial", threads=1, memory_limit_bytes=2 * GIB) as child:
            child.ask(scripted(tmp_path / "artifact"), Loaded, timeout_s=ANSWER_S)
            child.begin("trial")
            child.ask(scripted(tmp_path / "artifact"), Loaded, timeout_s=ANSWER_S)
            files.append(child.request_file)
    assert [file.name for file in files] == ["trial-2.jsonl", "trial-4.jsonl"]
    assert [path.read_bytes().count(b"\n") for path in sorted((tmp_path / "logs").glob("*.jsonl"))] == [1] * 4


def test_watching_the_memory_takes_a_small_part_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host with thousands of processes takes long to list them."""
    looks = 0

    def slow(leader: int) -> int:
        nonlocal looks
        looks += 1
        time.sleep(0.05)
        return 0

    monkeypatch.setattr(process, "_resident_bytes", slow)
    hang = scripted(tmp_path / "artifact", fault="hang", fault_at="load")
    with (
        Child(tmp_path / "logs", "trial", threads=1, memory_limit_bytes=2 * GIB) as child,
        pytest.raises(ChildError, match="no answer"),
    ):
        child.ask(hang, Loaded, timeout_s=3.0)
    assert looks <= 1 + 3.0 * process.WATCHING_SHARE / 0.05


def test_every_instance_is_timed_on_a_batch_of_its_own(
    tmp_path: Path, samples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "INPUT_CACHE_BYTES", 1)
    mine = worker.Worker()
    mine._signature = scripted(tmp_path).signature
    for instances in (1, 3):
        mine._settings = Settings(instances=instances, batch_size=4)
        assert len(mine._timing_batches((samples,))) == instances
