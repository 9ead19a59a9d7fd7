"""Starting: the chosen recipe where it is right, a fallback with one warning where it is not."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.bundle import BundleWarning, fitted, read_manifest, start, verify
from alula.core import Settings
from alula.engines import engine_named, engine_names
from alula.engines.fake import FakeScript
from alula.errors import BundleError

SATURATING = ("sse4_2", "avx", "avx2")


def test_the_chosen_recipe_runs_without_a_warning(make, manifest, x) -> None:
    bundle = make.write(manifest)
    running = start(bundle, manifest, threads=1, here=manifest.machine)
    assert running.deployed.recipe == "fake/int8-static"
    assert running.passed_over == ()
    assert running.settings == Settings(threads=1, instances=1, batch_size=4)
    np.testing.assert_array_equal(running.session.run((x,))[0], x[:, :4])
    running.session.close()


def test_this_machine_is_read_when_none_is_given(make, describe, recipe) -> None:
    manifest = describe(recipe("fake/fp32", golden="chosen"))
    running = start(make.write(manifest), manifest)
    assert running.settings.total_threads >= 1


def fallback_used(bundle: Path, manifest, reason: str, *, here=None, **options) -> None:
    """Fail unless exactly one warning with the reason is given and the fallback runs."""
    here = manifest.machine if here is None else here
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        running = start(bundle, manifest, here=here, **options)
    assert [warning.category for warning in caught] == [BundleWarning]
    text = str(caught[0].message)
    assert text.startswith(
        f"birds.alula runs as {manifest.fallbacks[0].recipe} here, not as {manifest.chosen.recipe}: "
    )
    assert reason in text
    assert running.deployed == manifest.fallbacks[0]
    assert len(running.passed_over) == 1
    assert reason in running.passed_over[0]


def test_a_saturating_cpu(make, manifest) -> None:
    here = msgspec.structs.replace(manifest.machine, isa=SATURATING)
    fallback_used(make.write(manifest), manifest, "INT8 products saturate on this CPU", here=here)


def test_int8_for_saturating_cpus_runs_anywhere(make, manifest) -> None:
    tuned = msgspec.structs.replace(
        manifest, machine=msgspec.structs.replace(manifest.machine, isa=SATURATING)
    )
    running = start(make.write(tuned), tuned, here=tuned.machine)
    assert running.deployed.recipe == "fake/int8-static"
    assert start(make.write(tuned, name="b"), tuned, here=manifest.machine).passed_over == ()


def test_a_missing_engine(make, describe, recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    manifest = describe(recipe("onnxruntime/fp32", golden="chosen"), recipe("fake/fp32", golden="chosen"))
    fallback_used(make.write(manifest), manifest, "Install it with `pip install 'alula[onnxruntime]'`")


def test_an_engine_that_nobody_knows(make, describe, recipe) -> None:
    manifest = describe(recipe("tpu/fp32", golden="chosen"), recipe("fake/fp32", golden="chosen"))
    fallback_used(make.write(manifest), manifest, "There is no engine `tpu`")


@pytest.mark.parametrize("golden", ["twice", "chosen"])
def test_golden_outputs(make, describe, recipe, golden: str) -> None:
    manifest = describe(recipe("fake/fp32", golden=golden), recipe("fake/int8-static", golden="chosen"))
    bundle = make.write(manifest)
    if golden == "twice":
        fallback_used(
            bundle, manifest, "golden outputs of fake/fp32 differ by 0.5 here; expected at most 0.001"
        )
    else:
        assert start(bundle, manifest, here=manifest.machine).deployed.recipe == "fake/fp32"


def test_three_percent_are_rounding_for_int8_and_wrong_for_fp32(make, describe, recipe) -> None:
    manifest = describe(recipe("fake/fp32", golden="off"), recipe("fake/int8-static", golden="off"))
    fallback_used(make.write(manifest), manifest, "golden outputs of fake/fp32 differ by 0.029 here")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (FakeScript(fault="nan"), "golden outputs of fake/int8-static differ by nan here"),
        (FakeScript(fault="error"), "The fake engine failed"),
        (FakeScript(fault="error", fault_at="load"), "The fake engine failed"),
    ],
)
def test_a_recipe_that_fails_here(make, manifest, script: FakeScript, reason: str) -> None:
    bundle = make.write(manifest, scripts={"fake/int8-static": script})
    fallback_used(bundle, manifest, reason)


def test_outputs_of_another_shape(make, describe, recipe) -> None:
    manifest = describe(recipe("fake/fp32", golden="input_0"), recipe("fake/int8-static", golden="chosen"))
    fallback_used(make.write(manifest), manifest, "differ by inf here")


def test_code_is_not_run_without_trust(make, describe, recipe) -> None:
    manifest = describe(
        recipe("fake/fp32", golden="chosen", runs_code=True), recipe("fake/int8-static", golden="chosen")
    )
    bundle = make.write(manifest)
    fallback_used(bundle, manifest, "loading it runs code from the bundle; say that you trust it")
    assert start(bundle, manifest, here=manifest.machine, trust_code=True).passed_over == ()


def test_a_manifest_that_denies_running_code_is_not_believed(make, describe, recipe) -> None:
    manifest = describe(
        recipe("torchscript/fp32", golden="chosen", runs_code=False), recipe("fake/fp32", golden="chosen")
    )
    fallback_used(make.write(manifest), manifest, "loading it runs code from the bundle")


class LoadedError(Exception):
    """An artifact was about to be loaded."""


@pytest.mark.parametrize("first", [True, False], ids=["chosen", "fallback"])
@pytest.mark.parametrize("engine", [name for name in engine_names() if engine_named(name).runs_code])
def test_a_forged_manifest_runs_no_code_without_trust(
    make, describe, recipe, monkeypatch: pytest.MonkeyPatch, engine: str, first: bool
) -> None:
    """Files and hashes fit, and the manifest says that nothing here is code."""

    def load(*_: object, **__: object) -> None:
        raise LoadedError

    monkeypatch.setattr(type(engine_named(engine)), "load", load)
    forged = recipe(f"{engine}/fp32", golden="chosen", runs_code=False)
    wrong = recipe("fake/fp32", golden="twice")
    bundle = make.write(describe(forged, wrong) if first else describe(wrong, forged))
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    with pytest.raises(BundleError, match=f"{engine}/fp32: loading it runs code from the bundle"):
        start(bundle, manifest, here=manifest.machine)
    with pytest.raises(LoadedError):
        start(bundle, manifest, here=manifest.machine, trust_code=True)


def test_code_for_another_architecture(make, describe, recipe) -> None:
    manifest = describe(
        recipe("fake/fp32", golden="chosen", runs_code=True), recipe("fake/int8-static", golden="chosen")
    )
    here = msgspec.structs.replace(manifest.machine, arch="aarch64", isa=("asimd", "asimddp"))
    fallback_used(
        make.write(manifest),
        manifest,
        "it was made for x86_64; this machine is aarch64",
        here=here,
        trust_code=True,
    )


def test_no_recipe_is_left(make, describe, recipe) -> None:
    manifest = describe(
        recipe("fake/int8-static", golden="chosen"),
        recipe("torchscript/fp32", golden="chosen", runs_code=True),
        recipe("fake/fp32", golden="twice"),
    )
    here = msgspec.structs.replace(manifest.machine, isa=SATURATING)
    with pytest.raises(
        BundleError, match=r"birds\.alula: No recipe in it is right on this machine\."
    ) as caught:
        start(make.write(manifest), manifest, here=here)
    for reason in (
        "fake/int8-static: INT8 products saturate",
        "torchscript/fp32: loading it runs code",
        "golden outputs of fake/fp32 differ by 0.5",
    ):
        assert reason in str(caught.value)


def test_a_precision_that_nobody_knows(make, describe, recipe) -> None:
    manifest = describe(recipe("fake/fp8", golden="off"), recipe("fake/int8-static", golden="off"))
    fallback_used(make.write(manifest), manifest, "It names a recipe that this release does not know")


def test_another_number_of_golden_outputs(make, describe, recipe) -> None:
    chosen = msgspec.structs.replace(recipe("fake/fp32", golden="chosen"), golden=("chosen", "chosen"))
    manifest = describe(chosen, recipe("fake/int8-static", golden="chosen"))
    fallback_used(make.write(manifest), manifest, "gave 1 outputs; expected 2")


def test_golden_names_that_are_not_there(make, describe, recipe) -> None:
    manifest = describe(recipe("fake/fp32", golden="nowhere"))
    with pytest.raises(BundleError, match=r"golden\.npz: It lacks the arrays nowhere\."):
        start(make.write(manifest), manifest, here=manifest.machine)


@pytest.mark.parametrize(
    ("threads", "instances", "budget", "expected"),
    [
        (1, 2, 2, (1, 2)),
        (1, 2, 8, (1, 8)),
        (2, 2, 8, (2, 4)),
        (2, 2, 1, (1, 1)),
        (4, 2, 6, (4, 1)),
        (4, 1, 2, (2, 1)),
        (1, 1, 4, (4, 1)),
    ],
)
def test_fitted(threads: int, instances: int, budget: int, expected: tuple[int, int]) -> None:
    settings = Settings(threads=threads, instances=instances, batch_size=8, knobs={"spin": True})
    got = fitted(settings, budget, tuned_for=threads * instances)
    assert (got.threads, got.instances) == expected
    assert got.batch_size == 8
    # Knobs were chosen for the threads that there were, and may be impossible with others.
    assert got.knobs == ({"spin": True} if budget == threads * instances else {})


@pytest.mark.parametrize(
    ("threads", "instances", "budget", "expected"),
    [
        (1, 1, 8, (1, 1)),
        (1, 1, 4, (1, 1)),
        (2, 1, 16, (2, 1)),
        (2, 2, 5, (2, 2)),
        (2, 2, 3, (2, 1)),
        (4, 1, 2, (2, 1)),
    ],
)
def test_threads_that_were_left_idle_stay_idle(
    threads: int, instances: int, budget: int, expected: tuple[int, int]
) -> None:
    settings = Settings(threads=threads, instances=instances, knobs={"spin": True})
    got = fitted(settings, budget, tuned_for=8)
    assert (got.threads, got.instances) == expected
    assert got.knobs == ({"spin": True} if expected == (threads, instances) else {})


def test_fewer_threads_than_the_budget_run_as_they_were_measured(make, describe, recipe) -> None:
    chosen = recipe("fake/fp32", golden="chosen")
    settings = Settings(threads=1, instances=1, batch_size=1, knobs={"spin": False})
    manifest = describe(msgspec.structs.replace(chosen, settings=settings))
    assert manifest.machine.thread_budget == 2
    running = start(make.write(manifest), manifest, threads=2)
    running.session.close()
    assert running.settings == settings


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 128), st.integers(1, 128))
def test_fitted_never_exceeds_the_budget(threads: int, instances: int, budget: int, tuned_for: int) -> None:
    got = fitted(Settings(threads=threads, instances=instances), budget, tuned_for=tuned_for)
    assert 1 <= got.total_threads <= budget
