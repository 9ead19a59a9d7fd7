"""The search's side of a child process: requests with time and memory limits, and an end in all cases."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import msgspec

from alula.errors import DiskFullError, EngineError
from alula.hardware import free_bytes, is_full, writing
from alula.tuning.messages import (
    BuildRequest,
    DiskFull,
    ExportRequest,
    PredictRequest,
    Problem,
    Reply,
    Request,
)

__all__ = ["Child", "ChildError", "end_group"]

WORKER = (sys.executable, "-m", "alula.tuning.worker")
POLL_S = 0.1
WATCHING_SHARE = (
    0.02  # of the time, for reading how much memory a child takes: it is taken from what is timed
)
KILL_WAIT_S = 10.0

Answer = TypeVar("Answer", bound=Reply)


class ChildError(EngineError):
    """A child process gave no answer: it crashed, hung, used too much memory, or reported a problem.

    Args:
        message: one readable line.
        died: whether the process ended by itself or by somebody else's signal, so that a second try
            may go better.
        timed_out: whether it was stopped because its time was over.
    """

    def __init__(self, message: str, *, died: bool = False, timed_out: bool = False) -> None:
        super().__init__(message)
        self.died = died
        self.timed_out = timed_out


class Child:
    """One worker process. Not thread-safe. Use it in a `with` block: leaving it ends the process.

    Args:
        folder: where its requests (`NAME.jsonl`, `NAME-2.jsonl` of the next of that name) and what its
            libraries print (`NAME.log`) are kept.
        name: what it is for.
        threads: thread budget, given to the runtimes that read it from the environment.
        memory_limit_bytes: resident memory of the process and its children, above which it is killed.
        bound: whether it may run on as many CPUs as it has threads only; ignored where the system cannot do
            that (macOS). What converts and quantizes knows no other bound; what is timed is left to the
            system's scheduler, as it will be later.
        command: what is started; it answers requests as `alula.tuning.worker` does.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        threads: int,
        memory_limit_bytes: int,
        bound: bool = False,
        command: Sequence[str] = WORKER,
    ) -> None:
        with writing("the log of a child process", folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._requests = _new_file(folder, name)
            self._log = (folder / f"{name}.log").open("ab")
        self._folder = folder
        self._memory_limit_bytes = memory_limit_bytes
        self._decoder = msgspec.json.Decoder(Reply)
        self._encoder = msgspec.json.Encoder()
        self._buffer = b""
        self._closed = False
        self._command = tuple(command)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env=_environment(os.environ, threads),
        )
        if bound and sys.platform == "linux":
            self._bind(threads)

    def _bind(self, cpus: int) -> None:
        # Threads are bound as the one that starts them, and so far there is one.
        with contextlib.suppress(ProcessLookupError):
            allowed = sorted(os.sched_getaffinity(self.pid))
            os.sched_setaffinity(self.pid, allowed[:cpus])

    @property
    def pid(self) -> int:
        """The process id, which is its process group's too."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """Memory of the process and of what it started; 0 where the system does not tell."""
        return _resident_bytes(self.pid)

    def begin(self, name: str) -> None:
        """Keep the requests from now on in a file of another name, so that it repeats nothing else."""
        with writing("a request to a child process", self._folder):
            requests = _new_file(self._folder, name)
        self._requests.close()
        self._requests = requests

    @property
    def request_file(self) -> Path:
        """Where its requests are kept."""
        return Path(self._requests.name)

    @property
    def reproduce(self) -> str:
        """The command that repeats everything that this child was asked, since it last began anew."""
        program, *rest = self._command
        return f"{shlex.join([Path(program).name, *rest])} < {self.request_file}"

    def ask(self, request: Request, expected: type[Answer], *, timeout_s: float) -> Answer:
        """Return the child's answer.

        Raises:
            ChildError: it crashed, timed out, used too much memory, or reported a problem.
            DiskFullError: it met a full disk, or whatever it says, the disk is full.
        """
        if self._requests.closed:
            raise ChildError("The process has ended.")
        try:
            return self._asked(request, expected, timeout_s=timeout_s)
        except ChildError as error:
            # Native code that cannot write crashes, or gives any reason it likes.
            what, path = _written(request, self._folder)
            for place in (path, Path(tempfile.gettempdir())):
                if is_full(place):
                    raise DiskFullError(what, place, free_bytes=free_bytes(place)) from error
            raise

    def _asked(self, request: Request, expected: type[Answer], *, timeout_s: float) -> Answer:
        line = self._encoder.encode(request) + b"\n"
        with writing("a request to a child process", self.request_file):
            self._requests.write(line)
            self._requests.flush()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error
        reply = self._decoder.decode(self._read_line(timeout_s))
        if isinstance(reply, DiskFull):
            what, _ = _written(request, self._folder)
            raise DiskFullError(what, reply.path, free_bytes=reply.free_bytes)
        if isinstance(reply, Problem):
            raise ChildError(reply.error)
        if not isinstance(reply, expected):
            raise ChildError(f"The child process answered {reply}; expected {expected.__name__}.")
        return reply

    def _read_line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        next_look_s = 0.0
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if selector.select(POLL_S):
                    data = os.read(descriptor, 1 << 16)
                    if not data:
                        raise self._death()
                    self._buffer += data
                    continue
                if not self.alive and not selector.select(0):
                    # What it has started may live on and hold the pipe open, so that it never ends.
                    raise self._death()
                if (started_s := time.monotonic()) >= next_look_s:
                    self._check_memory()
                    looking_s = time.monotonic() - started_s
                    next_look_s = started_s + looking_s / WATCHING_SHARE
                if time.monotonic() > deadline:
                    self.close()
                    raise ChildError(f"Stopped: no answer within {timeout_s:.0f} s.", timed_out=True)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _check_memory(self) -> None:
        used = _resident_bytes(self.pid)
        if used > self._memory_limit_bytes:
            self.close()
            raise ChildError(
                f"Stopped: it used {used / 2**30:.1f} GiB of memory; allowed were "
                f"{self._memory_limit_bytes / 2**30:.1f} GiB."
            )

    def _death(self) -> ChildError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_WAIT_S)
        code = self._process.poll()
        self.close()
        if code is not None and code < 0:
            how = f"by signal {signal.Signals(-code).name}"
            hint = " (often the system's way to free memory)" if -code == signal.SIGKILL else ""
            return ChildError(f"The process was ended {how}{hint}.", died=True)
        last = _last_line(Path(self._log.name))
        return ChildError(f"The process ended with exit code {code}{last}.", died=True)

    def close(self) -> None:
        """End the process and all that it started. Calling it twice is allowed."""
        if self._closed:  # its number may be another's by now
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        # Where the disk is full, closing fails for what could not be written before; that was said already.
        with contextlib.suppress(OSError):
            self._requests.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def end_group() -> None:
    """End this process with all that it started, as one that was made the leader of a group for that."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _new_file(folder: Path, name: str) -> BinaryIO:
    """Return `NAME.jsonl`, opened for writing, or the first of `NAME-2.jsonl` and so on that is not there."""
    number, path = 1, folder / f"{name}.jsonl"
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.jsonl"
    return path.open("xb")


def _written(request: Request, folder: Path) -> tuple[str, Path]:
    """Return what a request writes, with its article, and where; `folder` if it writes nothing but logs."""
    match request:
        case ExportRequest():
            return f"the export to {request.target}", Path(request.folder)
        case BuildRequest():
            return f"the artifact of {request.recipe}", Path(request.artifact)
        case PredictRequest():
            return "the outputs on the validation samples", Path(request.outputs[0]).parent
        case _:
            return "what a child process writes", folder


def _environment(base: Mapping[str, str], threads: int) -> dict[str, str]:
    return {
        **base,
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # ONNX Runtime writes into the user's home folder, and may report, what it is used for.
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _resident_bytes(leader: int) -> int:
    """Return the resident memory of all processes of a process group; 0 where /proc is absent."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").glob("[0-9]*"):
        # A process may end between the listing and the reading.
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader:
                total += int(fields[21]) * page
    return total


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1].strip()[:200]}" if lines else ""
