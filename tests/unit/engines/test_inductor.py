"""Compiling ahead of time: what is kept, what is refused, and what the libraries compute."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines import inductor, inductor_compile
from alula.engines.inductor import InductorEngine, InductorSession
from alula.errors import EngineError, EngineUnavailableError
from alula.export import export_module
from alula.hardware import Cpu, read_cpu

FP32 = Recipe("inductor", "fp32")
AOT = Recipe("inductor", "fp32", None, "aot")
FEATURES = 6


class Exponential(nn.Module):
    """(b, 2, 2) to (b, 2, 2), by an operator that compiled code asks PyTorch for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_exp(x) + 1.0


class Net(nn.Module):
    """(b, 6) to (b, 3), by products whose number makes a batch take long."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(FEATURES, 256)
        self.deep = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
        self.head = nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.deep(torch.relu(self.wide(x)))))


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 1, (count, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(2)
    return Net().eval()


@pytest.fixture(scope="module")
def export(net: Net, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signature]:
    folder = tmp_path_factory.mktemp("export")
    return folder, export_module(net, [samples(3)], target="exported", folder=folder).signature


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of libraries."""
    folder = tmp_path / "store"
    monkeypatch.setattr(inductor_compile, "_store", lambda: folder)
    return folder


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that were compiled for; the libraries are 1000 bytes of nothing."""
    made: list[int] = []

    def pretend(module: object, example: tuple[torch.Tensor, ...], folder: Path, options: object) -> None:
        made.append(len(example[0]))
        (folder / "model.so").write_bytes(bytes(1000))

    monkeypatch.setattr(inductor_compile, "_compile", pretend)
    return made


def agrees(session: InductorSession, net: Net, count: int) -> None:
    x = samples(count)
    (got,) = session.run((x,))
    with torch.no_grad():
        want = net(torch.from_numpy(x)).numpy()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_bf16_is_offered_only_where_the_cpu_has_it() -> None:
    names = [recipe.name for recipe in InductorEngine().recipes(["avx2", "avx512_vnni"])]
    assert names == ["inductor/fp32", "inductor/fp32-aot", "inductor/fp32-max-autotune"]
    assert Recipe("inductor", "bf16") in InductorEngine().recipes(["avx512_bf16"])


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineUnavailableError, match=r"no C\+\+ compiler `no-such-compiler`.*install g\+\+"):
        InductorEngine().version()


def test_unknown_knobs_are_refused_before_anything_is_compiled(
    export: tuple[Path, Signature], compilations: list[int]
) -> None:
    settings = Settings(knobs={"cpp_threads": 2})
    with pytest.raises(EngineError, match="no knob `cpp_threads`; known are none"):
        InductorEngine().load(export[0], recipe=FP32, signature=export[1], settings=settings)
    assert compilations == []


def test_the_same_library_is_compiled_once(
    export: tuple[Path, Signature],
    store: Path,
    compilations: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def folder(recipe: Recipe = FP32, batch_size: int = 4) -> Path:
        return inductor_compile.compiled_for_batch(export[0], recipe=recipe, batch_size=batch_size)

    first = folder()
    assert folder() == first
    assert compilations == [4]
    others = {folder(batch_size=5), folder(Recipe("inductor", "bf16"))}
    others.add(folder(Recipe("inductor", "fp32", None, "max-autotune")))
    here = read_cpu()
    other_cpu = msgspec.structs.replace(here, isa=(*here.isa, "avx9000"))
    monkeypatch.setattr(inductor_compile, "read_cpu", lambda: other_cpu)
    others.add(folder())
    assert len(others - {first}) == 4
    assert compilations == [4, 5, 4, 4, 4]
    assert {path.parent for path in others} == {store}
    assert sorted(path.name for path in store.iterdir()) == sorted(path.name for path in {first, *others})


def test_what_was_not_used_for_longest_goes_first(
    export: tuple[Path, Signature], store: Path, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1, 100))
    monkeypatch.setattr(inductor_compile, "STORE_BYTES", 2500)
    utime = inductor_compile.os.utime
    monkeypatch.setattr(inductor_compile.os, "utime", lambda path: utime(path, (tick := next(now), tick)))

    def folder(batch_size: int) -> Path:
        return inductor_compile.compiled_for_batch(export[0], recipe=FP32, batch_size=batch_size)

    one, two = folder(1), folder(2)
    assert folder(1) == one  # used again, and so younger than the other
    three = folder(3)
    assert set(store.iterdir()) == {one, three}
    monkeypatch.setattr(inductor_compile, "STORE_BYTES", 1)
    assert set(store.iterdir()) == {one, three}
    assert folder(2) == two
    assert set(store.iterdir()) == {two}
    assert compilations == [1, 2, 3, 2]


def test_compiling_is_told_with_its_time_and_needs_a_compiler_only_then(
    export: tuple[Path, Signature],
    store: Path,
    compilations: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = iter((100.0, 117.4))
    clock = SimpleNamespace(perf_counter=lambda: next(now))
    monkeypatch.setattr(inductor_compile, "time", clock)

    def folder(batch_size: int) -> Path:
        return inductor_compile.compiled_for_batch(export[0], recipe=FP32, batch_size=batch_size)

    made = folder(4)

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("alula")]

    assert told() == [
        f"inductor/fp32 was compiled for batches of 4 on this machine in 17 s; it is kept in {store}."
    ]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert folder(4) == made
    with pytest.raises(EngineUnavailableError, match=r"no C\+\+ compiler `no-such-compiler`"):
        folder(5)
    assert len(told()) == 1


def test_libraries_of_another_user_are_not_run(
    export: tuple[Path, Signature], store: Path, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = inductor_compile.os.getuid()
    monkeypatch.setattr(inductor_compile.os, "getuid", lambda: owner + 1)
    with pytest.raises(EngineError, match=r"belongs to another user.*Set TORCHINDUCTOR_CACHE_DIR"):
        inductor_compile.compiled_for_batch(export[0], recipe=FP32, batch_size=1)
    assert compilations == []


def test_a_full_disk_is_one_line_and_leaves_nothing(
    export: tuple[Path, Signature], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(module: object, example: object, folder: Path, options: object) -> None:
        (folder / "model.so").write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inductor_compile, "_compile", full)
    with pytest.raises(EngineError, match=r"cannot be made or found: .*No space left on device") as caught:
        InductorEngine().load(export[0], recipe=FP32, signature=export[1], settings=Settings())
    assert len(str(caught.value).splitlines()) == 1
    assert list(store.iterdir()) == []


def test_a_compiler_error_is_one_line(
    export: tuple[Path, Signature], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import CppCompileError

    def fail(*_: object, **__: object) -> str:
        output = (
            "In file included from a.cpp:1:\nb.h:3:10: fatal error: Python.h: No such file\n  3 |\nstopped."
        )
        raise CppCompileError(["g++", "-O3", "a.cpp"], output)

    monkeypatch.setattr(torch._inductor, "aot_compile", fail)
    with pytest.raises(EngineError) as caught:
        InductorEngine().load(export[0], recipe=FP32, signature=export[1], settings=Settings())
    assert str(caught.value) == (
        "Inductor could not compile the model: b.h:3:10: fatal error: Python.h: No such file"
    )
    assert list(store.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda made: {**made, "isa": [*made["isa"], "avx9000"]},
            r"sets that this one lacks: avx9000\. Use a recipe that is compiled where it is loaded",
            id="isa",
        ),
        pytest.param(
            lambda made: {**made, "arch": "vax"}, "was compiled for vax, and this CPU", id="architecture"
        ),
        pytest.param(lambda made: {**made, "sha256": "0"}, "is not what was compiled", id="changed"),
        pytest.param(lambda made: {**made, "torch": "0.4.1"}, r"with PyTorch 0\.4\.1; this is", id="torch"),
        pytest.param(
            lambda made: {"torch": 1}, "does not say what the library was compiled for", id="damaged"
        ),
        pytest.param(lambda made: None, "does not say what the library was compiled for", id="missing"),
    ],
)
def test_a_library_for_another_machine_is_refused_before_it_is_loaded(
    export: tuple[Path, Signature],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, object]], object],
    message: str,
) -> None:
    (tmp_path / "model.so").write_bytes(bytes(1000))
    made = change(msgspec.to_builtins(inductor._made_for(tmp_path)))
    if made is not None:
        (tmp_path / "made-for.json").write_bytes(msgspec.json.encode(made))
    loaded: list[Path] = []

    def load(folder: Path, *, instances: int) -> None:
        loaded.append(folder)

    monkeypatch.setattr(inductor, "load_library", load)
    with pytest.raises(EngineError, match=message):
        InductorEngine().load(tmp_path, recipe=AOT, signature=export[1], settings=Settings())
    assert loaded == []


def test_a_cpu_that_has_more_is_no_obstacle(
    export: tuple[Path, Signature], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.so").write_bytes(bytes(1000))
    here = inductor._made_for(tmp_path)
    (tmp_path / "made-for.json").write_bytes(msgspec.json.encode(here))
    richer: Cpu = msgspec.structs.replace(read_cpu(), isa=(*here.isa, "avx9000"))
    monkeypatch.setattr(inductor, "read_cpu", lambda: richer)
    with pytest.raises(EngineError, match="no library that this PyTorch can load"):
        InductorEngine().load(tmp_path, recipe=AOT, signature=export[1], settings=Settings())


@pytest.mark.parametrize("count", [3, 1, 2, 4, 9, 10])
def test_batches_of_any_size_run_in_pieces_of_the_one_compiled_for(count: int) -> None:
    sizes: list[int] = []

    class Doubling:
        """In place of a library: 2 x, and the sums of its rows."""

        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            sizes.append(len(x))
            return 2 * x, x.sum(1)

        def close(self) -> None:
            sizes.clear()

    signature = Signature((TensorSpec("x", "float32", ("b", FEATURES)),), ())
    session = InductorSession(Doubling(), signature=signature, settings=Settings(), batch_size=3)
    x = samples(count)
    doubled, sums = session.run((x,))
    np.testing.assert_array_equal(doubled, 2 * x)
    np.testing.assert_allclose(sums, x.sum(1), rtol=0, atol=1e-6)
    assert sizes == [3] * -(-count // 3)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run((x,))
    assert sizes == []


@pytest.fixture(scope="module")
def library(export: tuple[Path, Signature], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of `inductor/fp32-aot`."""
    artifact = tmp_path_factory.mktemp("aot")
    InductorEngine().build(export[0], artifact, recipe=AOT)
    return artifact


@pytest.fixture
def session(library: Path, export: tuple[Path, Signature]) -> Iterator[InductorSession]:
    settings = Settings(threads=1, instances=2, batch_size=3)
    session = InductorEngine().load(library, recipe=AOT, signature=export[1], settings=settings)
    yield session
    session.close()


@pytest.mark.slow
def test_a_library_runs_any_batch_and_needs_no_compiler(
    library: Path,
    export: tuple[Path, Signature],
    net: Net,
    compilations: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    session = InductorEngine().load(library, recipe=AOT, signature=export[1], settings=Settings(batch_size=3))
    for count in (3, 1, 2, 4, 50):
        agrees(session, net, count)
    session.close()
    assert compilations == []
    assert sorted(path.name for path in library.iterdir()) == ["made-for.json", "model.so"]


@pytest.mark.slow
def test_other_threads_go_on_while_a_library_computes(session: InductorSession) -> None:
    x = samples(200_000)  # half a second and more
    entered, finished = threading.Event(), threading.Event()

    def compute() -> None:
        entered.set()
        session.run((x,))
        finished.set()

    worker = threading.Thread(target=compute)
    worker.start()
    entered.wait()
    for _ in range(10):
        time.sleep(0)  # offers Python's lock; whoever keeps it while computing ends first
    overtaken = not finished.is_set()
    worker.join()
    assert overtaken


@pytest.mark.slow
def test_operators_that_only_pytorch_has(tmp_path: Path, store: Path) -> None:
    net = Exponential()
    x = np.random.default_rng(1).normal(0, 1, (3, 2, 2)).astype(np.float32)
    signature = export_module(net, [x], target="exported", folder=tmp_path).signature
    settings = Settings(instances=2, batch_size=2)
    session = InductorEngine().load(tmp_path, recipe=FP32, signature=signature, settings=settings)
    (folder,) = store.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.so"]
    (got,) = session.run((x,))
    np.testing.assert_allclose(got, scipy.linalg.expm(x) + 1.0, rtol=1e-5, atol=1e-5)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run((x,))
