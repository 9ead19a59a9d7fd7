"""The command line: exit codes, one JSON document or text, and never a traceback."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SONGS, write_audio_bundle, write_images, write_wav
from quick import take_looks_as_they_are
from tiny import FEATURES, write_onnx

from alula import __version__
from alula.cli import cli
from alula.hardware import thread_budget
from alula.tuning import SearchPlan
from alula.workflows import make_ensemble, optimization

COMMANDS = (
    "optimize",
    "whole-files",
    "predict",
    "ensemble",
    "plan",
    "bench",
    "inspect",
    "report",
    "survey",
    "doctor",
    "demo",
)


# Longer than what a file system takes for a name.
LONG = 300 * "x"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `alula` with arguments, in this process: an exception would be a traceback for the user."""

    def run(*args: object) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli(args=[str(arg) for arg in args], prog_name="alula")
        code = ended.value.code
        out, err = capfd.readouterr()
        return Ended(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle of one linear layer over mel bands."""
    folder = tmp_path_factory.mktemp("cli")
    return write_audio_bundle(folder / "songs.alula", scratch=folder / "scratch")


@pytest.fixture
def recordings(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two recordings of two seconds."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("a", "b"):
        write_wav(folder / f"{name}.wav", rng.uniform(-0.9, 0.9, 16_000))
    return folder


@pytest.fixture
def features(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Samples for the ONNX file of `write_onnx`."""
    path = tmp_path / "x.npz"
    np.savez(path, x=rng.normal(size=(30, FEATURES)).astype(np.float32))
    return path


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are good for nothing but that there are some."""
    short = functools.partial(SearchPlan, round_s=0.02, final_rounds=6)
    monkeypatch.setattr(optimization, "SearchPlan", short)
    take_looks_as_they_are(monkeypatch)


def failed(ended: Ended, code: int) -> str:
    """Return the message of a command that ended badly, as it should end."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert "Traceback" not in ended.err
    return ended.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    ended = run(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: alula {command} ")
    assert "--json" in ended.out


def test_the_version(run: Run) -> None:
    assert run("--version").out.strip().endswith(__version__)


def test_help_names_every_command(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    assert all(f"\n  {command} " in ended.out for command in COMMANDS)


def test_it_starts_as_a_module_and_without_engines() -> None:
    code = "import sys, alula.cli; print({'torch', 'onnxruntime', 'openvino'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stdout == b"set()\n"
    ended = subprocess.run(
        [sys.executable, "-m", "alula", "inspect", "absent"], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: absent: It does not exist")


def test_a_mistyped_command_is_a_usage_error_with_a_hint(run: Run) -> None:
    assert "Did you mean `optimize`?" in failed(run("optimise"), 2)


@pytest.mark.parametrize("args", [("--nonsense",), ("predict",), ("predict", "b", "i"), ("bench",)])
def test_wrong_arguments_are_usage_errors(run: Run, args: tuple[str, ...]) -> None:
    assert "Usage: alula" in failed(run(*args), 2)


def test_doctor(run: Run) -> None:
    assert run("doctor").code == 0
    ended = run("doctor", "--json")
    assert ended.code == 0
    assert isinstance(ended.document, dict)


def test_predict(run: Run, bundle: Path, recordings: Path, tmp_path: Path) -> None:
    ended = run("predict", bundle, recordings, "-o", tmp_path / "scores.csv", "--threads", 1)
    assert ended.code == 0
    assert str(tmp_path / "scores.csv") in ended.out.replace("\n", "")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == ",".join(["path", "start_s", "end_s", *SONGS])
    assert len(lines) == 1 + 2 * 2


def test_predict_as_json(run: Run, bundle: Path, recordings: Path, tmp_path: Path) -> None:
    ended = run("predict", bundle, recordings, "-o", tmp_path / "scores.parquet", "--json", "-q")
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["job"]["samples"] == 4
    assert ended.document["errors"] is None
    assert ended.document["output"] == str(tmp_path / "scores.parquet")


def test_ensemble_inspect_and_predict(run: Run, bundle: Path, recordings: Path, tmp_path: Path) -> None:
    post, weights, output = tmp_path / "post.toml", tmp_path / "weights.toml", tmp_path / "ens.alula"
    post.write_text('[[step]]\ntype = "cutoff"\nbelow = 2.0\nfactor = 0.5\n')
    weights.write_text(f"{SONGS[0]} = [1, 3]\n")
    ladder = tmp_path / "ladder.toml"
    ladder.write_text(
        '[[rung]]\nmembers = ["songs", "songs-2"]\nscore = 0.9\n'
        '[[rung]]\nmembers = ["songs-2"]\nscore = 0.8\n'
    )
    args = (
        "--blend",
        "power",
        "--exponent",
        3,
        "--weights",
        "2,1",
        "--class-weights",
        weights,
        "--post",
        post,
        "--ladder",
        ladder,
    )
    ended = run("ensemble", bundle, bundle, "-o", output, *args, "--json")
    assert ended.code == 0
    assert ended.document["blend"] == {
        "type": "power",
        "exponent": 3.0,
        "weights": [2.0, 1.0],
        "class_weights": {SONGS[0]: [1.0, 3.0]},
    }
    assert [member["name"] for member in ended.document["members"]] == ["songs", "songs-2"]
    drawn = run("inspect", output)
    assert drawn.code == 0
    for said in ("songs-2", "power, exponent 3.0", "cutoff, below 2.0", "3: ", "every 1, score 0.8"):
        assert said in drawn.out
    assert run("inspect", output, "--json").document == ended.document
    for what, table in ((bundle, "one.csv"), (output, "both.csv")):
        assert run("predict", what, recordings, "-o", tmp_path / table, "--threads", 1).code == 0
    one, both = (
        [line.split(",") for line in (tmp_path / name).read_text().splitlines()]
        for name in ("one.csv", "both.csv")
    )
    assert one[0] == both[0]
    assert len(one) == len(both) == 5
    # Twice the same member, halved by the step.
    for alone, together in zip(one[1:], both[1:], strict=True):
        assert alone[:3] == together[:3]
        np.testing.assert_allclose(
            [float(x) for x in together[3:]], [float(x) / 2 for x in alone[3:]], rtol=2e-5
        )
    (output / "members" / "songs" / "search.jsonl").write_text("x")
    assert "search.jsonl" in failed(run("inspect", output), 1)


@pytest.mark.parametrize(
    ("hop_s", "args", "says"),
    [
        (1.0, (), "do not overlap"),
        (0.5, ("--windows", "1"), "expected at least 2"),
        (0.5, ("--metric", "top2"), "Did you mean `top1`"),
        (0.5, ("--keep", "2"), "`keep_s` got 2"),
        (0.5, ("--keep", "nan"), "`keep_s` got nan"),
        (0.5, ("--keep", "inf"), "`keep_s` got inf"),
        (0.5, ("--data", "absent"), "absent does not exist"),
        (0.5, ("--data", LONG), "does not exist"),
    ],
)
def test_whole_files_with_wrong_options(
    run: Run, recordings: Path, tmp_path: Path, hop_s: float, args: tuple[str, ...], says: str
) -> None:
    description = tmp_path / "input.toml"
    description.write_text(
        f'type = "audio"\nsample_rate_hz = 8000\nwindow_s = 1.0\nhop_s = {hop_s}\n'
        "[mel]\nn_fft = 256\nhop = 128\nn_mels = 8\n",
        "utf-8",
    )
    given = ("model.onnx", "--data", recordings, "--input", description, "-o", tmp_path / "x.alula", *args)
    assert says in failed(run("whole-files", *given), 2)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("absent.onnx",), 1, "does not exist"),
        (("recordings",), 1, "is a folder"),
        (("recordings/a.wav",), 1, "in no known model format"),
        (("model.onnx", "--input", "image.toml"), 2, "no spectrogram of recordings"),
        (("model.onnx", "--data", "empty"), 1, "found no files"),
        (("model.onnx", "--data", "images"), 2, "holds no recordings"),
        (("model.onnx", "--data", "broken"), 1, "None of its recordings can be read"),
        (("model.onnx", "-o", "/proc/x.alula"), 1, "/proc/x.alula: It cannot be written: "),
        (("model.onnx", "-o", "image.toml/x.alula"), 1, "image.toml/x.alula: It cannot be written: "),
        (("model.onnx", "-o", "images", "--replace"), 1, "It exists already"),
        (("model.onnx", "-o", LONG), 1, f"error: {LONG}: It cannot be written: File name too long."),
    ],
)
def test_whole_files_with_bad_input(
    run: Run,
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(recordings / "a.wav", recordings / "c.wav")
    write_images(tmp_path / "images", per_class=1)
    write_onnx(tmp_path / "model.onnx", batch=8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "broken" / f"{name}.wav").write_bytes(b"no sound")
    (tmp_path / "image.toml").write_text('type = "image"\n', "utf-8")
    (tmp_path / "input.toml").write_text(
        'type = "audio"\nsample_rate_hz = 8000\nwindow_s = 1.0\nhop_s = 0.5\n[mel]\nn_fft = 256\n', "utf-8"
    )
    before = sorted(tmp_path.iterdir())
    model, *options = args
    given = ("--data", "recordings", "--input", "input.toml", "-o", "x.alula", *options, "-q")
    assert says in failed(run("whole-files", model, *given), code)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "BUNDLES"),
        (("{bundle}",), 2, "--output"),
        (("absent.alula", "-o", "e"), 1, "does not exist"),
        (("{bundle}", "-o", "{bundle}"), 1, "It exists already"),
        (("{bundle}", "-o", "e", "--blend", "median"), 2, "median"),
        (("{bundle}", "-o", "e", "--weights", "1,1"), 2, "got 2 values; expected 1"),
        (("{bundle}", "-o", "e", "--weights", "heavy"), 2, "no list of numbers"),
        (("{bundle}", "-o", "e", "--weights", "0"), 2, "sum to more than 0"),
        (("{bundle}", "-o", "e", "--blend", "max", "--weights", "1"), 2, "takes no weights"),
        (("{bundle}", "-o", "e", "--exponent", "3"), 2, "belongs to --blend power"),
        (("{bundle}", "-o", "e", "--blend", "power", "--exponent", "0"), 2, "`exponent`"),
        (
            ("{bundle}", "-o", "e", "--class-weights", "absent"),
            2,
            "--class-weights absent cannot be read: No such file",
        ),
        (("{bundle}", "-o", "e", "--post", "absent"), 2, "cannot be read"),
        (("{bundle}", "-o", "e", "--ladder", "absent"), 2, "--ladder absent cannot be read: No such file"),
        (("{bundle}", "-o", "e", "--labels", "cuckoo"), 2, "knows the label `cuckoo`"),
        (("{bundle}", "-o", "e", "--labels", f"cuckoo,{LONG}"), 2, "knows the label `cuckoo`"),
        (("{bundle}", "-o", "e", "--labels", "{bundle}/golden.npz"), 2, "golden.npz is not UTF-8 text"),
        (("{bundle}/golden.npz", "-o", "e"), 1, "It is a file; expected a bundle folder"),
        (("{bundle}/artifacts", "-o", "e"), 1, "It holds no bundle.json"),
        ((LONG, "-o", "e"), 1, "It cannot be read: File name too long"),
        (("{bundle}", "-o", LONG), 1, "It cannot be written: File name too long"),
        (("{bundle}", "-o", "/proc/e.alula"), 1, "/proc/e.alula: It cannot be written: "),
        (("{bundle}", "-o", "{bundle}/golden.npz", "--replace"), 1, "It exists already"),
    ],
)
def test_ensemble_with_wrong_options(
    run: Run,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in failed(run("ensemble", *(arg.replace("{bundle}", str(bundle)) for arg in args)), code)
    assert list(tmp_path.iterdir()) == []


def test_predict_detections_of_a_shard(run: Run, bundle: Path, recordings: Path, tmp_path: Path) -> None:
    thresholds = tmp_path / "thresholds.csv"
    thresholds.write_text("label,threshold\n" + "".join(f"{song},0\n" for song in SONGS))
    options = ("--format", "audacity", "--threshold", thresholds, "--top-k", 1, "--threads", 1)
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run("predict", bundle, recordings, "-o", whole, *options).code == 0
    tables = sorted(whole.glob("*.txt"))
    assert [len(table.read_text().splitlines()) for table in tables] == [2, 2]
    ended = run("predict", bundle, recordings, "-o", part, *options, "--shard", "1/2", "--json")
    assert (ended.code, ended.document["files"]) == (0, 1)
    assert [table.name for table in part.glob("*.txt")] == [tables[0].name]
    assert (part / tables[0].name).read_text() == tables[0].read_text()
    one = run("predict", bundle, recordings, "-o", tmp_path / "all.txt", *options, "--shard", "1/2")
    assert "folder" in failed(one, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--shard", "0/3"), "Shard got 0/3"),
        (("--shard", "a third"), "expected a part of a whole, such as 3/10"),
        (("--threshold", "0.5"), "holds every score"),
        (("--top-k", "0", "--format", "raven"), "expected at least 1"),
        (("--format", "rave"), "'raven'"),
        (("--deadline", "soon"), "is no duration"),
        (("--prior", "0.5"), "there is no deadline"),
        (("--prior", "nan", "--deadline", "9h"), "expected a finite score"),
    ],
)
def test_wrong_options_of_predict(
    run: Run, bundle: Path, recordings: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    assert says in failed(run("predict", bundle, recordings, "-o", tmp_path / "s.csv", *options), 2)
    assert not (tmp_path / "s.csv").exists()


def test_predict_before_a_deadline(run: Run, bundle: Path, recordings: Path, tmp_path: Path) -> None:
    output, prior = tmp_path / "s.csv", tmp_path / "prior.csv"
    prior.write_text(f"label,score\n{SONGS[1]},0.25\n")
    args = ("predict", bundle, recordings, "-o", output, "--threads", 1)
    # The process of the tests runs for longer than this.
    late = run(*args, "--deadline", "10ms", "--prior", prior, "--json")
    assert late.code == 3
    assert late.document["deadline"]["rows"] == {"prior": 4}
    assert late.document["deadline"]["prior"] == [0.0, 0.25]
    assert late.document["deadline"]["left_s"] < 0
    rows = [line.split(",")[3:] for line in output.read_text().splitlines()[1:]]
    assert rows == [["0.0" if song != SONGS[1] else "0.25" for song in SONGS]] * 4
    assert len((tmp_path / "unfinished.csv").read_text().splitlines()) == 3
    drawn = run(*args, "--deadline", "10ms")
    assert "4 with prior: scores of 0" in drawn.out
    assert "unfinished.csv lists the rows" in drawn.out
    done = run(*args, "--deadline", "10h")
    assert (done.code, "s before it; 36000 s were allowed" in done.out) == (0, True)
    assert not (tmp_path / "unfinished.csv").exists()
    before = output.read_bytes()
    assert run(*args).code == 0
    assert output.read_bytes() == before


def test_inputs_that_fail_end_with_3_and_a_report(
    run: Run, bundle: Path, recordings: Path, tmp_path: Path
) -> None:
    (recordings / "c.wav").write_bytes(b"no sound")
    ended = run("predict", bundle, recordings, "-o", tmp_path / "scores.csv", "--json")
    assert ended.code == 3
    assert ended.document["job"]["tasks_failed"] == 1
    assert "c.wav" in Path(ended.document["errors"]).read_text()
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("absent.alula", "{in}", "-o", "s.csv"), 1, "It does not exist"),
        (("{in}", "{in}", "-o", "s.csv"), 1, "error: "),
        (("{bundle}", "absent", "-o", "s.csv"), 1, "does not exist"),
        (("{bundle}", "{in}/*.flac", "-o", "s.csv"), 1, "matches nothing"),
        (("{bundle}", "{in}", "-o", "s.txt"), 2, "suffix"),
        (("{bundle}", "{in}", "-o", "s.csv", "--format", "xml"), 2, "xml"),
        (("{bundle}", "{in}", "-o", "s.csv", "--threads", "0"), 2, "thread"),
        (("{bundle}", "{in}", "-o", "s.csv", "--threads", "many"), 2, "many"),
        (("{bundle}", "{in}", "-o", "s.csv", "--errors", "s.csv"), 2, "two names"),
        (("{bundle}", "{in}", "-o", "/proc/no/s.csv"), 1, "error: "),
        (("{bundle}", "{in}"), 2, "--output"),
        (("{bundle}", "\0", "-o", "s.csv"), 1, "error: "),
        (("{bundle}", LONG, "-o", "s.csv", "--deadline", "1h"), 1, f"error: {LONG}: File name too long."),
        (("{bundle}", "{in}", "-o", f"{LONG}.csv", "--deadline", "1h"), 1, "File name too long"),
        ((LONG, "{in}", "-o", "s.csv", "--deadline", "1h"), 1, "It cannot be read: File name too long"),
        (("{bundle}", "{in}", "-o", "s.csv", "--deadline", "1h", "--prior", "{in}"), 1, "Is a directory"),
    ],
    ids=lambda value: " ".join(value).replace("\0", "NUL") if isinstance(value, tuple) else "",
)
def test_predict_with_bad_input(
    run: Run,
    bundle: Path,
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [arg.replace("{bundle}", str(bundle)).replace("{in}", str(recordings)) for arg in args]
    assert says in failed(run("predict", *filled), code)
    assert not (tmp_path / "s.csv").exists()


def test_optimize_and_inspect(run: Run, features: Path, tmp_path: Path, short_rounds: None) -> None:
    model, output = write_onnx(tmp_path / "model.onnx", batch=8), tmp_path / "b.alula"
    args = ("optimize", model, "--data", features, "-o", output, "--engines", "fake", "--threads", 1)
    ended = run(*args)
    assert ended.code == 0
    assert "fake/fp32" in ended.out
    assert "exists already" in failed(run(*args), 1)
    again = run(*args, "--replace", "--json", "-q", "--seed", 3)
    assert again.code == 0
    assert again.err == ""
    inspected = run("inspect", output, "--json")
    assert inspected.code == 0
    assert inspected.document["seed"] == again.document["seed"] == 3
    assert inspected.document["chosen"]["recipe"] == "fake/fp32"
    drawn = run("inspect", output)
    assert drawn.code == 0
    here = thread_budget()
    assert (f"thread budget: tuned on 1, here {here}" in drawn.out) == (here != 1)
    (output / "search.jsonl").write_bytes(b"changed")
    assert "search.jsonl" in failed(run("inspect", output), 1)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--engines", "onnxruntim"), 2, "Did you mean `onnxruntime`"),
        (("--metric", "top9"), 2, "Did you mean `top1`"),
        (("--budget", "soon"), 2, "no duration"),
        (("--max-drop", "-1"), 2, "0 or more"),
        (("--max-drop", "lots"), 2, "lots"),
        (("--scenario", "server"), 2, "server"),
        (("--activation", "relu"), 2, "relu"),
        (("--precisions", "int4"), 2, "no precision `int4`"),
        (("--input", "imagenett"), 2, "Did you mean `imagenet`"),
        (("--threads", "0"), 2, "thread"),
        (("--weights", "absent.pth"), 1, "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_optimize_with_wrong_options(
    run: Run, features: Path, tmp_path: Path, options: tuple[str, ...], code: int, says: str
) -> None:
    model = write_onnx(tmp_path / "model.onnx", batch=8)
    ended = run("optimize", model, "--data", features, "-o", tmp_path / "b", "-q", *options)
    assert says in failed(ended, code)


@pytest.mark.parametrize(
    ("model", "data", "code", "says"),
    [
        ("absent.onnx", "x.npz", 1, "does not exist"),
        ("resnet18", "x.npz", 2, "timm:resnet18"),
        ("nonsense.onnx", "x.npz", 1, "nonsense.onnx"),
        ("nonsense.py:build", "x.npz", 1, "nonsense.py"),
        ("model.onnx", "absent", 2, "does not exist"),
        ("model.onnx", "empty", 1, "found no files"),
        ("model.onnx", "images", 1, "how the model sees them was not said"),
        ("model.onnx", "nonsense.onnx", 1, "Expected a folder"),
    ],
)
def test_optimize_with_bad_input(
    run: Run,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    data: str,
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "model.onnx", batch=8)
    write_images(tmp_path / "images", per_class=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nonsense.onnx").write_bytes(b"nonsense")
    (tmp_path / "nonsense.py").write_text("def build(:\n")
    ended = run("optimize", model, "--data", data, "-o", "b.alula", "-q", "--engines", "fake", "--threads", 1)
    assert says in failed(ended, code)
    assert not (tmp_path / "b.alula").exists()


def test_bench(run: Run, bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other.alula")
    options = ("--rounds", 2, "--seconds", 0.01, "--threads", 1)
    assert run("bench", bundle, *options).code == 0
    ended = run("bench", bundle, "--compare", other, *options, "--json", "-q")
    assert ended.code == 0
    assert isinstance(ended.document, dict)
    failed(run("bench", "absent.alula", *options), 1)


@pytest.mark.parametrize(
    "options", [("--rounds", 0), ("--rounds", -1), ("--seconds", "nan"), ("--threads", 0)]
)
def test_bench_with_wrong_options(run: Run, bundle: Path, options: tuple[object, ...]) -> None:
    ended = run("bench", bundle, "--rounds", 1, "--seconds", 0.01, *options)
    assert ended.code in {1, 2}
    assert "Traceback" not in ended.err


def test_a_config_file_gives_defaults_and_the_command_line_wins(
    run: Run, bundle: Path, recordings: Path, tmp_path: Path
) -> None:
    config = tmp_path / "alula.toml"
    output = tmp_path / "from-config.csv"
    config.write_text(f'[predict]\noutput = "{output}"\nthreads = 1\nformat = "birdclef"\n')
    assert run("predict", bundle, recordings, "--config", config).code == 0
    assert output.read_text().startswith("row_id,")
    other = tmp_path / "other.csv"
    assert run("predict", bundle, recordings, "--config", config, "-o", other, "--format", "csv").code == 0
    assert other.read_text().startswith("path,")


def test_a_config_file_gives_lists_to_options_that_are_repeated(
    run: Run, bundle: Path, tmp_path: Path
) -> None:
    others = [shutil.copytree(bundle, tmp_path / f"{name}.alula") for name in ("b", "c")]
    config = tmp_path / "alula.toml"
    config.write_text(
        f"[bench]\ncompare = {[str(other) for other in others]}\nrounds = 2\nseconds = 0.01\nthreads = 1\n"
    )
    ended = run("bench", bundle, "--config", config, "--json", "-q")
    assert ended.code == 0
    assert len(ended.document["rows"]) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[predict]\nouptut = "x.csv"\n', "Did you mean `output`"),
        ("[predict\n", "alula.toml"),
        ("predict = 3\n", "no table"),
        ('[predict]\nthreads = "many"\n', "many"),
    ],
)
def test_a_wrong_config_file_is_a_usage_error(
    run: Run, bundle: Path, recordings: Path, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "alula.toml").write_text(text)
    ended = run("predict", bundle, recordings, "-o", tmp_path / "s.csv", "--config", tmp_path / "alula.toml")
    assert says in failed(ended, 2)


def test_a_config_file_that_is_not_there(run: Run, bundle: Path, tmp_path: Path) -> None:
    failed(run("inspect", bundle, "--config", tmp_path / "absent.toml"), 2)


@pytest.fixture
def two_songs(tmp_path: Path, bundle: Path) -> list[Path]:
    """Two bundles of one layer each, of other weights."""
    shutil.copytree(bundle, tmp_path / "songs.alula")
    other = write_audio_bundle(tmp_path / "other.alula", scratch=tmp_path / "scratch", seed=12)
    return [tmp_path / "songs.alula", other]


def test_plan(
    run: Run, two_songs: list[Path], recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alula.workflows.stage_costs._start_s", lambda: 0.5)
    rng = np.random.default_rng(5)
    truth = rng.random((40, 3)) < 0.4
    for name, quality in (("songs", 1.0), ("other", 0.5), ("truth", None)):
        noisy = truth if quality is None else quality * truth + rng.normal(0, 0.5, truth.shape)
        lines = [
            f"{k // 4}.wav,{k % 4},{k % 4 + 1},{','.join(f'{x:.5f}' for x in row)}"
            for k, row in enumerate(1.0 * noisy)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join([f"path,start_s,end_s,{','.join(SONGS)}", *lines]))
    arguments = [
        *(
            "plan",
            *two_songs,
            "--workload",
            recordings,
            "--deadline",
            "10m",
            "--truth",
            tmp_path / "truth.csv",
        ),
        *("--scores", tmp_path / "songs.csv", "--scores", tmp_path / "other.csv"),
        *("--rounds", 2, "--seconds", 0.01, "--threads", 1),
    ]
    ended = run(*arguments, "-o", tmp_path / "e.alula", "--save", tmp_path / "plan.json")
    assert ended.code == 0, ended
    words = ended.out.split()
    assert {"songs", "score", "judged", "decode", "model", "deadline", "ensemble"} <= set(words)
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved["plan"]["time"]["expected_s"] > 0
    inspected = run("inspect", tmp_path / "e.alula", "--json").document
    assert inspected["ladder"][0]["members"]
    assert run("predict", tmp_path / "e.alula", recordings, "-o", tmp_path / "out.csv").code == 0
    told = run(*arguments, "--json", "-q")
    assert told.document["metric"] == "macro_auc"
    assert "Choose another name" in failed(run(*arguments, "-o", tmp_path / "e.alula"), 1)
    assert "too short for any bundle" in failed(run(*arguments, "--deadline", "10ms"), 2)
    assert "no list of whole numbers" in failed(run(*arguments, "--overlaps", "1,x"), 2)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("{in}/a.wav",), 1, "It is a file; expected a bundle folder"),
        ((LONG,), 1, "It cannot be read: File name too long"),
        (("e.alula",), 2, "is an ensemble; expected bundles of one model each"),
        (("cut.alula",), 1, "cut.alula/bundle.json: It is damaged"),
        (("{bundle}", "--data", LONG), 2, "does not exist. Expected a folder, a manifest"),
        (("{bundle}", "--data", "empty"), 1, "found no files"),
        (("{bundle}", "--data", "{in}"), 1, "It has no labels"),
        (("{bundle}", "--data", "{in}/a.wav"), 1, "Got a file of type `.wav`"),
        (("{bundle}", "--labels", "{in}/a.wav"), 2, "a.wav is not UTF-8 text"),
        (("{bundle}", "--labels", f"cuckoo,{LONG}"), 2, "No member knows the label `cuckoo`"),
        (("{bundle}", "--post", "{in}"), 2, "Is a directory"),
        (("{bundle}", "--save", "/proc/no/plan.json"), 1, "could not be written"),
        (("{bundle}", "-o", LONG), 1, f"error: {LONG}: It cannot be written: File name too long."),
    ],
)
def test_plan_with_bad_input(
    run: Run,
    bundle: Path,
    recordings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("e", "cut"):
        make_ensemble([bundle], tmp_path / f"{name}.alula")
    manifest = tmp_path / "cut.alula" / "bundle.json"
    manifest.write_bytes(manifest.read_bytes()[:300])
    before = sorted(tmp_path.iterdir())
    filled = [arg.replace("{bundle}", str(bundle)).replace("{in}", str(recordings)) for arg in args]
    given = ("--data", recordings, "--workload", recordings, "--deadline", "10m", "--threads", 1, "-q")
    ended = run("plan", *given, *filled)
    assert says in failed(ended, code)
    assert sorted(tmp_path.iterdir()) == before
