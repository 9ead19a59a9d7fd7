"""Runs that are killed and continued: the same bytes, and nothing done twice."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_wav

from alula.core import Blend, Mean, Rank, Smoothing, TopScaling
from alula.errors import DiskFullError, JobError, UsageError
from alula.pipeline import (
    ErrorReport,
    FileTask,
    JobKey,
    Journal,
    Progress,
    Selection,
    Shard,
    atomic,
    file_key,
    journal,
    journal_folder,
)
from alula.postprocess import PostProcessing
from alula.workflows import Bundle, load, make_ensemble, predict, prediction

KILLS = 30
FILES, BROKEN = 14, 2


@pytest.fixture
def recordings(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Recordings of up to 9 windows in two folders, in an order that is not that of their lengths."""
    folder = tmp_path / "recordings"
    (folder / "night").mkdir(parents=True)
    lengths_s = rng.permutation([0.3, 1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.2, 5.0, 6.0, 7.5, 9.0])
    for number, seconds in enumerate(lengths_s):
        where = folder / "night" if number % 3 == 0 else folder
        write_wav(where / f"{number:02}.wav", rng.uniform(-0.9, 0.9, round(8000 * seconds)))
    (folder / "05b.wav").write_bytes(b"RIFF")
    (folder / "night" / "99.wav").write_bytes(b"")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Killed:
    """Copies a folder as kills at chosen moments would leave it: before, in and after every write.

    What a process has written is in the folder, whole or in part, and what it holds in its memory is not: a
    copy of the folder is all that is left of a process that is killed.
    """

    def __init__(self, folder: Path, copies: Path, chosen: set[int]) -> None:
        self._folder = folder
        self._copies = copies
        self._chosen = chosen
        self._random = random.Random(1)
        self.moments = 0
        self.finished = 0
        self.left: list[tuple[Path, int]] = []

    def moment(self, write_half: Callable[[], object] = lambda: None) -> None:
        if self.moments in self._chosen:
            write_half()
            copy = self._copies / str(self.moments)
            shutil.copytree(self._folder, copy)
            self.left.append((copy, self.finished))
        self.moments += 1

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        real = journal._write

        def write(handle: int, data: bytes, at: int) -> None:
            cut = self._random.randrange(len(data) + 1)
            self.moment(lambda: real(handle, memoryview(data)[:cut], at))
            real(handle, data, at)
            self.moment()

        patch.setattr(journal, "_write", write)
        for owner, name in (
            (atomic.AtomicFile, "write"),
            (atomic.AtomicFile, "commit"),
            (atomic.AtomicFolder, "commit"),
            (ErrorReport, "add"),
            (ErrorReport, "close"),
        ):
            self._surround(patch, owner, name)
        for name in ("keep", "keep_failure"):
            self._count(patch, name)

    def _surround(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any) -> None:
            self.moment()
            real(*args)
            self.moment()

        patch.setattr(owner, name, call)

    def _count(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Journal, name)

        def call(*args: Any, **options: Any) -> None:
            real(*args, **options)
            self.finished += 1

        patch.setattr(Journal, name, call)


@pytest.mark.parametrize(
    ("name", "format_", "kills"),
    [
        ("scores.csv", None, KILLS),
        ("scores.parquet", None, 8),
        ("submission.csv", "birdclef", 8),
        ("parts", "parquet-parts", 8),
        ("tables", "raven", 8),
        ("all.txt", "raven", 8),
    ],
)
def test_a_kill_at_any_moment_changes_no_byte(
    audio_bundle: Bundle,
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    format_: str | None,
    kills: int,
) -> None:
    out = tmp_path / "out"

    def run() -> prediction.PredictionReport:
        return predict(audio_bundle, [recordings], output=out / name, format=format_)

    with monkeypatch.context() as patch:
        counted = Killed(out, tmp_path / "none", set())
        counted.watch(patch)
        report = run()
    expected = content(out)
    assert "errors.csv" in expected
    assert not journal_folder(out / name).exists()
    assert (report.files, report.failed, report.resumed) == (FILES, BROKEN, 0)
    assert counted.finished == FILES
    shutil.rmtree(out)
    out.mkdir()
    chosen = set(random.Random(name).sample(range(counted.moments), min(kills, counted.moments)))
    with monkeypatch.context() as patch:
        killed = Killed(out, tmp_path / "copies", chosen)
        killed.watch(patch)
        run()
    assert content(out) == expected
    assert len(killed.left) == len(chosen)
    resumed = []
    for copy, finished in killed.left:
        shutil.rmtree(out)
        copy.rename(out)
        report = run()
        assert content(out) == expected
        # What had been put into the journal is there, and is not computed again.
        assert report.resumed >= finished
        assert report.job.tasks_done + report.job.tasks_failed == FILES - report.resumed
        assert (report.files, report.failed) == (FILES, BROKEN)
        resumed.append(report.resumed)
    assert max(resumed) > FILES // 2
    assert len(set(resumed)) > 1


@pytest.mark.parametrize("blend", [Mean(weights=(2, 1)), Rank()])
def test_a_kill_changes_no_byte_of_an_ensemble(
    audio_bundle: Bundle,
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blend: Blend,
) -> None:
    post = PostProcessing(step=(Smoothing(kernel=(0.2, 0.6, 0.2)), TopScaling(k=2)))
    make_ensemble([audio_bundle.path] * 2, tmp_path / "e.alula", blend=blend, post=post)
    out = tmp_path / "out"
    with load(tmp_path / "e.alula", threads=2) as ensemble:
        predict(ensemble, [recordings], output=out / "s.csv")
        expected = content(out)
        for left in (1, 5, 11):
            shutil.rmtree(out)
            with monkeypatch.context() as patch:
                interrupt_after(left, patch)
                with pytest.raises(KeyboardInterrupt):
                    predict(ensemble, [recordings], output=out / "s.csv")
            assert not (out / "s.csv").exists()
            # A killed run leaves its columns behind.
            (out / "s.csv.job" / ".columns.0123456789ab.tmp").write_bytes(b"x")
            report = predict(ensemble, [recordings], output=out / "s.csv")
            assert report.resumed >= left
            assert content(out) == expected
    make_ensemble([audio_bundle.path] * 2, tmp_path / "e.alula", blend=blend, replace=True)
    with monkeypatch.context() as patch, load(tmp_path / "e.alula", threads=2) as other:
        interrupted(audio_bundle, recordings, out / "t.csv", 1)
        with pytest.raises(UsageError, match="with other content"):
            predict(other, [recordings], output=out / "t.csv")


def test_map_of_an_ensemble_goes_on_from_its_journal(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path
) -> None:
    make_ensemble([audio_bundle.path] * 2, tmp_path / "e.alula", post=PostProcessing(step=(TopScaling(k=1),)))
    files = sorted(recordings.rglob("*.wav"))
    with load(tmp_path / "e.alula", threads=2) as ensemble:
        plain = list(ensemble.map(files))
        next(iter(ensemble.map(files[:3], journal=tmp_path / "kept")))
        kept = list(ensemble.map(files, journal=tmp_path / "kept"))
    for one, other in zip(plain, kept, strict=True):
        assert (one.path, str(one.error)) == (other.path, str(other.error))
        if one.scores is not None and other.scores is not None:
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
            np.testing.assert_array_equal(one.start_s, other.start_s)


def interrupt_after(count: int, patch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Let a run end when it has put so many results into its journal."""
    real = Journal.keep
    left = itertools.count(count - 1, -1)

    def keep(self: Journal, key: Any, **options: Any) -> None:
        real(self, key, **options)
        if next(left) == 0:
            raise KeyboardInterrupt if error is None else error

    patch.setattr(Journal, "keep", keep)


def interrupted(bundle: Bundle, recordings: Path, output: Path, count: int = 5) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(bundle, [recordings], output=output)
    assert not output.exists()


def test_a_file_that_was_changed_is_done_again(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    output = tmp_path / "out" / "scores.csv"
    interrupted(audio_bundle, recordings, output)
    wavs = sorted(recordings.rglob("*.wav"))
    with Journal(journal_folder(output), prediction.job_key(audio_bundle)) as kept:
        known = [path for path in wavs if kept.find(file_key(path)) is not None]
    assert len(known) >= 5
    write_wav(next(path for path in known if path.stat().st_size > 100), rng.uniform(-0.9, 0.9, 4000))
    report = predict(audio_bundle, [recordings], output=output)
    assert report.resumed == len(known) - 1
    fresh = tmp_path / "fresh" / "scores.csv"
    predict(audio_bundle, [recordings], output=fresh)
    assert output.read_bytes() == fresh.read_bytes()


def test_files_may_come_and_go(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "scores.csv"
    interrupted(audio_bundle, recordings, output)
    shutil.copy(recordings / "01.wav", recordings / "00 new.wav")
    (recordings / "02.wav").unlink()
    predict(audio_bundle, [recordings], output=output)
    fresh = tmp_path / "fresh" / "scores.csv"
    predict(audio_bundle, [recordings], output=fresh)
    assert output.read_bytes() == fresh.read_bytes()


def test_another_format_is_the_same_run(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "scores.csv"
    interrupted(audio_bundle, recordings, output)
    report = predict(
        audio_bundle,
        [recordings],
        output=output,
        format="birdnet",
        selection=Selection(threshold=0.0, top_k=1),
    )
    assert report.resumed >= 5
    windows = sum(1 for line in output.read_text().splitlines()) - 1
    predict(audio_bundle, [recordings], output=tmp_path / "all.csv")
    assert windows == len((tmp_path / "all.csv").read_text().splitlines()) - 1


def test_fresh_starts_over(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "scores.csv"
    interrupted(audio_bundle, recordings, output)
    report = predict(audio_bundle, [recordings], output=output, fresh=True)
    assert (report.resumed, report.job.tasks_done) == (0, FILES - BROKEN)


def test_an_unfinished_run_of_another_bundle_is_refused(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "scores.csv"
    interrupted(audio_bundle, recordings, output)
    other = JobKey(bundle="frogs.alula", checksum="other", recipe="fake/fp32")
    monkeypatch.setattr(prediction, "job_key", lambda bundle: other)
    with pytest.raises(UsageError, match=r"scores\.csv: an unfinished run is there, .* --fresh"):
        predict(audio_bundle, [recordings], output=output)
    assert journal_folder(output).is_dir()


@pytest.mark.parametrize("output", ["all.txt", "tables"])
def test_no_recording_is_opened_when_a_table_before_a_deadline_is_written(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    predict(audio_bundle, [recordings], output=tmp_path / "plain" / output, format="raven")

    def hangs(path: str) -> float | None:
        raise AssertionError(f"{path} is on a disk that may hang")

    monkeypatch.setattr(prediction, "duration_s", hangs)
    predict(audio_bundle, [recordings], output=tmp_path / "timed" / output, format="raven", deadline_s=600.0)
    assert content(tmp_path / "timed") == content(tmp_path / "plain")


def test_two_runs_on_one_output_are_refused(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "scores.csv"
    refused: list[str] = []

    def meanwhile(_: object) -> None:
        if not refused:
            with pytest.raises(JobError, match=f"another run is writing it .process {os.getpid()}") as caught:
                predict(audio_bundle, [recordings], output=output)
            refused.append(str(caught.value))

    predict(audio_bundle, [recordings], output=output, progress=meanwhile)
    assert len(refused) == 1
    assert sorted(content(output.parent)) == ["errors.csv", "scores.csv"]


@pytest.mark.parametrize("where", ["journal", "table"])
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path, where: str
) -> None:
    output = tmp_path / "out" / "scores.csv"
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.MonkeyPatch.context() as patch:
        if where == "journal":
            real, calls = journal._write, itertools.count()

            def write(handle: int, data: bytes, at: int) -> None:
                if next(calls) > 12:
                    raise full
                real(handle, data, at)

            patch.setattr(journal, "_write", write)
        else:

            def commit(file: atomic.AtomicFile) -> None:
                file.discard()
                with atomic.writing(file.path):
                    raise full

            patch.setattr(atomic.AtomicFile, "commit", commit)
        with pytest.raises(DiskFullError, match="run the same command again; it goes on where") as caught:
            predict(audio_bundle, [recordings], output=output)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    report = predict(audio_bundle, [recordings], output=output)
    assert report.resumed >= (3 if where == "journal" else FILES)
    assert sorted(content(output.parent)) == ["errors.csv", "scores.csv"]


def test_an_error_keeps_what_is_finished(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "scores.csv"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(6, patch, error=JobError("It broke."))
        with pytest.raises(JobError, match=r"It broke\."):
            predict(audio_bundle, [recordings], output=output)
    assert predict(audio_bundle, [recordings], output=output).resumed >= 6


def test_scores_do_not_depend_on_what_else_is_computed(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path
) -> None:
    predict(audio_bundle, [recordings], output=tmp_path / "all" / "scores.csv")
    lines = (tmp_path / "all" / "scores.csv").read_text().splitlines()
    path = recordings / "04.wav"
    predict(audio_bundle, [path], output=tmp_path / "one" / "scores.csv")
    alone = (tmp_path / "one" / "scores.csv").read_text().splitlines()
    assert alone == [lines[0], *(line for line in lines if line.startswith(f"{path},"))]


@pytest.mark.parametrize("count", [1, 2, 3, 14])
def test_shards_one_after_the_other_are_the_whole(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path, count: int
) -> None:
    out = tmp_path / "out"
    predict(audio_bundle, [recordings], output=out / "all.csv")
    lines: list[bytes] = []
    errors: list[bytes] = []
    for index in range(1, count + 1):
        part = out / f"part-{index}.csv"
        report = predict(audio_bundle, [recordings], output=part, shard=Shard(index, count))
        lines += part.read_bytes().splitlines(keepends=True)[1 if lines else 0 :]
        if report.errors is not None:
            assert Path(report.errors).name == f"errors-{index}-of-{count}.csv"
            errors += Path(report.errors).read_bytes().splitlines(keepends=True)[1 if errors else 0 :]
    assert b"".join(lines) == (out / "all.csv").read_bytes()
    assert b"".join(errors) == (out / "errors.csv").read_bytes()


def test_shards_are_balanced_by_length(audio_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, seconds in enumerate((6, 1, 1, 1, 1, 1)):
        write_wav(folder / f"{number}.wav", np.zeros(8000 * seconds))
    counts = [
        predict(audio_bundle, [folder], output=tmp_path / "s.csv", shard=Shard(k, 2)).files for k in (1, 2)
    ]
    assert counts == [1, 5]
    with pytest.raises(UsageError, match="Use at most 6"):
        predict(audio_bundle, [folder], output=tmp_path / "s.csv", shard=Shard(1, 7))


def taken(found: Iterator[Any], count: int | None = None) -> list[Any]:
    return list(itertools.islice(found, count))


def test_map_goes_on_from_its_journal(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    files = sorted(recordings.rglob("*.wav"), reverse=True)
    kept = tmp_path / "kept"
    expected = taken(audio_bundle.map(files, journal=tmp_path / "other"))
    assert [found.path for found in expected] == files
    started = audio_bundle.map(files, journal=kept)
    assert [found.path for found in taken(started, 4)] == files[:4]
    started.close()  # type: ignore[attr-defined]
    calls: list[FileTask] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("keep", "keep_failure"):
            real = getattr(Journal, name)

            def call(*args: Any, real: Any = real, **options: Any) -> None:
                calls.append(args[1])
                real(*args, **options)

            patch.setattr(Journal, name, call)
        found = taken(audio_bundle.map(files, journal=kept))
        assert 0 < len(calls) <= len(files) - 4
        again = taken(audio_bundle.map(files, journal=kept))
        assert len(calls) <= len(files) - 4
    for one, other, last in zip(expected, found, again, strict=True):
        assert one.path == other.path == last.path
        assert (one.error is None) == (other.error is None) == (last.error is None)
        assert str(one.error) == str(other.error) == str(last.error)
        for name in ("start_s", "end_s", "scores"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            np.testing.assert_array_equal(getattr(one, name), getattr(last, name))
    assert kept.is_dir()
    with pytest.raises(UsageError, match="holds"):
        next(audio_bundle.map(files, journal=recordings))


def test_tables_of_detections(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    selection = Selection(threshold=0.0)
    counts = {}
    for format_, name in (
        ("raven", "all.txt"),
        ("raven", "tables"),
        ("audacity", "labels"),
        ("kaleidoscope", "k.csv"),
        ("birdnet", "b.csv"),
    ):
        output = tmp_path / "out" / format_ / name
        predict(audio_bundle, [recordings], output=output, format=format_, selection=selection)
        files = list(output.rglob("*.txt")) if output.is_dir() else [output]
        counts[f"{format_} {name}"] = sum(
            len(path.read_text().splitlines()) - (format_ != "audacity") for path in files
        )
        if output.is_dir():
            assert {path.relative_to(output).parent.as_posix() for path in files} == {".", "night"}
    assert len(set(counts.values())) == 1, counts
    last = (tmp_path / "out" / "raven" / "all.txt").read_text().splitlines()[-1].split("\t")
    # Times run on over the true lengths of all recordings, which end before their last windows do.
    assert float(last[2]) == pytest.approx(0.3 + 1 + 1 + 1.5 + 2 + 2.5 + 3 + 4.2 + 5 + 6 + 7.5 + 9)
    assert last[10:12] == ["0.0", "4000.0"]


def test_the_sample_of_a_competition(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample_submission.csv"
    predict(audio_bundle, [recordings], output=tmp_path / "plain.csv", format="birdclef")
    ids = [line.split(",")[0] for line in (tmp_path / "plain.csv").read_text().splitlines()[1:]]
    sample.write_text("row_id,whistle,chirp\n" + "".join(f"{row_id},0,0\n" for row_id in [*ids, "99_1"]))
    report = predict(
        audio_bundle, [recordings], output=tmp_path / "submission.csv", format="birdclef", sample=sample
    )
    header, *lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert header == "row_id,whistle,chirp"
    assert [line.split(",")[0] for line in lines] == [*ids, "99_1"]
    assert lines[-1] == "99_1,0.5,0.5"
    assert len(report.notes) == 1


def test_shards_of_a_submission_have_each_row_once(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path
) -> None:
    sample = tmp_path / "sample_submission.csv"
    predict(audio_bundle, [recordings], output=tmp_path / "plain.csv", format="birdclef")
    ids = [line.split(",")[0] for line in (tmp_path / "plain.csv").read_text().splitlines()[1:]]
    # Of a recording that cannot be read, and of one that is missing.
    ids += ["99_1", "unheard_1"]
    sample.write_text("row_id,whistle,chirp\n" + "".join(f"{row_id},0,0\n" for row_id in ids))
    lines: dict[int, list[str]] = {}
    for count in (1, 3):
        lines[count] = []
        for index in range(1, count + 1):
            part = tmp_path / f"{index}.csv"
            predict(
                audio_bundle,
                [recordings],
                output=part,
                format="birdclef",
                sample=sample,
                shard=Shard(index, count),
            )
            lines[count] += part.read_text().splitlines()[1:]
    assert sorted(lines[3]) == sorted(lines[1])
    assert sorted(line.split(",")[0] for line in lines[3]) == sorted(ids)
    with pytest.raises(UsageError, match="Name a folder"):
        predict(audio_bundle, [recordings], output=tmp_path / "x.txt", format="raven", shard=Shard(1, 2))


def test_two_runs_in_one_folder_do_not_lose_a_table(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    others: list[prediction.PredictionReport] = []

    def meanwhile(progress: Progress) -> None:
        if progress.tasks_failed == BROKEN and not others:
            others.append(predict(audio_bundle, [recordings / "01.wav"], output=out / "b.csv"))

    report = predict(audio_bundle, [recordings], output=out / "a.csv", progress=meanwhile)
    assert (report.failed, len(others)) == (BROKEN, 1)
    assert sorted(content(out)) == ["a.csv", "b.csv", "errors.csv"]
    assert len((out / "errors.csv").read_text().splitlines()) == 1 + BROKEN


def test_a_table_of_somebody_else_in_the_place_of_the_error_report(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "errors.csv").write_text("buy,milk\n")
    with pytest.raises(UsageError, match="Move it"):
        predict(audio_bundle, [recordings / "01.wav"], output=tmp_path / "s.csv")
    assert (tmp_path / "errors.csv").read_text() == "buy,milk\n"
