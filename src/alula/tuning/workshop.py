"""The search's workshop: exports and artifacts made once, each in a child process, and kept on disk.

A folder of work belongs to one model, one data set and one set of options (the caller sees to that). What
is finished has a note beside it; an interrupted search finds the notes and makes only what is missing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Signature
from alula.errors import EngineError, ModelError
from alula.export import copy_onnx
from alula.graphs import Products
from alula.hardware import writing
from alula.sources import Source
from alula.tuning.candidates import export_format_of
from alula.tuning.files import read_note, write_note
from alula.tuning.kinship import same_files
from alula.tuning.messages import (
    BuildRequest,
    Built,
    Counted,
    CountRequest,
    Described,
    DescribeRequest,
    ExportRequest,
)
from alula.tuning.process import Child, ChildError

__all__ = ["StepError", "Workshop", "file_name"]

_COUNTABLE: tuple[ExportFormat, ...] = ("onnx", "openvino", "exported")
COUNT_S = 30.0
# Quantizers with several recipes whose library takes seconds to import.
_KEPT = ("openvino/nncf",)
_KEPT_MEMORY_SHARE = 1 / 8  # of what a child process may use

Answer = TypeVar("Answer")


class StepError(EngineError):
    """A step of a recipe failed.

    Args:
        message: one readable line.
        reproduce: the command that repeats it.
        timed_out: whether it did not end in its time.
    """

    def __init__(self, message: str, reproduce: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.reproduce = reproduce
        self.timed_out = timed_out

    @classmethod
    def of(cls, error: ChildError, reproduce: str) -> Self:
        """Return what a child's error is for the recipe that it worked on."""
        return cls(str(error), reproduce, timed_out=error.timed_out)


class Workshop:
    """Makes exports and artifacts of one model. Not thread-safe.

    Args:
        source: the model.
        folder: for exports, artifacts, logs and notes; what an earlier search finished there is used.
        calibration: one `.npy` (n, ...) per model input.
        validation: the same, of other samples.
        threads: thread budget of every child process.
        saturating: whether INT8 products saturate on this CPU.
        memory_limit_bytes: of each child process.
        timeout_s: gives the seconds that a step may take now.
        report: gets lines of text about what is being done.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        calibration: tuple[str, ...],
        validation: tuple[str, ...],
        threads: int,
        saturating: bool,
        memory_limit_bytes: int,
        timeout_s: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        self.source = source
        self.folder = folder
        self.notes: list[str] = []
        self._calibration = calibration
        self._validation = validation
        self._threads = threads
        self._saturating = saturating
        self._memory_limit_bytes = memory_limit_bytes
        self._timeout_s = timeout_s
        self._report = report
        self._exports: dict[ExportFormat, Path] = {}
        self._failures: dict[ExportFormat, StepError] = {}
        self._artifacts: dict[Recipe, Path] = {}
        self._unmade: dict[Recipe, StepError] = {}
        self._keeping: contextlib.ExitStack | None = None
        self._kept: dict[str, Child] = {}
        self.signature = self._describe()

    def child(self, name: str, *, bound: bool = False) -> Child:
        """Return a new child process; use it in a `with` block.

        Args:
            name: what it is for.
            bound: whether it may run on as many CPUs as the budget has threads only.
        """
        return Child(
            self.folder / "logs",
            name,
            threads=self._threads,
            memory_limit_bytes=self._memory_limit_bytes,
            bound=bound,
        )

    @contextlib.contextmanager
    def keeping_processes(self) -> Iterator[None]:
        """In the block, keep processes of quantizers that are slow to import for their next artifacts."""
        with contextlib.ExitStack() as stack:
            self._keeping = stack
            try:
                yield
            finally:
                self._keeping = None
                self._kept.clear()

    def with_second_try(self, name: str, ask: Callable[[Child], Answer], *, bound: bool = False) -> Answer:
        """Return what a child process answers; ask another one should the first die.

        Args:
            name: what it is for.
            ask: called with the process.
            bound: see `child`.

        Raises:
            ChildError: the second one died too, or one reported a problem.
        """
        try:
            with self.child(name, bound=bound) as child:
                return ask(child)
        except ChildError as error:
            if not error.died:
                raise
            with self.child(f"{name}-again", bound=bound) as child:
                return ask(child)

    def _describe(self) -> Signature:
        note = self.folder / "described.json"
        known = read_note(note, Described)
        if known is not None:
            return known.signature
        self._report("reading the model")

        def ask(child: Child) -> Described:
            described = child.ask(
                DescribeRequest(source=self.source, samples=self._validation),
                Described,
                timeout_s=self._timeout_s(),
            )
            if self.source.kind == "onnx":
                self._count(child, "onnx", Path(self.source.spec))
            return described

        try:
            described = self.with_second_try("describe", ask)
        except ChildError as error:
            raise ModelError(str(error)) from error
        write_note(note, described)
        return described.signature

    def export(self, target: ExportFormat) -> Path:
        """Return the folder of an export, made on first use; an empty one for `module`.

        Raises:
            StepError: it cannot be made; said again at every later call unless it took too long.
        """
        if target in self._failures:
            raise self._failures[target]
        if target not in self._exports:
            try:
                self._exports[target] = self._made_export(target)
            except StepError as error:
                if not error.timed_out:  # another time there may be more of it
                    self._failures[target] = error
                raise
        return self._exports[target]

    def _made_export(self, target: ExportFormat) -> Path:
        folder, note = self.folder / "exports" / target, self.folder / "exports" / f"{target}.json"
        known = read_note(note, Described)
        if known is not None:
            self.notes += known.notes
            return folder
        _emptied(folder)
        if self.source.kind == "onnx":
            if target != "onnx":
                raise StepError("It needs a PyTorch module, and the model is an ONNX file.", "")
            with writing("the copy of the ONNX file", folder):
                copy_onnx(Path(self.source.spec), folder / ARTIFACT_FILES["onnx"])
            return folder
        if target == "module":
            return folder
        self._report(f"exporting to {target}")
        asked: list[str] = []

        def ask(child: Child) -> Described:
            asked.append(child.reproduce)
            described = child.ask(
                ExportRequest(
                    source=self.source, samples=self._calibration, target=target, folder=str(folder)
                ),
                Described,
                timeout_s=self._timeout_s(),
            )
            self._count(child, target, folder / ARTIFACT_FILES[target])
            return described

        try:
            described = self.with_second_try(f"export-{target}", ask, bound=True)
        except ChildError as error:
            raise StepError.of(error, asked[-1]) from error
        write_note(note, described)
        self.notes += described.notes
        return folder

    def products(self) -> tuple[Products, ...]:
        """Return the work of one sample by kind and role of layers; none where no export so far tells it."""
        counted = read_note(self._counted, Counted)
        return () if counted is None else counted.products

    @property
    def _counted(self) -> Path:
        return self.folder / "counted.json"

    def _count(self, child: Child, target: ExportFormat, path: Path) -> None:
        """Count what a child has just read or written, and keep that; why it cannot is only reported."""
        if target not in _COUNTABLE or self._counted.is_file():
            return
        request = CountRequest(target=target, path=str(path), samples=self._validation)
        try:
            counted = child.ask(request, Counted, timeout_s=min(COUNT_S, self._timeout_s()))
        except ChildError as error:
            self._report(f"the work of the model cannot be counted: {error}")
        else:
            write_note(self._counted, counted)

    def artifact(self, recipe: Recipe) -> Path:
        """Return the folder of a recipe's artifact, or of one with the same files; made on first use.

        Raises:
            StepError: it cannot be made.
        """
        if recipe not in self._artifacts:
            try:
                self._artifacts[recipe] = self._made_artifact(recipe)
            except StepError as error:
                if not error.timed_out:
                    self._unmade[recipe] = error
                raise
        return self._artifacts[recipe]

    def _made_artifact(self, recipe: Recipe) -> Path:
        for one in (recipe, *same_files(recipe)):
            folder, note = self._place(one)
            if read_note(note, Built) is not None:
                return folder
            if one != recipe and one in self._unmade:
                raise self._unmade[one]
        folder, note = self._place(recipe)
        export = self.export(export_format_of(recipe))
        _emptied(folder)
        request = BuildRequest(
            recipe=recipe,
            source=self.source,
            export=str(export),
            artifact=str(folder),
            calibration=self._calibration,
            signature=self.signature,
            saturating=self._saturating,
        )
        write_note(note, self._built(request))
        return folder

    def _built(self, request: BuildRequest) -> Built:
        """Ask a child process for an artifact: a new one, or one that is kept for this quantizer."""
        quantizer = f"{request.recipe.engine}/{request.recipe.quantizer}"
        name = f"build-{file_name(request.recipe)}"
        if self._keeping is None or quantizer not in _KEPT:
            with self.child(name, bound=True) as child:
                return self._asked(child, request)
        child, is_new = self._kept_child(quantizer, name)
        try:
            built = self._asked(child, request)
        except StepError as error:
            if is_new or child.alive or error.timed_out:
                raise
            # It may have died of what it made before; in a new process only of what is asked for.
            _emptied(Path(request.artifact))
            child, _ = self._kept_child(quantizer, name)
            built = self._asked(child, request)
        if child.resident_bytes > _KEPT_MEMORY_SHARE * self._memory_limit_bytes:
            child.close()
        return built

    def _kept_child(self, quantizer: str, name: str) -> tuple[Child, bool]:
        """Return the process that is kept for a quantizer, and whether it is a new one."""
        child = self._kept.get(quantizer)
        if child is not None and child.alive:
            child.begin(name)
            return child, False
        assert self._keeping is not None
        child = self._kept[quantizer] = self._keeping.enter_context(self.child(name, bound=True))
        return child, True

    def _asked(self, child: Child, request: BuildRequest) -> Built:
        try:
            return child.ask(request, Built, timeout_s=self._timeout_s())
        except ChildError as error:
            raise StepError.of(error, child.reproduce) from error

    def _place(self, recipe: Recipe) -> tuple[Path, Path]:
        """Return the folder of a recipe's artifact, and the note that it is finished."""
        folder = self.folder / "artifacts"
        return folder / file_name(recipe), folder / f"{file_name(recipe)}.json"


def file_name(recipe: Recipe) -> str:
    """Return a recipe's name as the name of a file.

    >>> file_name(Recipe("openvino", "int8", "nncf"))
    'openvino-int8-nncf'
    """
    return recipe.name.replace("/", "-")


def _emptied(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    with writing("a folder of the search", folder):
        folder.mkdir(parents=True)
