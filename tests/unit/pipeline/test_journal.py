"""What a journal knows after a kill at any byte, and who may write it."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from alula.errors import AlulaError, DataError, DiskFullError, EngineUnavailableError, JobError, UsageError
from alula.pipeline import FileKey, JobKey, Journal, file_key, journal, journal_folder

KEY = JobKey(bundle="birds.alula", checksum="c0ffee", recipe="fake/fp32")


@dataclass(frozen=True)
class Result:
    """What a test puts into a journal."""

    key: FileKey
    start_s: np.ndarray | None
    end_s: np.ndarray | None
    scores: np.ndarray


def result(number: int, *, rows: int = 3, timed: bool = True, dtype: str = "f4") -> Result:
    start_s = np.arange(rows) * 2.5 if timed else None
    scores = np.random.default_rng(number).integers(0, 99, (rows, 4)).astype(dtype)
    key = FileKey(b"/in/%d.wav" % number, 100 + number, 10**18 + number)
    return Result(key, start_s, None if start_s is None else start_s + 5, scores)


def keep(kept: Journal, one: Result) -> None:
    kept.keep(one.key, start_s=one.start_s, end_s=one.end_s, scores=one.scores)


def holds(kept: Journal, one: Result) -> bool:
    """Return whether the result is there; what is there must be what was put in."""
    entry = kept.find(one.key)
    if entry is None:
        return False
    assert entry.reason is None
    blocks = list(kept.blocks(entry))
    scores = np.concatenate([block.scores for block in blocks])
    np.testing.assert_array_equal(scores, one.scores)
    assert scores.dtype == one.scores.dtype
    for name in ("start_s", "end_s"):
        expected = getattr(one, name)
        if expected is None:
            assert all(getattr(block, name) is None for block in blocks)
        else:
            np.testing.assert_array_equal(
                np.concatenate([getattr(block, name) for block in blocks]), expected
            )
    return True


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    results = [
        result(0),
        result(1, timed=False),
        result(2, dtype="f2"),
        result(3, rows=1, dtype="i8"),
        result(4, dtype="?"),
        Result(FileKey(b"/caf\xe9\n.npy", 1, 2), None, None, np.zeros((2, 3, 4), np.float32)),
    ]
    with Journal(tmp_path / "s.csv.job", KEY) as kept:
        for one in results:
            keep(kept, one)
            assert holds(kept, one)
    with Journal(tmp_path / "s.csv.job", KEY) as kept:
        assert len(kept) == len(results)
        assert all(holds(kept, one) for one in results)


def test_results_with_rungs_count_in_their_own_run_only(tmp_path: Path) -> None:
    whole, short, untimed = result(0), result(1), result(2, timed=False, dtype="f2")
    rungs = np.array([0, 3, 1], np.int16)
    with Journal(tmp_path / "j", KEY) as kept:
        keep(kept, whole)
        for one in (short, untimed):
            kept.keep(one.key, start_s=one.start_s, end_s=one.end_s, scores=one.scores, rungs=rungs)
            assert holds(kept, one)
            entry = kept.find(one.key)
            assert entry is not None and entry.graded
            np.testing.assert_array_equal(kept.rungs(entry), rungs)
    with Journal(tmp_path / "j", KEY) as again:
        assert (holds(again, whole), again.find(short.key), again.find(untimed.key)) == (True, None, None)
        keep(again, short)
    with Journal(tmp_path / "j", KEY) as third:
        entry = third.find(short.key)
        assert entry is not None and not entry.graded
        assert holds(third, short)


def test_a_long_file_is_read_back_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BLOCK_VALUES", 21)
    one = result(1, rows=33)
    with Journal(tmp_path / "j", KEY) as kept:
        keep(kept, one)
        assert holds(kept, one)
        entry = kept.find(one.key)
        assert entry is not None
        assert [len(block.scores) for block in kept.blocks(entry)] == [5] * 6 + [3]


RESULTS = [result(n, rows=1 + n, timed=bool(n % 2)) for n in range(5)]


@functools.cache
def written() -> tuple[bytes, list[int]]:
    """Return a journal of `RESULTS` as bytes, and how long it was after each of them, at first after none."""
    with tempfile.TemporaryDirectory() as name:
        results = Path(name) / "j" / "results"
        with Journal(results.parent, KEY) as kept:
            ends = [results.stat().st_size]
            for one in RESULTS:
                keep(kept, one)
                ends.append(results.stat().st_size)
        return results.read_bytes(), ends


def lay(folder: Path, data: bytes) -> None:
    folder.mkdir()
    (folder / "results").write_bytes(data)


@hypothesis_settings(deadline=None, max_examples=100)
@given(share=st.floats(0, 1), tail=st.binary(max_size=60) | st.integers(0, 60).map(bytes))
def test_a_cut_at_any_byte_loses_only_what_was_not_whole(share: float, tail: bytes) -> None:
    """A kill cuts the last record; a power failure may leave anything behind the cut."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "j"
        data, ends = written()
        left = data[: round(share * len(data))]
        # What begins like no journal at all is somebody else's file.
        left += tail if len(left) >= len(b"ALJR") else bytes(len(tail) if not left else 0)
        lay(folder, left)
        whole = sum(left[:end] == data[:end] for end in ends[1:])
        with Journal(folder, KEY) as kept:
            assert [holds(kept, one) for one in RESULTS] == [k < whole for k in range(len(RESULTS))]
            for one in RESULTS[whole:]:
                keep(kept, one)
        with Journal(folder, KEY) as kept:
            assert all(holds(kept, one) for one in RESULTS)
        assert (folder / "results").read_bytes() == data


@hypothesis_settings(deadline=None, max_examples=100)
@given(share=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_changed_byte_is_never_taken_for_a_result(share: float, change: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "j"
        data, ends = written()
        at = ends[0] + int(share * (len(data) - ends[0]))
        damaged = bytearray(data)
        damaged[at] ^= change
        lay(folder, damaged)
        whole = sum(end <= at for end in ends[1:])
        with Journal(folder, KEY) as kept:
            assert [holds(kept, one) for one in RESULTS] == [k < whole for k in range(len(RESULTS))]


@pytest.mark.parametrize("left", [0, 5, 19, 60])
def test_a_journal_killed_at_its_birth_begins_anew(tmp_path: Path, left: int) -> None:
    folder = tmp_path / "j"
    data, ends = written()
    assert left < ends[0]
    lay(folder, data[:left])
    with Journal(folder, KEY) as kept:
        assert len(kept) == 0
        keep(kept, RESULTS[0])
    with Journal(folder, KEY) as kept:
        assert holds(kept, RESULTS[0])


def test_a_file_that_was_changed_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"123")
    before = file_key(path)
    assert before.path == os.fsencode(path)
    assert file_key(str(path)) == before
    path.write_bytes(b"1234")
    os.utime(path, ns=(before.mtime_ns, before.mtime_ns))
    assert file_key(path) != before
    path.write_bytes(b"456")
    os.utime(path, ns=(before.mtime_ns, before.mtime_ns + 1))
    assert file_key(path) != before
    os.utime(path, ns=(before.mtime_ns, before.mtime_ns))
    assert file_key(path) == before
    assert file_key(tmp_path / "absent").size_bytes == -1


def test_a_relative_path_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").touch()
    monkeypatch.chdir(tmp_path)
    assert file_key("a.wav") == file_key(tmp_path / "a.wav")


def caused(error: AlulaError, cause: BaseException) -> AlulaError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "lasts", "reason"),
    [
        (DataError("a\udce9.wav", "is broken: a\udce9."), True, "is broken: a\udce9."),
        (DataError("other", "is broken."), True, "other: is broken."),
        (caused(DataError("a\udce9.wav", "went away."), OSError(errno.EIO, "x")), False, "went away."),
        (caused(DataError("a\udce9.wav", "is too large."), MemoryError()), False, "is too large."),
        (EngineUnavailableError("soundfile", install="pip install x"), False, "`soundfile` is not installed"),
    ],
    ids=["damage", "other path", "disk", "memory", "library"],
)
def test_a_failure_lasts_if_it_is_the_files_own(
    tmp_path: Path, error: AlulaError, lasts: bool, reason: str
) -> None:
    key = FileKey(b"/a\xe9.wav", 1, 2)
    with Journal(tmp_path / "j", KEY) as kept:
        keep(kept, RESULTS[0])
        kept.keep_failure(key, "a\udce9.wav", error)
        entry = kept.find(key)
        assert entry is not None
        assert entry.reason is not None
        assert entry.reason.startswith(reason)
    with Journal(tmp_path / "j", KEY) as kept:
        again = kept.find(key)
        assert (again is not None) == lasts
        assert again is None or again.reason == entry.reason


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (JobKey(bundle="frogs.alula", checksum="dead", recipe="fake/fp32"), "of the bundle birds.alula"),
        (JobKey(bundle="birds.alula", checksum="c0ffee", recipe="fake/int8"), "that ran fake/fp32"),
        (
            JobKey(bundle="b", checksum="c0ffee", recipe="fake/fp32", options={"overlap": "2"}),
            r"with overlap not given \(now 2\)",
        ),
    ],
)
def test_an_unfinished_run_of_something_else_is_not_lost_by_mistake(
    tmp_path: Path, other: JobKey, says: str
) -> None:
    folder = tmp_path / "s.csv.job"
    with Journal(folder, KEY) as kept:
        keep(kept, RESULTS[0])
    with pytest.raises(UsageError, match=says) as caught, Journal(folder, other):
        pass
    assert str(tmp_path / "s.csv") in str(caught.value)
    assert "--fresh" in str(caught.value)
    with Journal(folder, KEY) as kept:
        assert holds(kept, RESULTS[0])
    with Journal(folder, other, fresh=True) as kept:
        assert len(kept) == 0
        keep(kept, RESULTS[1])
    with Journal(folder, other) as kept:
        assert holds(kept, RESULTS[1])
        assert not holds(kept, RESULTS[0])


def test_the_name_of_a_bundle_does_not_count(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", KEY) as kept:
        keep(kept, RESULTS[0])
    with Journal(tmp_path / "j", JobKey(bundle="renamed", checksum="c0ffee", recipe="fake/fp32")) as kept:
        assert holds(kept, RESULTS[0])


def test_a_journal_of_another_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal, "SCHEMA_VERSION", 99)
        with Journal(tmp_path / "j", KEY) as kept:
            keep(kept, RESULTS[0])
    with pytest.raises(UsageError, match="another release of Alula"), Journal(tmp_path / "j", KEY):
        pass


def test_two_runs_on_one_output_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s.csv.job"
    with Journal(folder, KEY) as kept:
        with pytest.raises(JobError, match=rf"s\.csv: another run .*process {os.getpid()} on"):
            Journal(folder, KEY, fresh=True).__enter__()
        keep(kept, RESULTS[0])
    with Journal(folder, KEY) as kept:
        assert holds(kept, RESULTS[0])


_HOLD = """
import sys, time
from pathlib import Path
from alula.pipeline import JobKey, Journal
with Journal(Path(sys.argv[1]), JobKey(bundle="birds.alula", checksum="c0ffee", recipe="fake/fp32")):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "s.csv.job"
    with Journal(folder, KEY) as kept:
        keep(kept, RESULTS[0])
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"locked\n"
        with pytest.raises(JobError, match=f"process {run.pid} on"), Journal(folder, KEY):
            pass
        run.send_signal(signal.SIGKILL)
        run.wait()
    with Journal(folder, KEY) as kept:
        assert holds(kept, RESULTS[0])


def test_a_lock_on_a_file_that_was_removed_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends removes the lock just before another one, which had opened it, gets it."""
    folder = tmp_path / "j"
    real = journal._take_lock
    calls: list[int] = []

    def take(handle: int, where: Path) -> None:
        real(handle, where)
        calls.append(handle)
        if len(calls) == 1:
            (folder / "lock").unlink()

    monkeypatch.setattr(journal, "_take_lock", take)
    with Journal(folder, KEY):
        assert len(calls) == 2
        monkeypatch.setattr(journal, "_take_lock", real)
        with pytest.raises(JobError, match="another run"), Journal(folder, KEY):
            pass


def test_a_journal_without_results_or_of_a_finished_run_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "j", KEY):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with Journal(tmp_path / "j", KEY) as kept:
        keep(kept, RESULTS[0])
        kept.finish()
        assert (tmp_path / "j" / "results").exists()
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_a_killed_run_go_and_nothing_else_does(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    with Journal(folder, KEY) as kept:
        keep(kept, RESULTS[0])
    (folder / ".s.csv.0123456789ab.tmp").write_bytes(b"half")
    (folder / ".tables.0123456789ab.tmp.old" / "sub").mkdir(parents=True)
    with Journal(folder, KEY):
        assert sorted(path.name for path in folder.iterdir()) == ["lock", "results"]
    (folder / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"holds `thesis.tex`"), Journal(folder, KEY):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"), Journal(tmp_path / "file", KEY):
        pass


@pytest.mark.parametrize("name", ["results", "lock"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_of_somebody_else_is_not_taken_for_ours(tmp_path: Path, name: str, fresh: bool) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / name).write_text("label,score\n")
    with pytest.raises(UsageError, match=f"holds `{name}`"), Journal(folder, KEY, fresh=fresh):
        pass
    assert (folder / name).read_text() == "label,score\n"
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(UsageError, match=f"holds `{name}`"), Journal(folder, KEY, fresh=fresh):
        pass


def test_a_journal_says_whether_a_run_before_had_not_finished(tmp_path: Path) -> None:
    for fresh in (False, True):
        with Journal(tmp_path / "j", KEY) as kept:
            assert not kept.continues
            kept.finish(whole=False)
        with Journal(tmp_path / "j", KEY, fresh=fresh) as kept:
            assert kept.continues
            kept.finish()
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="could not be written"), Journal(tmp_path / "file" / "j", KEY):
        pass


def failing_after(count: int, code: int) -> Callable[[int, bytes, int], None]:
    """Return a `_write` that writes `count` bytes of the next data, then fails."""

    def write(handle: int, data: bytes, at: int) -> None:
        os.pwrite(handle, bytes(data)[:count], at)
        raise OSError(code, os.strerror(code))

    return write


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "j"
    with Journal(folder, KEY) as kept:
        keep(kept, RESULTS[0])
        size = (folder / "results").stat().st_size
        for count in (0, 10, 30):
            with monkeypatch.context() as patch:
                patch.setattr(journal, "_write", failing_after(count, errno.ENOSPC))
                with pytest.raises(DiskFullError, match="it goes on where it stopped") as caught:
                    keep(kept, RESULTS[1])
            assert "\n" not in str(caught.value)
            assert (folder / "results").stat().st_size == size
            assert not holds(kept, RESULTS[1])
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_write", failing_after(10, errno.EIO))
            with pytest.raises(JobError, match="could not be written: Input/output error"):
                keep(kept, RESULTS[1])
        keep(kept, RESULTS[2])
    with Journal(folder, KEY) as kept:
        assert [holds(kept, one) for one in RESULTS] == [True, False, True, False, False]


def test_what_is_written_reaches_the_disk_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    now_s = 0.0
    with Journal(tmp_path / "j", KEY, clock=lambda: now_s) as kept:
        for number in range(20):
            keep(kept, result(number))
            now_s += 1.0
    assert len(synced) == 3


def test_the_folder_of_a_link_is_beside_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "s.csv").symlink_to(tmp_path / "disk" / "table.csv")
    assert journal_folder(tmp_path / "s.csv") == tmp_path / "disk" / "table.csv.job"
