"""Alula's winner against other tools, each used as its documentation shows, in one run per model.

The peers: OpenVINO as `benchmark_app` runs it with the hint `throughput` (batch 1, requests in flight), on
the converted model and on NNCF's default INT8; ONNX Runtime with default options, on the exported model and
on `quantize_static`'s default INT8; `torch.compile`; torchao's PT2E with X86InductorQuantizer; Olive (static
quantization, then a search of the session's options); optimum-intel. A peer that says nothing of a batch
size gets its best of 1, 8 and 32.

    python benchmarks/peers.py [--models resnet18,...] [--olive-python PATH] [--peers peers.jsonl]
        [--budget 600 | --winner-from FILE] [--rounds 12] [--seconds 1] [--markdown FILE]

For each model, Alula searches for `--budget` seconds (or its winner of an earlier run is taken from
`--winner-from`, this script's results). Every peer is prepared. Then all contenders, each in a process of its
own with the same thread budget, take turns. What is known is appended to `--peers`, and the same command goes
on where it stopped; what was made stays in a folder beside that file until the model is done. To measure a
model anew, delete its lines.

All contenders have the same limit of accuracy: their outputs on noise that none of them has seen may lose at
most `--max-drop` of the cosine with those of the FP32 module in eager PyTorch. Who loses more is listed, but
not counted. Our search gets nine tenths of the limit, since what it accepts on the limit by its own samples
may lie beyond it on others. The weights are random: nothing separates the classes, so the share of equal
answers (reported as well) means little, and any INT8 of a MobileNetV3 loses 0.02 to 0.05 of the cosine. The
limit is as wide as that, and finds what is broken.

Olive and optimum-intel need other versions of common libraries, so they get an environment of their own. The
CPU build of PyTorch comes first, with the torchvision that belongs to it:

    python -m venv olive
    olive/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    olive/bin/pip install torch==2.13.0 'torchvision==0.28.*' 'olive-ai==0.13.*' optimum-intel \\
        'onnxruntime==1.31.*' 'openvino==2026.4.*' 'nncf==3.4.*' 'timm==1.0.*'
    python benchmarks/peers.py --olive-python olive/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

import output
import zoo
from alula.accuracy import compare, metric_named
from alula.core import Candidate, Ratio, Recipe, Settings, Signature
from alula.errors import AlulaError, EngineError
from alula.hardware import (
    describe_disturbance,
    fingerprint,
    int8_class,
    read_memory,
    take_snapshot,
    thread_budget,
)
from alula.measure import Round, interleave, ratio, throughput
from alula.sources import Source, parse_source
from alula.tuning import (
    Child,
    ChildError,
    Journal,
    Loaded,
    LoadModelRequest,
    LoadRequest,
    SearchPlan,
    Workshop,
    measure_round,
    offered_recipes,
    search,
)
from alula.tuning.messages import Predicted, PredictRequest
from lines import drop_torn_line, whole_lines

HERE = Path(__file__).resolve().parent
OURS = "alula"
OLIVE, OPTIMUM = "olive-int8", "optimum-intel"
PEERS = {
    "openvino-fp32": "OpenVINO",
    "openvino-int8": "OpenVINO INT8",
    "onnxruntime-fp32": "ONNX Runtime",
    "onnxruntime-int8": "ONNX Runtime INT8",
    "torch-compile": "torch.compile",
    "torchao-pt2e": "torchao PT2E INT8",
    OLIVE: "Olive INT8",
    OPTIMUM: "optimum-intel",
}
# `benchmark_app` takes the model's batch size, which is 1 for these; the others have no opinion.
BATCH_SIZES = dict.fromkeys(PEERS, (1, 8, 32)) | {"openvino-fp32": (1,), "openvino-int8": (1,)}
SAMPLES = {"calibration": 64, "validation": 256, "timed": 64, "held-out": 128}
# Of the limit. What is accepted on the limit by some samples may lie beyond it on others, so who must keep
# one asks for a little less.
SEARCHED_SHARE = 0.9
TIMEOUT_S = 900.0
PREPARATION_S = 1800.0
COSINE = metric_named("cosine")
AGREEMENT = metric_named("agreement")


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the file: a contender of a model, once prepared and once raced.

    Attributes:
        model: of the zoo.
        contender: `alula`, or a peer's key.
        stage: how far it came.
        recipe: of our winner.
        settings: of our winner.
        batch_size: of a peer.
        how: in the peer's own words, how it runs.
        per_s: throughput of each round; rounds of the contenders of a model belong together.
        cosine_drop: what the outputs on unseen noise lost.
        agreement: share of them with the same highest score.
        error: why it takes no part.
        warnings: what disturbed the run.
        seconds: that the stage took.
    """

    model: str
    contender: str
    stage: str
    recipe: str | None = None
    settings: Settings | None = None
    batch_size: int | None = None
    how: str = ""
    per_s: tuple[float, ...] = ()
    cosine_drop: float | None = None
    agreement: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def middle_per_s(self) -> float:
        """Median throughput."""
        return float(np.median(self.per_s))

    def counts(self, max_drop: float) -> bool:
        """Whether it was raced, and lost no more of the cosine than is allowed."""
        return bool(self.per_s) and self.cosine_drop is not None and self.cosine_drop <= max_drop

    @property
    def runs_with(self) -> str:
        """What ran, in one cell of a table."""
        if self.recipe is not None:
            return f"{self.recipe}, {self.settings}"
        return ", ".join(filter(None, [f"batch {self.batch_size}" if self.batch_size else "", self.how]))


class Record:
    """The file of results."""

    def __init__(self, path: Path) -> None:
        self._path = path
        drop_torn_line(path)

    def entries(self, model: str, stage: str) -> dict[str, Entry]:
        """Return a model's entries of a stage by contender; the last one counts."""
        entries = [msgspec.json.decode(line, type=Entry) for line in whole_lines(self._path)]
        return {one.contender: one for one in entries if (one.model, one.stage) == (model, stage)}

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries, all in one piece."""
        with self._path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))


def winner_from(path: Path, model: str) -> Candidate | None:
    """Return the last winner that a file of results holds for a model."""
    for line in reversed(whole_lines(path)):
        known = msgspec.json.decode(line, type=Entry)
        if known.model == model and known.recipe is not None and known.settings is not None:
            return Candidate(Recipe.parse(known.recipe), known.settings)
    return None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model's files, below one folder.

    Attributes:
        name: of the zoo.
        folder: for everything that is made.
        threads: budget of each contender.
        source: the model for Alula.
        max_drop: of the cosine.
    """

    name: str
    folder: Path
    threads: int
    source: Source
    max_drop: float

    def samples(self, kind: str) -> tuple[str, ...]:
        """Return the file of one kind of samples."""
        return (str(self.folder / f"{kind}.npy"),)

    def child(self, name: str, *, peer: str | None = None, batch_size: int = 1) -> Child:
        """Return a process of Alula's worker, or of a peer."""
        peers = ("serve", str(peer), str(self.folder), str(batch_size), str(self.threads))
        worker = ("-m", "alula.tuning.worker") if peer is None else (str(HERE / "peers_child.py"), *peers)
        return Child(
            self.folder / "logs",
            name,
            threads=self.threads,
            memory_limit_bytes=memory_limit_bytes(),
            command=(sys.executable, *worker),
        )

    def workshop(self) -> Workshop:
        """Return where our artifacts are made; those of the search are found again."""
        return Workshop(
            self.source,
            self.folder / "search",
            calibration=self.samples("calibration"),
            validation=self.samples("validation"),
            threads=self.threads,
            saturating=int8_class(fingerprint().isa) == "saturating",
            memory_limit_bytes=memory_limit_bytes(),
            timeout_s=lambda: TIMEOUT_S,
            report=output.say,
        )


def memory_limit_bytes() -> int:
    """Return how much memory a process may use."""
    return int(0.8 * read_memory().available_bytes) or 2**62


def open_model(name: str, folder: Path, *, threads: int, max_drop: float) -> Model:
    """Write a model and its samples, or find them as an earlier run left them."""
    note = folder / "source.json"
    if note.exists():
        source = msgspec.json.decode(note.read_bytes(), type=Source)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for seed, (kind, n) in enumerate(SAMPLES.items(), start=100):
            np.save(folder / f"{kind}.npy", zoo.noise(name, n, seed=seed))
        source = parse_source(zoo.network(name), workdir=folder)
        note.write_bytes(msgspec.json.encode(source))
    return Model(name=name, folder=folder, threads=threads, source=source, max_drop=max_drop)


def find_winner(model: Model, budget_s: float) -> Candidate:
    """Return what Alula's search finds."""
    machine, workdir = fingerprint(), model.folder / "search"
    workdir.mkdir(exist_ok=True)
    plan = SearchPlan(
        source=model.source,
        workdir=workdir,
        calibration=model.samples("calibration"),
        validation=model.samples("validation"),
        targets=None,
        metric=COSINE,
        max_drop=SEARCHED_SHARE * model.max_drop,
        recipes=offered_recipes(machine.isa),
        threads=model.threads,
        saturating=int8_class(machine.isa) == "saturating",
        budget_s=budget_s,
        closing_s=0.0,
        memory_limit_bytes=memory_limit_bytes(),
    )
    result = search(plan, journal=Journal(workdir / "search.jsonl"), report=output.say)
    return result.finalists[0].accepted.candidate


def prepare_ours(model: Model, known: Candidate | None, budget_s: float) -> Entry:
    """Return our winner, its artifact made."""
    started_s = time.monotonic()
    try:
        winner = known or find_winner(model, budget_s)
        model.workshop().artifact(winner.recipe)
    except AlulaError as error:
        return Entry(model=model.name, contender=OURS, stage="prepared", error=str(error))
    return Entry(
        model=model.name,
        contender=OURS,
        stage="prepared",
        recipe=winner.recipe.name,
        settings=winner.settings,
        seconds=round(time.monotonic() - started_s, 1),
    )


def prepare_peer(model: Model, peer: str, olive_python: Path | None, look_s: float) -> Entry:
    """Return a peer with its best batch size, what it needs made."""
    started_s = time.monotonic()
    found: dict[int, float] = {}
    failure: str | None = None
    try:
        make(model, peer, olive_python)
    except EngineError as error:
        return Entry(model=model.name, contender=peer, stage="prepared", error=str(error))
    sizes = BATCH_SIZES[peer]
    for size in sizes if len(sizes) > 1 else ():
        try:
            with model.child(f"look-{peer}-{size}", peer=peer, batch_size=size) as child:
                looks = [
                    measure_round(child, model.samples("timed"), look_s, timeout_s=TIMEOUT_S)[0].per_s
                    for _ in range(2)
                ]
        except ChildError as error:
            failure = str(error)
            continue
        found[size] = max(looks)
        output.say(f"  {peer}, batch {size}: {found[size]:,.1f} samples/s")
    if len(sizes) > 1 and not found:
        return Entry(model=model.name, contender=peer, stage="prepared", error=failure)
    return Entry(
        model=model.name,
        contender=peer,
        stage="prepared",
        batch_size=max(found, key=lambda size: found[size]) if found else sizes[0],
        seconds=round(time.monotonic() - started_s, 1),
    )


def make(model: Model, peer: str, olive_python: Path | None) -> None:
    """Make what a peer needs before it can run.

    Raises:
        EngineError: it cannot be made.
    """
    here = (peer, str(model.folder), "1", str(model.threads))
    if peer not in {"torch-compile", "torchao-pt2e", OPTIMUM}:
        run_logged(model, peer, (sys.executable, str(HERE / "peers_child.py"), "prepare", *here))
    if peer in {OLIVE, OPTIMUM}:
        if olive_python is None:
            raise EngineError("no environment was given for it (--olive-python)")
        what = ("olive", "onnx/model.onnx") if peer == OLIVE else ("optimum", "module.pkl")
        files = (str(model.folder / what[1]), *model.samples("calibration"), str(model.folder / peer))
        script = str(HERE / "peers_olive.py")
        run_logged(model, peer, (str(olive_python), script, what[0], *files, str(model.threads)))


def run_logged(model: Model, peer: str, command: tuple[str, ...]) -> None:
    """Run a command to its end.

    Raises:
        EngineError: it failed or took too long.
    """
    log = model.folder / "logs" / f"make-{peer}.log"
    log.parent.mkdir(exist_ok=True)
    quiet = {"OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as file:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=PREPARATION_S,
                check=False,
                env=os.environ | quiet | {"OMP_NUM_THREADS": str(model.threads)},
            ).returncode
        except (subprocess.TimeoutExpired, OSError) as error:
            raise EngineError(f"its preparation did not end: {error}") from error
    if code != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise EngineError(f"its preparation failed: {lines[-1][:200] if lines else f'exit code {code}'}")


def reported(log: Path) -> str:
    """Return how a peer said that it runs."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.removeprefix("how: ") for line in reversed(lines) if line.startswith("how: ")), "")


def reference_outputs(model: Model, signature: Signature) -> np.ndarray:
    """Return the outputs of the module in eager PyTorch on the unseen noise."""
    path = model.folder / "reference.npy"
    if not path.exists():
        request = LoadModelRequest(
            source=model.source, signature=signature, settings=Settings(threads=model.threads, batch_size=8)
        )
        with model.child("reference") as child:
            child.ask(request, Loaded, timeout_s=TIMEOUT_S)
            predict(model, child, path)
    outputs: np.ndarray = np.load(path)
    return outputs


def predict(model: Model, child: Child, path: Path) -> None:
    """Write a contender's outputs on the unseen noise.

    Raises:
        ChildError: it failed.
    """
    request = PredictRequest(inputs=model.samples("held-out"), outputs=(str(path),))
    child.ask(request, Predicted, timeout_s=TIMEOUT_S)


def judged(model: Model, entry: Entry, reference: np.ndarray) -> Entry:
    """Return an entry with its accuracy."""
    outputs = np.load(model.folder / f"outputs-{entry.contender}.npy")
    exact, same = (
        compare(metric, targets=None, baseline=reference, candidate=outputs, max_drop=model.max_drop)
        for metric in (COSINE, AGREEMENT)
    )
    return msgspec.structs.replace(entry, cosine_drop=exact.drop, agreement=same.chosen)


def race(model: Model, prepared: dict[str, Entry], *, rounds: int, seconds: float) -> list[Entry]:
    """Return every contender's rounds, taken in turns, and its accuracy."""
    workshop = model.workshop()
    reference = reference_outputs(model, workshop.signature)
    entries = {name: msgspec.structs.replace(one, stage="raced") for name, one in prepared.items()}
    children: dict[str, Child] = {}
    used_cpu_s = 0.0

    def measurer(name: str) -> Callable[[float], Round]:
        def measure(length_s: float) -> Round:
            nonlocal used_cpu_s
            done, cpu_s = measure_round(children[name], model.samples("timed"), length_s, timeout_s=TIMEOUT_S)
            used_cpu_s += cpu_s
            return done

        return measure

    def lost(name: str, error: AlulaError) -> None:
        output.say(f"  {name}: {error}")
        entries[name] = msgspec.structs.replace(entries[name], error=str(error))

    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[float], Round]] = {}
        for name, entry in prepared.items():
            if entry.error is not None:
                continue
            try:
                children[name] = stack.enter_context(started(model, workshop, entry))
                predict(model, children[name], model.folder / f"outputs-{name}.npy")
                entries[name] = judged(model, entries[name], reference)
                measurer(name)(0.0)  # warms up
            except AlulaError as error:
                lost(name, error)
                continue
            calls[name] = measurer(name)
            how = reported(model.folder / "logs" / f"race-{name}.log")
            entries[name] = msgspec.structs.replace(entries[name], how=how)
        used_cpu_s = 0.0
        before, started_s = take_snapshot(), time.monotonic()
        output.say(f"{model.name}: {rounds} rounds of {len(calls)} contenders")
        done, dropped = interleave(calls, rounds=rounds, seconds=seconds)
        warnings = describe_disturbance(
            before, take_snapshot(), own_cpu_s=used_cpu_s, wall_s=time.monotonic() - started_s
        )
    for name, reason in dropped.items():
        lost(name, reason)
    for name, taken in done.items():
        entries[name] = msgspec.structs.replace(
            entries[name], per_s=throughput(taken).rounds_per_s, warnings=warnings
        )
    return list(entries.values())


def started(model: Model, workshop: Workshop, entry: Entry) -> Child:
    """Return a process that has loaded a contender, or does so at its first request.

    Raises:
        ChildError: our winner cannot be loaded.
    """
    if entry.recipe is None or entry.settings is None:
        return model.child(f"race-{entry.contender}", peer=entry.contender, batch_size=entry.batch_size or 1)
    recipe = Recipe.parse(entry.recipe)
    request = LoadRequest(
        recipe=recipe,
        artifact=str(workshop.artifact(recipe)),
        signature=workshop.signature,
        settings=entry.settings,
    )
    child = model.child(f"race-{entry.contender}")
    try:
        child.ask(request, Loaded, timeout_s=TIMEOUT_S)
    except ChildError:
        child.close()
        raise
    return child


def measure(name: str, record: Record, options: argparse.Namespace) -> None:
    """Do what is missing of one model, and write it down."""
    if record.entries(name, "raced"):
        output.say(f"{name}: known")
        return
    folder = options.peers.with_suffix(".work") / name
    # What failed is tried again: an environment may have been missing.
    earlier = record.entries(name, "prepared")
    prepared = {contender: entry for contender, entry in earlier.items() if entry.error is None}
    known = None if options.winner_from is None else winner_from(options.winner_from, name)
    ours = prepared.get(OURS)
    if ours is not None and ours.recipe is not None and known is None:
        known = Candidate(Recipe.parse(ours.recipe), ours.settings or Settings())
    if not (folder / "source.json").exists():
        prepared = {}  # what was made is gone
    model = open_model(name, folder, threads=thread_budget(options.threads), max_drop=options.max_drop)
    for contender in (OURS, *options.against):
        if contender in prepared:
            continue
        output.say(f"{name}: preparing {contender}")
        if contender == OURS:
            entry = prepare_ours(model, known, options.budget)
        else:
            entry = prepare_peer(model, contender, options.olive_python, options.look_seconds)
        if entry.error is not None:
            output.say(f"  {contender}: {entry.error}")
        record.append([entry])
        prepared[contender] = entry
    racing = {contender: prepared[contender] for contender in (OURS, *options.against)}
    record.append(race(model, racing, rounds=options.rounds, seconds=options.seconds))
    shutil.rmtree(folder)


def against_best(raced: dict[str, Entry], max_drop: float) -> tuple[str, Ratio] | None:
    """Return the best peer that counts, and how many times faster ours is; None if that cannot be told."""
    counted = {name: one for name, one in raced.items() if one.counts(max_drop)}
    ours = counted.pop(OURS, None)
    if ours is None or not counted:
        return None
    best = max(counted, key=lambda name: counted[name].middle_per_s)
    return best, ratio(ours.per_s, counted[best].per_s)


def speed_cell(entry: Entry | None, max_drop: float) -> str:
    """Return a contender's throughput; in brackets where it does not count."""
    if entry is None or not entry.per_s:
        return "-"
    speed = f"{entry.middle_per_s:,.1f}"
    return speed if entry.counts(max_drop) else f"({speed})"


def section(models: Iterable[str], record: Record, max_drop: float) -> str:
    """Return the results as Markdown."""
    rows, details, ratios, notes = [], [], [], list[str]()
    for model in models:
        raced = record.entries(model, "raced")
        if not raced:
            continue
        found = against_best(raced, max_drop)
        ours = raced.get(OURS)
        rows.append(
            (
                model,
                "-" if ours is None else ours.runs_with,
                *(speed_cell(raced.get(name), max_drop) for name in (OURS, *PEERS)),
                "not counted" if found is None else f"{found[1]}, {PEERS[found[0]]}",
            )
        )
        if found is not None:
            ratios.append(found[1].median)
        for name, one in raced.items():
            title = "Alula" if name == OURS else PEERS[name]
            if one.error is not None:
                details.append((model, title, f"takes no part: {one.error}", "", "", ""))
                continue
            details.append(
                (
                    model,
                    title,
                    one.runs_with,
                    speed_cell(one, max_drop),
                    f"{one.cosine_drop:.5f}" if one.cosine_drop is not None else "",
                    f"{one.agreement:.1%}" if one.agreement is not None else "",
                )
            )
        warnings = {text for one in raced.values() for text in one.warnings}
        notes += [f"- {model}: {text}" for text in sorted(warnings)]
    header = ("model", "our winner", "Alula, samples/s", *PEERS.values(), "ours / best peer (95 %)")
    lines = [output.table(header, rows, left=2), ""]
    lines += [
        "In brackets, and not counted: outputs on unseen noise lost more than "
        f"{max_drop:g} of their cosine with the FP32 module's.",
        "",
        output.table(
            ("model", "contender", "runs with", "samples/s", "cosine lost", "same answer"), details, left=3
        ),
        "",
        *notes,
        *([""] if notes else []),
    ]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(
            f"Against the best peer of each of {len(ratios)} models: geometric mean {mean:.2f}, "
            f"minimum {min(ratios):.2f}."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = (
        "resnet18,mobilenetv3_large_100,tf_efficientnet_b0_ns,eca_nfnet_l0,resnet50,"
        "tf_efficientnetv2_s_in21k,convnext_tiny,vit_small_patch16_224"
    )
    parser.add_argument("--models", type=output.names, default=output.names(default), help="of zoo.py")
    parser.add_argument(
        "--against", type=output.names, default=tuple(PEERS), metavar="PEERS", help="only these peers"
    )
    parser.add_argument("--budget", type=float, default=600.0, help="of our search, seconds (default 600)")
    parser.add_argument("--winner-from", type=Path, metavar="FILE", help="results that hold our winners")
    parser.add_argument(
        "--olive-python", type=Path, metavar="PATH", help="of Olive's and optimum's environment"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=HERE / "peers.jsonl",
        metavar="FILE",
        help="results (default: beside this script)",
    )
    parser.add_argument("--threads", type=int, help="thread budget (default: this machine's)")
    parser.add_argument("--max-drop", type=float, default=0.05, help="of the cosine (default 0.05)")
    parser.add_argument("--rounds", type=int, default=12, help="interleaved rounds (default 12)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one contender in a round (default 1)")
    parser.add_argument(
        "--look-seconds", type=float, default=1.0, help="of a look at a batch size (default 1)"
    )
    output.add_markdown_option(parser)
    options = parser.parse_args()
    for name in options.models:
        if name not in zoo.INPUT_SHAPES:
            parser.error(f"there is no model {name}; known are {', '.join(zoo.INPUT_SHAPES)}")
    for name in options.against:
        if name not in PEERS:
            parser.error(f"there is no peer {name}; known are {', '.join(PEERS)}")
    if options.winner_from is not None and not options.winner_from.exists():
        parser.error(f"--winner-from: there is no file {options.winner_from}")
    zoo.let_children_import_timm()
    record = Record(options.peers.resolve())
    options.peers = options.peers.resolve()
    for name in options.models:
        measure(name, record, options)
    output.publish(section(options.models, record, options.max_drop), markdown=options.markdown)


if __name__ == "__main__":
    main()
