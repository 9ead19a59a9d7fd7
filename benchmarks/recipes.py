"""Each recipe against eager PyTorch, in one interleaved run per model.

Every recipe is exported, built and run by Alula's own engines, each in its own process. A screening finds
each recipe's best settings (one instance with all threads, or one thread for each of many instances, at
each batch size), and eager PyTorch's best batch size, with all threads. Then eager PyTorch and all recipes
take turns for some rounds, one computing at a time; the ratio is the median of the ratios round by round,
with its 95 % bootstrap interval.

    python benchmarks/recipes.py [--models resnet50] [--recipes openvino/fp32,openvino/int8-nncf]
        [--batches 1,8,32] [--rounds 9] [--seconds 1] [--markdown FILE]

The weights are random (`zoo.py`) and the inputs are noise: times only, no accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import output
import zoo
from alula.core import ExportFormat, Recipe, Settings, Signature
from alula.engines import engine_named
from alula.hardware import fingerprint, int8_class, read_memory, thread_budget
from alula.measure import ratio, stability_warnings, throughput
from alula.quantization import quantizer_for
from alula.sources import Source, parse_source
from alula.tuning import (
    BATCH_SIZES,
    Child,
    ChildError,
    Comparison,
    LoadRequest,
    compare_speeds,
    offered_recipes,
)
from alula.tuning.comparison import measure_round
from alula.tuning.messages import (
    BuildRequest,
    Built,
    Described,
    DescribeRequest,
    ExportRequest,
    Loaded,
    LoadModelRequest,
)

MODELS = ("resnet50", "tf_efficientnet_b0_ns", "eca_nfnet_l0")
EAGER = "eager PyTorch"
USUAL_BATCH = 8
EAGER_USUAL = f"{EAGER}, batch {USUAL_BATCH}"
CALIBRATION_SAMPLES = 64
TIMED_SAMPLES = 128
TIMEOUT_S = 900.0
MEMORY_SHARE = 0.8
# A screening of one round each misleads where two settings are close; these many get a second one.
SECOND_LOOKS = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure and how.

    Attributes:
        recipes: to compare with eager PyTorch.
        batches: batch sizes to screen.
        threads: thread budget of each contender.
        screen_s: length of a screening round.
        rounds: of the interleaved comparison.
        seconds: of one contender in one of those.
    """

    recipes: tuple[Recipe, ...]
    batches: tuple[int, ...]
    threads: int
    screen_s: float
    rounds: int
    seconds: float

    @property
    def eager_settings(self) -> list[Settings]:
        """One instance with all threads, at each batch size."""
        return [Settings(threads=self.threads, batch_size=batch) for batch in self.batches]

    @property
    def settings(self) -> list[Settings]:
        """The whole grid."""
        narrow = [Settings(threads=1, instances=self.threads, batch_size=batch) for batch in self.batches]
        return self.eager_settings + (narrow if self.threads > 1 else [])


@dataclass
class Workshop:
    """A model's files and child processes, in one folder.

    Attributes:
        folder: for everything that is made.
        plan: what to measure.
        source: the model.
        calibration: noise for quantizers, one `.npy`.
        timed: other noise for timing, one `.npy`.
        losses: why a recipe takes no part, by name.
    """

    folder: Path
    plan: Plan
    source: Source
    calibration: tuple[str, ...]
    timed: tuple[str, ...]
    losses: dict[str, str] = field(default_factory=dict)
    _exports: dict[ExportFormat, Path] = field(default_factory=dict)

    def child(self, name: str) -> Child:
        """Return a new process."""
        return Child(
            self.folder / "logs",
            name.replace("/", "-").replace(" ", "-"),
            threads=self.plan.threads,
            memory_limit_bytes=memory_limit_bytes(),
        )

    def describe(self) -> Signature:
        """Return the model's signature.

        Raises:
            ChildError: the model fails on its own.
        """
        with self.child("describe") as child:
            request = DescribeRequest(source=self.source, samples=self.timed)
            return child.ask(request, Described, timeout_s=TIMEOUT_S).signature

    def build(self, recipe: Recipe, signature: Signature) -> Path:
        """Return the folder of a recipe's artifact.

        Raises:
            ChildError: it cannot be exported or built.
        """
        artifact = self.folder / "artifacts" / recipe.name.replace("/", "-")
        artifact.mkdir(parents=True)
        export = self._export(recipe)
        with self.child(f"build-{recipe}") as child:
            request = BuildRequest(
                recipe=recipe,
                source=self.source,
                export=str(export),
                artifact=str(artifact),
                calibration=self.calibration,
                signature=signature,
                saturating=int8_class(fingerprint().isa) == "saturating",
            )
            built = child.ask(request, Built, timeout_s=TIMEOUT_S)
        output.say(f"  {recipe}: built in {built.seconds:.1f} s")
        return artifact

    def _export(self, recipe: Recipe) -> Path:
        maker = quantizer_for(recipe) if recipe.precision == "int8" else engine_named(recipe.engine)
        target = maker.export_format(recipe)
        if target not in self._exports:
            folder = self.folder / "exports" / target
            folder.mkdir(parents=True, exist_ok=True)  # a second try after a failure finds the first one's
            with self.child(f"export-{target}") as child:
                request = ExportRequest(
                    source=self.source, samples=self.calibration, target=target, folder=str(folder)
                )
                child.ask(request, Described, timeout_s=TIMEOUT_S)
            self._exports[target] = folder
        return self._exports[target]

    def screen(
        self, name: str, requests: Sequence[LoadRequest | LoadModelRequest]
    ) -> LoadRequest | LoadModelRequest:
        """Return the fastest of several ways to run one thing.

        Raises:
            ChildError: none of them runs.
        """
        speeds: dict[int, list[float]] = {}
        failure: ChildError | None = None
        with self.child(f"screen-{name}") as child:

            def look(indices: Iterable[int]) -> None:
                nonlocal failure
                for index in indices:
                    try:
                        child.ask(requests[index], Loaded, timeout_s=TIMEOUT_S)
                        measured, _ = measure_round(
                            child, self.timed, self.plan.screen_s, timeout_s=TIMEOUT_S
                        )
                    except ChildError as error:
                        failure = error
                        continue
                    speeds.setdefault(index, []).append(measured.per_s)
                    settings = requests[index].settings
                    output.say(f"  {name} ({settings}): {measured.per_s:,.1f} samples/s")

            look(range(len(requests)))
            look(sorted(speeds, key=lambda index: -speeds[index][0])[:SECOND_LOOKS])
        if not speeds:
            assert failure is not None
            raise failure
        looked_at_twice = [index for index in speeds if len(speeds[index]) > 1] or list(speeds)
        return requests[max(looked_at_twice, key=lambda index: float(np.mean(speeds[index])))]


def memory_limit_bytes() -> int:
    """Return how much memory a child process may use."""
    return int(read_memory().available_bytes * MEMORY_SHARE) or 2**62


def open_workshop(name: str, folder: Path, plan: Plan) -> Workshop:
    """Build a model of the zoo once and write it and its inputs for child processes to read."""
    paths = []
    for index, (kind, n) in enumerate((("calibration", CALIBRATION_SAMPLES), ("timed", TIMED_SAMPLES))):
        paths.append(folder / f"{kind}.npy")
        np.save(paths[-1], zoo.noise(name, n, seed=100 + index))
    return Workshop(
        folder=folder,
        plan=plan,
        source=parse_source(zoo.network(name), workdir=folder),
        calibration=(str(paths[0]),),
        timed=(str(paths[1]),),
    )


def find_contenders(shop: Workshop) -> dict[str, LoadRequest | LoadModelRequest]:
    """Return eager PyTorch and every recipe that runs, by name, each at its best settings."""
    signature = shop.describe()
    eager = [
        LoadModelRequest(source=shop.source, signature=signature, settings=settings)
        for settings in shop.plan.eager_settings
    ]
    contenders = {EAGER: shop.screen(EAGER, eager)}
    # Eager PyTorch loses far more to large batches than other engines; both ways to compare are common.
    if contenders[EAGER].settings.batch_size != USUAL_BATCH:
        usual = [request for request in eager if request.settings.batch_size == USUAL_BATCH]
        contenders |= dict(zip([EAGER_USUAL], usual, strict=False))
    for recipe in shop.plan.recipes:
        try:
            artifact = str(shop.build(recipe, signature))
            ways = [
                LoadRequest(recipe=recipe, artifact=artifact, signature=signature, settings=settings)
                for settings in shop.plan.settings
            ]
            contenders[recipe.name] = shop.screen(recipe.name, ways)
        except ChildError as error:
            output.say(f"  {recipe}: failed: {error}")
            shop.losses[recipe.name] = str(error)
    return contenders


def section(
    name: str,
    contenders: dict[str, LoadRequest | LoadModelRequest],
    comparison: Comparison,
    losses: dict[str, str],
    plan: Plan,
) -> str:
    """Return one model's results as Markdown, the fastest first."""
    eager = [one.per_s for one in comparison.rounds[EAGER]]
    measured = {key: throughput(rounds) for key, rounds in comparison.rounds.items()}
    rows = []
    for key in sorted(measured, key=lambda key: -measured[key].per_s):
        gain = "1" if key == EAGER else str(ratio(measured[key].rounds_per_s, eager))
        rows.append((key, str(contenders[key].settings), f"{measured[key].per_s:,.1f}", gain))
    failures = {**losses, **{key: loss.error for key, loss in comparison.losses.items()}}
    rows += [(key, f"failed: {error}", "", "") for key, error in failures.items()]
    usual = measured.get(EAGER_USUAL)
    fastest = max(measured, key=lambda key: measured[key].per_s)
    against_usual = (
        []
        if usual is None
        else [
            "",
            f"Against eager PyTorch at batch {USUAL_BATCH}, the fastest gains "
            f"{ratio(measured[fastest].rounds_per_s, usual.rounds_per_s)}.",
        ]
    )
    shape = "x".join(map(str, zoo.INPUT_SHAPES[name]))
    lines = [
        f"### {name}, {shape}",
        "",
        output.table(("recipe", "settings", "samples/s", "ratio to eager (95 %)"), rows, left=2),
        "",
        f"{plan.rounds} interleaved rounds of {plan.seconds:g} s; batch sizes screened: "
        f"{', '.join(map(str, plan.batches))}; {plan.threads} threads.",
        *against_usual,
    ]
    warnings = list(comparison.warnings)
    if warnings:
        # Eager PyTorch's threads spin while they wait, and lose far more to a busy neighbour than others do.
        warnings.insert(
            0, "**Disturbed: the ratios are not to be trusted. Measure again on a quiet machine.**"
        )
    for key, rounds in comparison.rounds.items():
        warnings += [f"{key}: {text}" for text in stability_warnings(rounds, asked=plan.rounds)]
    return "\n".join([*lines, *([""] if warnings else []), *(f"- {text}" for text in warnings)])


def measure_model(name: str, plan: Plan) -> str:
    """Return the results of one model as Markdown.

    Raises:
        SystemExit: eager PyTorch itself failed.
    """
    output.say(f"{name}: building, screening")
    with tempfile.TemporaryDirectory(prefix="alula-benchmark-") as scratch:
        folder = Path(scratch)
        shop = open_workshop(name, folder, plan)
        try:
            contenders = find_contenders(shop)
        except ChildError as error:
            raise SystemExit(f"{name} does not run in eager PyTorch: {error}") from error
        output.say(f"{name}: {plan.rounds} rounds of {len(contenders)} contenders")
        comparison = compare_speeds(
            contenders,
            inputs=shop.timed,
            folder=folder / "logs",
            threads=plan.threads,
            memory_limit_bytes=memory_limit_bytes(),
            rounds=plan.rounds,
            round_s=plan.seconds,
            timeout_s=TIMEOUT_S,
        )
        if EAGER not in comparison.rounds:
            raise SystemExit(f"Eager PyTorch failed on {name}: {comparison.losses[EAGER].error}")
        return section(name, contenders, comparison, shop.losses, plan)


def chosen_recipes(wanted: tuple[str, ...] | None) -> tuple[Recipe, ...]:
    """Return the offered recipes of these names, or all.

    Raises:
        SystemExit: there is no such recipe.
    """
    offered = {recipe.name: recipe for recipe in offered_recipes(fingerprint().isa)}
    unknown = [name for name in wanted or () if name not in offered]
    if unknown:
        raise SystemExit(f"There is no recipe {', '.join(unknown)}; known are {', '.join(offered)}.")
    return tuple(offered[name] for name in wanted or offered)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=output.names, default=MODELS, help="of zoo.py")
    parser.add_argument("--recipes", type=output.names, help="only these (default: all offered)")
    parser.add_argument("--batches", type=output.sizes, default=BATCH_SIZES, help="default 1,8,32")
    parser.add_argument("--threads", type=int, help="thread budget (default: this machine's)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one contender in a round (default 1)")
    parser.add_argument(
        "--screen-seconds", type=float, default=0.8, help="of a screening round (default 0.8)"
    )
    output.add_markdown_option(parser)
    options = parser.parse_args()
    for name in options.models:
        if name not in zoo.INPUT_SHAPES:
            parser.error(f"there is no model {name}; known are {', '.join(zoo.INPUT_SHAPES)}")
    zoo.let_children_import_timm()
    plan = Plan(
        recipes=chosen_recipes(options.recipes),
        batches=options.batches,
        threads=thread_budget(options.threads),
        screen_s=options.screen_seconds,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    for name in options.models:
        output.publish(measure_model(name, plan), markdown=options.markdown)


if __name__ == "__main__":
    main()
