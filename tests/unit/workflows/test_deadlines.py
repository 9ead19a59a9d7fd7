"""Folder runs against a deadline, on a clock that moves by what the scripted members and decoders take."""

from __future__ import annotations

import csv
import errno
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundles import write_images, write_scripted_bundle, write_wav

from alula.bundle import DeclaredCascade, DeclaredRung
from alula.core import (
    AudioInput,
    Blend,
    CutOff,
    ImageInput,
    Mean,
    OverlapMean,
    Rank,
    Settings,
    Smoothing,
    Step,
    TensorSpec,
    TopScaling,
    View,
)
from alula.data import open_audio
from alula.data.audio import AudioBlocks
from alula.engines.base import Arrays
from alula.engines.fake import FakeSession
from alula.errors import JobError, UsageError
from alula.measure.fake import ScriptedClock
from alula.pipeline import Journal, Progress, Shard, Stretch, journal_folder
from alula.postprocess import PostProcessing
from alula.workflows import (
    Bundle,
    Ensemble,
    PredictionReport,
    ensembling,
    lateness,
    load,
    make_ensemble,
    predict,
    prediction,
    samples,
)
from alula.workflows.deadlines import reserve_of
from alula.workflows.lateness import filled_rows

RATE_HZ = 1_000
WAVE = AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0)
SCALES = (1.0, 2.0, 4.0)
MEMBER_ROW_S = {1.0: 0.2, 2.0: 0.3, 4.0: 0.5}
DECODE_S = 0.05  # of a recording of up to 10 s


@dataclass
class Machine:
    """What work costs on the clock, and how much slower it has become.

    Attributes:
        slow: given the time, how many times more everything takes.
        dear: name of a recording that is decoded very slowly.
        stalls: name of a recording whose decoding never ends.
    """

    clock: ScriptedClock = field(default_factory=ScriptedClock)
    slow: Callable[[float], float] = lambda now_s: 1.0
    dear: str | None = None
    stalls: str | None = None
    stalls_until_s: float = 0.0
    others_done: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    calls: int = 0

    def spend(self, seconds: float) -> None:
        self.clock.advance(seconds * self.slow(self.clock.monotonic()))

    def stall(self) -> None:
        """Wait until the test ends; the time goes on when the others have done what they can."""
        self.clock.advance(30.0)
        assert self.others_done.wait(30)
        self.clock.advance(self.stalls_until_s - self.clock.monotonic())
        self.released.wait(30)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        run = FakeSession.run

        def timed_run(session: FakeSession, inputs: Arrays) -> Arrays:
            self.calls += 1
            self.spend(MEMBER_ROW_S[session._script.scale] * len(inputs[0]))
            return run(session, inputs)

        def timed_open(path: Path, **options: float) -> AudioBlocks:
            opened = open_audio(path, **options)
            blocks = opened.blocks

            def timed_blocks() -> Iterator[np.ndarray]:
                if path.name == self.stalls:
                    self.stall()
                for block in blocks():
                    self.spend(40.0 if path.name == self.dear else DECODE_S)
                    yield block

            opened.blocks = timed_blocks  # type: ignore[method-assign]
            return opened

        patch.setattr(FakeSession, "run", timed_run)
        patch.setattr(ensembling, "open_audio", timed_open)
        patch.setattr(samples, "open_audio", timed_open)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    made.install(monkeypatch)
    yield made
    made.released.set()


def write_member(folder: Path, scale: float, description: AudioInput | ImageInput = WAVE) -> Path:
    shape = (description.window_samples,) if isinstance(description, AudioInput) else (3, 8, 8)
    return write_scripted_bundle(
        folder / f"x{scale:g}.alula",
        scratch=folder / "scratch",
        description=description,
        outputs=(TensorSpec("scores", "float32", ("b", 2)),),
        shape=shape,
        labels=("a", "b"),
        scale=scale,
        settings=Settings(batch_size=4),
    )


@pytest.fixture
def ensemble(tmp_path: Path) -> Iterator[Ensemble]:
    yield from opened(tmp_path)


def opened(
    tmp_path: Path,
    *,
    blend: Blend | None = None,
    post: PostProcessing | None = None,
    description: AudioInput = WAVE,
    ladder: Sequence[DeclaredRung] = (),
    cascade: DeclaredCascade | None = None,
    prior: Sequence[float] | None = None,
) -> Iterator[Ensemble]:
    members = [write_member(tmp_path, scale, description) for scale in SCALES]
    make_ensemble(
        members, tmp_path / "e.alula", blend=blend, post=post, ladder=ladder, cascade=cascade, prior=prior
    )
    with load(tmp_path / "e.alula", threads=1) as loaded:
        assert isinstance(loaded, Ensemble)
        yield loaded


def record(folder: Path, seconds: Sequence[float], rng: np.random.Generator) -> Path:
    folder.mkdir()
    for number, length_s in enumerate(seconds):
        samples_ = rng.uniform(0.1, 0.9, round(RATE_HZ * length_s))
        write_wav(folder / f"{number:02}.wav", samples_, rate_hz=RATE_HZ)
    return folder


@pytest.fixture
def recordings(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Twelve recordings of 10 s: 120 rows, which take 120 s with all members."""
    return record(tmp_path / "in", [10.0] * 12, rng)


def lines_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def rows_of(path: Path) -> dict[tuple[str, float], np.ndarray]:
    """The scores of each row, by name of the file and start."""
    return {
        (Path(name).name, float(start_s)): np.array(scores, np.float64)
        for name, start_s, _, *scores in lines_of(path)
    }


def below(path: Path) -> dict[tuple[str, float], str]:
    """How each row was computed that is in the list of unfinished ones; rows are 1 s long."""
    if not path.exists():
        return {}
    found: dict[tuple[str, float], str] = {}
    for name, start_s, end_s, rows, rung in lines_of(path):
        starts = np.arange(float(start_s), float(end_s))
        assert len(starts) == int(rows)
        found |= {(Path(name).name, start): rung for start in starts}
    return found


Run = Callable[..., PredictionReport]


def run_before(machine: Machine, scorer: Bundle | Ensemble, inputs: Path, output: Path) -> Run:
    return functools.partial(predict, scorer, [inputs], output=output, clock=machine.clock.monotonic)


def check(report: PredictionReport, whole: Path, *, prior: Sequence[float] = (0.0, 0.0)) -> dict[str, int]:
    """Check an output against one without a deadline, row by row; return how many rows are on which rung."""
    assert report.deadline is not None
    assert report.deadline.left_s >= 0
    expected, got = rows_of(whole), rows_of(Path(report.output))
    listed = below(Path(report.output).with_name("unfinished.csv"))
    assert list(got) == list(expected)
    counts: dict[str, int] = {}
    for key, scores in got.items():
        rung = listed.get(key, "x1 + x2 + x4")
        counts[rung] = counts.get(rung, 0) + 1
        if rung == "prior":
            np.testing.assert_allclose(scores, prior)
        else:
            # Members give the same times their scale; the whole has the mean of all.
            some = [float(name[1:]) for name in rung.split(" + ")]
            np.testing.assert_allclose(scores, expected[key] * np.mean(some) / np.mean(SCALES), rtol=1e-4)
    assert counts == report.deadline.rows
    return counts


@pytest.fixture
def whole(machine: Machine, ensemble: Ensemble, recordings: Path, tmp_path: Path) -> Path:
    """The table without a deadline."""
    predict(ensemble, [recordings], output=tmp_path / "whole" / "s.csv")
    return tmp_path / "whole" / "s.csv"


def test_with_time_enough_no_byte_differs(
    machine: Machine, ensemble: Ensemble, recordings: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "s.csv"
    reports: list[Progress] = []
    report = run_before(machine, ensemble, recordings, output)(deadline_s=400.0, progress=reports.append)
    assert output.read_bytes() == whole.read_bytes()
    assert list(output.parent.iterdir()) == [output]
    assert check(report, whole) == {"x1 + x2 + x4": 120}
    assert report.deadline is not None and report.deadline.steps == ()
    assert {progress.rung for progress in reports} <= {None, "x1 + x2 + x4"}
    assert all(progress.eta_s is None or progress.eta_s < 400 for progress in reports)


def test_rows_with_fewer_members_are_listed_and_later_done_again(
    machine: Machine, ensemble: Ensemble, recordings: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "s.csv"
    run = run_before(machine, ensemble, recordings, output)
    counts = check(run(deadline_s=100.0), whole)
    assert counts["x1 + x2 + x4"] > 40
    assert "prior" not in counts
    assert set(counts) - {"x1 + x2 + x4"} <= {"x1 + x2", "x1"}
    # What is as without a deadline is kept; the same command with more time does the rest.
    assert journal_folder(output).exists()
    report = run(deadline_s=400.0)
    assert 0 < report.resumed < 12
    assert output.read_bytes() == whole.read_bytes()
    assert list(output.parent.iterdir()) == [output]


def test_rows_without_time_hold_the_prior(
    machine: Machine, ensemble: Ensemble, recordings: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "s.csv"
    run = run_before(machine, ensemble, recordings, output)
    report = run(deadline_s=22.0, prior={"b": 0.25})
    counts = check(report, whole, prior=(0.0, 0.25))
    assert 20 < counts["prior"] < 60
    # The cheapest member would need 24 s.
    assert counts["x1"] > 20
    assert report.job.stopped
    run(deadline_s=1000.0)
    assert output.read_bytes() == whole.read_bytes()


def test_a_deadline_that_is_over_gives_the_prior_alone(
    machine: Machine, ensemble: Ensemble, recordings: Path, whole: Path, tmp_path: Path
) -> None:
    calls = machine.calls
    report = run_before(machine, ensemble, recordings, tmp_path / "s.csv")(
        deadline_s=2.0, since_s=machine.clock.monotonic() - 10.0, prior=0.5
    )
    assert report.deadline is not None
    assert (report.deadline.rows, machine.calls) == ({"prior": 120}, calls)
    assert list(rows_of(tmp_path / "s.csv")) == list(rows_of(whole))
    assert {tuple(scores) for scores in rows_of(tmp_path / "s.csv").values()} == {(0.5, 0.5)}
    assert len(lines_of(tmp_path / "unfinished.csv")) == 12


def test_the_prior_that_an_ensemble_declares(machine: Machine, recordings: Path, tmp_path: Path) -> None:
    (scorer,) = opened(tmp_path, prior=(0.125, 0.25))
    run = run_before(machine, scorer, recordings, tmp_path / "s.csv")
    since_s = machine.clock.monotonic() - 10.0
    for given, expected in ((None, (0.125, 0.25)), (0.5, (0.5, 0.5)), ({"a": 0.75}, (0.75, 0.0))):
        run(deadline_s=2.0, since_s=since_s, prior=given)
        assert {tuple(scores) for scores in rows_of(tmp_path / "s.csv").values()} == {expected}


# The first member is sure below 0.4 and above 0.6 of the first class, and always of the second.
CASCADE = DeclaredCascade(member="x1", lower=(0.4, 1.0), upper=(0.6, 0.0), share=0.25)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0, 1, 1)])
@pytest.mark.parametrize("sure_first", [False, True])
def test_a_cascade_steps_down_to_its_first_member(
    machine: Machine,
    tmp_path: Path,
    rng: np.random.Generator,
    weights: tuple[float, ...],
    sure_first: bool,
) -> None:
    folder = record(tmp_path / "in", [10.0] * 12, rng)
    if sure_first:  # nothing tells at first what the others cost
        for path in sorted(folder.iterdir())[:4]:
            write_wav(path, np.full(10 * RATE_HZ, 0.9), rate_hz=RATE_HZ)
        for path in sorted(folder.iterdir())[4:]:
            write_wav(path, np.full(10 * RATE_HZ, 0.5), rate_hz=RATE_HZ)
    scorers = opened(tmp_path, blend=Mean(weights=weights), cascade=CASCADE)
    scorer = next(scorers)
    predict(scorer, [folder], output=tmp_path / "whole.csv")
    with load(tmp_path / "x1.alula", threads=1) as first:
        predict(first, [folder], output=tmp_path / "first.csv")
    whole, sure = rows_of(tmp_path / "whole.csv"), rows_of(tmp_path / "first.csv")
    asked = {key: bool(0.4 <= scores[0] <= 0.6) for key, scores in sure.items()}
    blended = np.average(SCALES, weights=weights)
    for key, scores in whole.items():
        np.testing.assert_allclose(scores, sure[key] * (blended if asked[key] else 1.0), rtol=1e-4)
    output = tmp_path / "out" / "s.csv"
    run = run_before(machine, scorer, folder, output)
    report = run(deadline_s=45.0)
    listed = below(output.with_name("unfinished.csv"))
    assert set(listed.values()) == {"x1"}
    got = rows_of(output)
    assert list(got) == list(whole)
    for key, scores in got.items():
        np.testing.assert_allclose(scores, (sure if key in listed else whole)[key], rtol=1e-4)
    assert report.deadline is not None and report.deadline.left_s >= 0
    run(deadline_s=1000.0)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    scorers.close()  # type: ignore[attr-defined]


def test_a_cpu_that_gets_slower_makes_it_step_down(
    machine: Machine, ensemble: Ensemble, recordings: Path, whole: Path, tmp_path: Path
) -> None:
    began_s = machine.clock.monotonic()
    machine.slow = lambda now_s: 3.0 if now_s - began_s > 60 else 1.0
    counts = check(run_before(machine, ensemble, recordings, tmp_path / "s.csv")(deadline_s=180.0), whole)
    assert counts["x1 + x2 + x4"] >= 48
    assert "prior" not in counts


def test_one_slow_file(
    machine: Machine, ensemble: Ensemble, recordings: Path, whole: Path, tmp_path: Path
) -> None:
    machine.dear = "05.wav"
    counts = check(run_before(machine, ensemble, recordings, tmp_path / "s.csv")(deadline_s=150.0), whole)
    assert counts["x1 + x2 + x4"] > 40
    assert "prior" not in counts


def test_a_recording_of_hours_among_short_ones(
    machine: Machine, ensemble: Ensemble, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = record(tmp_path / "in", [*[3.0] * 8, 90.0, 3.0], rng)
    predict(ensemble, [folder], output=tmp_path / "whole.csv")
    counts = check(
        run_before(machine, ensemble, folder, tmp_path / "s.csv")(deadline_s=80.0), tmp_path / "whole.csv"
    )
    # 117 rows in 80 s: some of them by all members, so it was not taken for nine short files and a last one.
    assert counts["x1 + x2 + x4"] > 20
    assert "prior" not in counts


def test_a_decoder_that_stalls_costs_its_own_rows(
    machine: Machine, ensemble: Ensemble, recordings: Path, whole: Path, tmp_path: Path
) -> None:
    machine.stalls, machine.stalls_until_s = "07.wav", machine.clock.monotonic() + 398.0

    def watch(progress: Progress) -> None:
        if progress.samples == 110:
            machine.others_done.set()

    run = run_before(machine, ensemble, recordings, tmp_path / "s.csv")
    counts = check(run(deadline_s=400.0, progress=watch), whole)
    assert counts == {"x1 + x2 + x4": 110, "prior": 10}
    listed = below(tmp_path / "unfinished.csv")
    assert {rung for key, rung in listed.items() if key[0] == "07.wav"} == {"prior"}


@pytest.mark.parametrize("said_s", [None, 2.0, 40.0])
def test_headers_that_lie_or_do_not_tell(
    machine: Machine,
    ensemble: Ensemble,
    recordings: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said_s: float | None,
) -> None:
    real = lateness.duration_s
    monkeypatch.setattr(lateness, "duration_s", lambda path: said_s if path.name > "03.wav" else real(path))
    run = run_before(machine, ensemble, recordings, tmp_path / "s.csv")
    # Enough time but for the longest guess, which is corrected by what files hold.
    assert check(run(deadline_s=300.0), whole)["x1 + x2 + x4"] > 60
    # Files that were computed with fewer members have the rows that they hold, whatever was said.
    assert len(check(run(deadline_s=90.0, fresh=True), whole)) > 1
    report = run(deadline_s=12.0, fresh=True)
    assert report.deadline is not None
    assert report.deadline.left_s >= 0
    got = rows_of(tmp_path / "s.csv")
    # What was opened has its rows; what was not has those that its header or its size tells.
    per_file = [len(list(group)) for _, group in itertools.groupby(got, key=lambda key: key[0])]
    assert per_file[:4] == [10] * 4
    assert per_file[-1] == (10 if said_s is None else said_s)
    assert (report.deadline.guessed_files > 0) == (said_s is None)


def test_a_submission_has_the_rows_of_its_sample_whatever_headers_say(
    machine: Machine,
    ensemble: Ensemble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(12):
        quiet = np.full(10 * RATE_HZ, 0.2)
        write_wav(tmp_path / "in" / f"{number:02}.wav", quiet, rate_hz=RATE_HZ)
    monkeypatch.setattr(
        lateness, "duration_s", lambda path: {"01.wav": None, "02.wav": 99.0}.get(path.name, 5.0)
    )
    ids = [f"{file:02}_{end_s}" for file in range(12) for end_s in range(1, 11)]
    (tmp_path / "sample.csv").write_text("row_id,b\n" + "".join(f"{row_id},0\n" for row_id in ids))
    run = run_before(machine, ensemble, tmp_path / "in", tmp_path / "s.csv")
    report = run(deadline_s=16.0, prior={"b": 0.125}, format="birdclef", sample=tmp_path / "sample.csv")
    lines = lines_of(tmp_path / "s.csv")
    assert [line[0] for line in lines] == ids
    assert report.deadline is not None
    assert report.deadline.filled == sum(line[1] == "0.125" for line in lines) > 30
    assert (report.notes, report.deadline.guessed_files) == ((), 0)
    with pytest.raises(UsageError, match="outside 0 to 1"):
        run(deadline_s=16.0, prior=2.0, format="birdclef")


def test_a_bundle_of_one_model_has_the_prior_only(machine: Machine, recordings: Path, tmp_path: Path) -> None:
    with load(write_member(tmp_path, 2.0), threads=1) as bundle:
        predict(bundle, [recordings], output=tmp_path / "whole.csv")
        report = run_before(machine, bundle, recordings, tmp_path / "s.csv")(deadline_s=20.0, prior=0.125)
    assert report.deadline is not None and report.deadline.left_s >= 0
    rows = report.deadline.rows
    assert set(rows) == {"model", "prior"}
    assert 30 < rows["model"] <= 60
    whole, got = rows_of(tmp_path / "whole.csv"), rows_of(tmp_path / "s.csv")
    listed = below(tmp_path / "unfinished.csv")
    assert list(got) == list(whole)
    for key, scores in got.items():
        np.testing.assert_allclose(scores, [0.125] * 2 if key in listed else whole[key], rtol=1e-5)


def test_ranks_are_those_among_the_computed_rows(machine: Machine, recordings: Path, tmp_path: Path) -> None:
    for ranked in opened(tmp_path, blend=Rank()):
        report = run_before(machine, ranked, recordings, tmp_path / "s.csv")(deadline_s=60.0, prior=-1.0)
    assert report.deadline is not None and report.deadline.left_s >= 0
    assert set(report.deadline.rows) == {"x1 + x2 + x4", "prior"}
    listed = below(tmp_path / "unfinished.csv")
    ranks = np.array([x for key, x in rows_of(tmp_path / "s.csv").items() if key not in listed])
    expected = np.arange(1, len(ranks) + 1) / len(ranks)
    np.testing.assert_allclose(np.sort(ranks, axis=0), np.stack([expected] * 2, 1), rtol=1e-4)
    assert len(ranks) == report.deadline.rows["x1 + x2 + x4"]


def test_windows_are_thinned_out_where_they_overlap(
    machine: Machine, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = record(tmp_path / "in", [10.2] * 8, rng)
    half = AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, hop_s=0.5)
    post = PostProcessing(step=(OverlapMean(segment_s=1.0),))
    for thin in opened(tmp_path, post=post, description=half):
        predict(thin, [folder], output=tmp_path / "whole.csv")
        # 8 x 20 windows: 160 s with all members, 32 s with one, 16 s with one and every second window.
        report = run_before(machine, thin, folder, tmp_path / "s.csv")(deadline_s=32.0)
    assert report.deadline is not None and report.deadline.left_s >= 0
    assert list(rows_of(tmp_path / "s.csv")) == list(rows_of(tmp_path / "whole.csv"))
    assert report.deadline.rows["x1, every second window"] > 20
    assert report.deadline.filled == 0
    assert np.all([scores > 0 for scores in rows_of(tmp_path / "s.csv").values()])


def test_members_with_several_rows_of_a_window(
    machine: Machine, tmp_path: Path, rng: np.random.Generator
) -> None:
    """One member of three that takes four windows at once; the last ones are not whole."""
    folder = record(tmp_path / "in", [10.0, 9.0, 4.0, 0.5, *[10.0] * 8], rng)
    stretch = AudioInput(sample_rate_hz=RATE_HZ, window_s=4.0)
    joint = write_scripted_bundle(
        tmp_path / "x2.alula",
        scratch=tmp_path / "scratch",
        description=stretch,
        outputs=(TensorSpec("scores", "float32", ("b", 4, 2)),),
        shape=(stretch.window_samples,),
        labels=("a", "b"),
        scale=2.0,
        settings=Settings(batch_size=2),
    )
    members = [write_member(tmp_path, 1.0), joint, write_member(tmp_path, 4.0)]
    post = PostProcessing(view={"x2": View(rows=4)})
    make_ensemble(members, tmp_path / "e.alula", post=post)
    with load(tmp_path / "e.alula", threads=1) as loaded:
        assert isinstance(loaded, Ensemble)
        predict(loaded, [folder], output=tmp_path / "whole" / "s.csv")
        # 31 stretches: 96 s with all members, 25 s with the first one alone.
        run = run_before(machine, loaded, folder, tmp_path / "out" / "s.csv")
        late = run(deadline_s=60.0)
        got = rows_of(tmp_path / "out" / "s.csv")
        assert late.deadline is not None and late.deadline.left_s >= 0
        listed = below(tmp_path / "out" / "unfinished.csv")
        # With more time the same command does the rest.
        assert 0 < run(deadline_s=400.0).resumed < 12
    assert (tmp_path / "out" / "s.csv").read_bytes() == (tmp_path / "whole" / "s.csv").read_bytes()
    assert list(got) == list(rows_of(tmp_path / "whole" / "s.csv"))
    counts: dict[str, int] = {}
    for (name, start_s), scores in got.items():
        rung = listed.get((name, start_s), "x1 + x2 + x4")
        counts[rung] = counts.get(rung, 0) + 1
        wave = np.append(soundfile.read(folder / name)[0], np.zeros(4 * RATE_HZ))
        first = round(start_s) // 4 * 4
        own = wave[round(start_s) * RATE_HZ :][:2]
        # The scripted member gives the first values of its window, two for each of its rows.
        stretched = wave[first * RATE_HZ + 2 * (round(start_s) - first) :][:2]
        given = {"x1": own, "x2": 2 * stretched, "x4": 4 * own}
        np.testing.assert_allclose(scores, np.mean([given[one] for one in rung.split(" + ")], 0), rtol=1e-4)
    assert counts == late.deadline.rows
    assert set(counts) - {"x1 + x2 + x4"} <= {"x1 + x2", "x1"}
    assert 20 < counts["x1 + x2 + x4"] < 90


def test_the_ladder_that_an_ensemble_declares(machine: Machine, recordings: Path, tmp_path: Path) -> None:
    ladder = [
        DeclaredRung(members=("x1", "x2", "x4"), score=0.9),
        DeclaredRung(members=("x2",), score=0.8),
    ]
    for declared in opened(tmp_path, ladder=ladder):
        predict(declared, [recordings], output=tmp_path / "whole.csv")
        report = run_before(machine, declared, recordings, tmp_path / "s.csv")(deadline_s=80.0)
    assert set(check(report, tmp_path / "whole.csv")) == {"x1 + x2 + x4", "x2"}


def test_wrong_ladders(tmp_path: Path) -> None:
    member = write_member(tmp_path, 1.0)
    both = DeclaredRung(members=("x1", "x1-2"), score=1)
    for ladder, says in (
        ([DeclaredRung(members=("y",), score=1)], "names the member `y`"),
        ([DeclaredRung(members=("x1",), every=2, score=1)], "one of 2 windows"),
        ([DeclaredRung(members=("x1",), score=1)], "begins with some members"),
        ([DeclaredRung(members=("x1", "x1-2", "x1"), score=1)], "each member at most once"),
        ([both, DeclaredRung(members=("x1-2",), score=1)], "the score 1 behind 1; expected"),
        ([both, DeclaredRung(members=("x1-2",), score=float("nan"))], "the score nan behind 1"),
        ([both, DeclaredRung(members=("x1",), score=0.5)], "a rung of x1, which the blend gives no weight"),
    ):
        with pytest.raises(UsageError, match=says):
            make_ensemble([member, member], tmp_path / "e.alula", ladder=ladder, blend=Mean(weights=(0, 1)))
    make_ensemble(
        [member, member],
        tmp_path / "e.alula",
        ladder=[both, DeclaredRung(members=("x1-2",), score=0.5)],
        blend=Mean(weights=(0, 1)),
    )


def test_members_without_a_weight_are_no_rung(machine: Machine, recordings: Path, tmp_path: Path) -> None:
    for scorer in opened(tmp_path, blend=Mean(weights=(0, 1, 1))):
        predict(scorer, [recordings], output=tmp_path / "whole.csv")
        report = run_before(machine, scorer, recordings, tmp_path / "s.csv")(deadline_s=60.0)
    assert report.deadline is not None and report.deadline.left_s >= 0
    # The first member is the cheapest, and alone it says nothing.
    assert set(report.deadline.rows) <= {"x1 + x2 + x4", "x2 + x4", "x2"}
    assert report.deadline.rows["x2"] > 10
    whole, listed = rows_of(tmp_path / "whole.csv"), below(tmp_path / "unfinished.csv")
    for key, scores in rows_of(tmp_path / "s.csv").items():
        share = 2 / 3 if listed.get(key) == "x2" else 1.0
        np.testing.assert_allclose(scores, whole[key] * share, rtol=1e-4)


def test_a_run_with_a_deadline_goes_on_after_a_kill(
    machine: Machine,
    ensemble: Ensemble,
    recordings: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out" / "s.csv"
    run = run_before(machine, ensemble, recordings, output)
    real = Journal.keep
    left = itertools.count(3, -1)

    def keep(self: Journal, *args: object, **options: object) -> None:
        real(self, *args, **options)  # type: ignore[arg-type]
        if next(left) == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", keep)
        with pytest.raises(KeyboardInterrupt):
            run(deadline_s=90.0)
    assert not output.exists()
    report = predict(ensemble, [recordings], output=output)
    assert report.deadline is None
    assert output.read_bytes() == whole.read_bytes()


def test_images_have_no_lengths(machine: Machine, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", per_class=20)
    description = ImageInput(height=8, width=8)
    with load(write_member(tmp_path, 4.0, description), threads=1) as bundle:
        report = run_before(machine, bundle, folder, tmp_path / "s.csv")(deadline_s=20.0)
    assert report.deadline is not None and report.deadline.left_s >= 0
    assert sum(report.deadline.rows.values()) == len(lines_of(tmp_path / "s.csv")) == 60
    assert report.deadline.rows["prior"] > 20
    assert {line[4] for line in lines_of(tmp_path / "unfinished.csv")} == {"prior"}


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_deadlines(
    ensemble: Ensemble, recordings: Path, tmp_path: Path, deadline_s: float
) -> None:
    with pytest.raises(UsageError, match="expected a number of seconds above 0"):
        predict(ensemble, [recordings], output=tmp_path / "s.csv", deadline_s=deadline_s)


def test_wrong_priors(machine: Machine, ensemble: Ensemble, recordings: Path, tmp_path: Path) -> None:
    run = run_before(machine, ensemble, recordings, tmp_path / "s.csv")
    for options, says in (
        ({"prior": 0.5}, "there is no deadline"),
        ({"prior": {"c": 0.5}, "deadline_s": 9.0}, "`c`"),
        ({"prior": float("nan"), "deadline_s": 9.0}, "finite"),
    ):
        with pytest.raises(UsageError, match=says):
            run(**options)


def test_a_blend_of_some_is_the_blend_of_these(tmp_path: Path, rng: np.random.Generator) -> None:
    for all_three in opened(tmp_path, blend=Mean(weights=(1.0, 2.0, 5.0))):
        rows = rng.uniform(0.1, 1, (5, RATE_HZ)).astype(np.float32)
        some, took_s = all_three.some_scores(
            (rows,), (0, 2), unheard=np.zeros(2, np.float32), stopped=lambda: False, clock=lambda: 0.0
        )
        assert took_s == [0.0, 0.0]
        np.testing.assert_allclose(some, rows[:, :2] * (1 * 1 + 5 * 4) / 6, rtol=1e-5)
        none, _ = all_three.some_scores(
            (rows,), (0, 2), unheard=np.zeros(2, np.float32), stopped=lambda: True, clock=lambda: 0.0
        )
        assert none is None


# Windows of 2 s every second, made means over segments of 1 s.
WIDE = AudioInput(sample_rate_hz=RATE_HZ, window_s=2.0, hop_s=1.0)
SEGMENTS = PostProcessing(step=(OverlapMean(segment_s=1.0),))


@pytest.mark.parametrize("deadline_s", [2.0, 35.0])
def test_a_submission_of_segments_that_are_shorter_than_windows(
    machine: Machine, tmp_path: Path, rng: np.random.Generator, deadline_s: float
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        write_wav(folder / f"{number:02}.wav", rng.uniform(0.1, 0.2, 10 * RATE_HZ), rate_hz=RATE_HZ)
    ids = [f"{file:02}_{end_s}" for file in range(6) for end_s in range(1, 11)]
    (tmp_path / "sample.csv").write_text("row_id,b\n" + "".join(f"{row_id},0\n" for row_id in ids))
    for scorer in opened(tmp_path, post=SEGMENTS, description=WIDE):
        report = run_before(machine, scorer, folder, tmp_path / "s.csv")(
            deadline_s=deadline_s,
            since_s=machine.clock.monotonic() - (10.0 if deadline_s < 10 else 0.0),
            prior=0.125,
            format="birdclef",
            sample=tmp_path / "sample.csv",
        )
    assert [line[0] for line in lines_of(tmp_path / "s.csv")] == ids
    assert report.notes == ()
    assert report.deadline is not None
    assert report.deadline.filled == (60 if deadline_s < 10 else 0)


def test_a_recording_without_rows_has_none(tmp_path: Path) -> None:
    for scorer in opened(tmp_path, post=SEGMENTS, description=WIDE):
        keys, scores, stretches = filled_rows(
            scorer, [], computed=None, names=["all"], prior=np.zeros(2, np.float32)
        )
    assert (keys, scores.shape, stretches) == ([], (0, 2), [])


HALF = [(k / 2, k / 2 + 1.0) for k in range(12)]


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (Smoothing(kernel=(0.2, 0.6, 0.2)),),
        (Smoothing(kernel=(0.5, 0.0, 1.0, 0.0, 0.0)),),
        (OverlapMean(segment_s=1.0),),
        (OverlapMean(segment_s=1.5), Smoothing(kernel=(0.2, 0.6, 0.2))),
        (TopScaling(k=12),),
        (OverlapMean(segment_s=1.0), CutOff(below=2.0)),
    ],
)
def test_a_row_has_the_lowest_rung_of_what_it_follows_from(
    tmp_path: Path, rng: np.random.Generator, steps: tuple[Step, ...]
) -> None:
    """Rows that change with a computed one follow from it."""
    given = rng.uniform(0.1, 0.9, (12, 2)).astype(np.float32)
    for scorer in opened(
        tmp_path,
        post=PostProcessing(step=steps),
        description=AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, hop_s=0.5),
    ):
        for low in (0, 4, 11):
            rungs = np.zeros(12, np.int16)
            rungs[low] = 1
            keys, scores, stretches = filled_rows(
                scorer,
                HALF,
                computed=(HALF, given, rungs),
                names=["all", "some"],
                prior=np.zeros(2, np.float32),
            )
            changed = given.copy()
            changed[low] += 5
            _, (others,) = scorer.finished(HALF, (changed,))
            follow = np.flatnonzero((scores != others).any(axis=1)).tolist()
            assert follow
            # Neighbours are one stretch.
            runs = [
                [place for _, place in group]
                for _, group in itertools.groupby(enumerate(follow), key=lambda pair: pair[1] - pair[0])
            ]
            assert stretches == [Stretch(keys[run[0]][0], keys[run[-1]][1], len(run), "some") for run in runs]


def test_the_end_of_a_thinned_recording_whose_header_tells_of_more(
    machine: Machine, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Twenty windows, the last of which alone reaches into the last second.
    folder = record(tmp_path / "in", [10.2] * 8, rng)
    half = AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, hop_s=0.5)
    monkeypatch.setattr(lateness, "duration_s", lambda path: 12.7)
    for thin in opened(tmp_path, post=PostProcessing(step=(OverlapMean(segment_s=1.0),)), description=half):
        predict(thin, [folder], output=tmp_path / "whole.csv")
        report = run_before(machine, thin, folder, tmp_path / "s.csv")(deadline_s=32.0)
    assert report.deadline is not None and report.deadline.left_s >= 0
    assert report.deadline.rows["x1, every second window"] > 20
    got = rows_of(tmp_path / "s.csv")
    assert list(got) == list(rows_of(tmp_path / "whole.csv"))
    filled = [key for key, scores in got.items() if not scores.any()]
    assert 0 < len(filled) == report.deadline.filled
    assert {start_s for _, start_s in filled} == {10.0}
    listed = [line for line in lines_of(tmp_path / "unfinished.csv") if line[4] == "prior"]
    assert [line[1:4] for line in listed] == [["10", "11", "1"]] * len(filled)


def test_headers_of_a_shard_are_read_once(
    machine: Machine, ensemble: Ensemble, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lateness.duration_s
    read: list[str] = []

    def noted(path: Path) -> float | None:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(lateness, "duration_s", noted)
    run = run_before(machine, ensemble, recordings, tmp_path / "s.csv")
    report = run(deadline_s=400.0, shard=Shard(2, 3))
    assert report.files == 4
    assert Counter(read) == Counter(path.name for path in recordings.iterdir())

    def slow(path: Path) -> float | None:
        machine.clock.advance(300.0)
        return real(path)

    monkeypatch.setattr(lateness, "duration_s", slow)
    with pytest.raises(JobError, match=r"headers were read; expected all"):
        run(deadline_s=400.0, shard=Shard(2, 3))


def test_a_header_that_a_disk_does_not_give(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(recordings.iterdir())[:3]

    def fails(path: Path) -> AudioBlocks:
        if path == paths[1]:
            raise OSError(errno.EIO, "x")
        return open_audio(path)

    monkeypatch.setattr(lateness, "open_audio", fails)
    looks = itertools.count()
    found = lateness.read_headers(paths, threads=1, over=lambda: next(looks) > 100)
    assert found == {0: 10.0, 1: None, 2: 10.0}


def test_rows_of_files_of_unknown_length_are_reckoned_with(ensemble: Ensemble) -> None:
    for kept, expected, rows in (
        ([3, 5], [10, None, 20], 8 + 10 + 15 + 20),
        ([3, 5], [None], 8 + 4),
        ([], [None, None], 2),
    ):
        assert prediction._rows_of(kept, expected) == rows
    wrote_s = [
        reserve_of(ensemble, rows=rows, files=1, columns=0, allowed_s=100.0).write_s for rows in (0, 1e6)
    ]
    # A million rows took 7 s at 2.5 GHz in the dearest format.
    assert wrote_s[1] - wrote_s[0] == pytest.approx(7.0)


def test_a_list_beside_a_link_to_another_disk(
    machine: Machine, ensemble: Ensemble, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recordings / "00b.wav").write_bytes(b"RIFF")
    here, disk = tmp_path / "here", tmp_path / "disk"
    here.mkdir()
    disk.mkdir()
    (here / "s.csv").symlink_to(disk / "table.csv")
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if (disk in path.parents) != (disk in Path(target).parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    report = run_before(machine, ensemble, recordings, here / "s.csv")(deadline_s=22.0)
    assert report.deadline is not None
    assert report.deadline.unfinished == str(here / "unfinished.csv")
    assert sorted(path.name for path in here.iterdir()) == ["errors.csv", "s.csv", "unfinished.csv"]
    assert sorted(path.name for path in disk.iterdir()) == ["table.csv", "table.csv.job"]


def test_the_list_of_another_output_stays(
    machine: Machine, ensemble: Ensemble, recordings: Path, tmp_path: Path
) -> None:
    since_s = machine.clock.monotonic() - 10.0
    late = run_before(machine, ensemble, recordings, tmp_path / "a.csv")(deadline_s=2.0, since_s=since_s)
    assert late.deadline is not None and late.deadline.unfinished is not None
    predict(ensemble, [recordings], output=tmp_path / "b.csv")
    run_before(machine, ensemble, recordings, tmp_path / "c.csv")(deadline_s=400.0)
    assert len(lines_of(tmp_path / "unfinished.csv")) == 12
    predict(ensemble, [recordings], output=tmp_path / "a.csv")
    assert sorted(path.name for path in tmp_path.glob("*.csv*")) == ["a.csv", "b.csv", "c.csv"]
