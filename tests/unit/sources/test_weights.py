"""Weights of every usual file and nesting land in the module; everything else is refused and explained."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from alula.errors import EngineUnavailableError, ModelError
from alula.sources import load_model, parse_source
from alula.sources.pickles import PickleScan, scan_checkpoint
from alula.sources.weights import load_weights

State = dict[str, torch.Tensor]


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


class Whole(nn.Module):
    """Not a class that anybody may unpickle."""


def blank() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def loads(path: Path, net: nn.Module) -> None:
    module = blank()
    load_weights(module, path)
    for (name, got), want in zip(module.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(got, want), name


def failure(path: Path, module: nn.Module | None = None, *, has_options: bool = False) -> str:
    with pytest.raises(ModelError) as error:
        load_weights(blank() if module is None else module, path, has_options=has_options)
    text = str(error.value)
    assert text.startswith(("Weights file `", "`"))
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_by_any_suffix(tmp_path: Path, net: nn.Module, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    loads(path, net)


@pytest.mark.parametrize("name", ["w.safetensors", "model.bin"])
def test_safetensors(tmp_path: Path, net: nn.Module, name: str) -> None:
    save_file(net.state_dict(), tmp_path / name)
    loads(tmp_path / name, net)


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best": 91.7},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "net": lambda s: {"net": s},
    "ema": lambda s: {"ema": {"module": s}},
    "module.": lambda s: {"state_dict": prefixed(s, "module.")},
    "model.": lambda s: prefixed(s, "model."),
    "_orig_mod.": lambda s: prefixed(s, "_orig_mod."),
    "nested prefixes": lambda s: prefixed(s, "module._orig_mod.model."),
    "compiled inside": lambda s: {n.replace("0.", "0._orig_mod."): t for n, t in s.items()},
    "beside a loss": lambda s: {"state_dict": prefixed(s, "model.") | {"loss.weight": torch.ones(3)}},
    "averaged model": lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(5)},
    "parameters": lambda s: OrderedDict(
        (n, nn.Parameter(t, requires_grad=False) if t.is_floating_point() else t) for n, t in s.items()
    ),
    "half": lambda s: {n: t.double() if t.is_floating_point() else t for n, t in s.items()},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_nesting_and_prefixes(tmp_path: Path, net: nn.Module, wrap: Callable[[State], object]) -> None:
    torch.save(wrap(dict(net.state_dict())), tmp_path / "w.pth")
    loads(tmp_path / "w.pth", net)


def test_a_prefix_that_the_model_has_itself_stays(tmp_path: Path, net: nn.Module) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = blank()

    torch.save(prefixed(dict(net.state_dict()), "model."), tmp_path / "w.pth")
    module = Wrapper()
    load_weights(module, tmp_path / "w.pth")
    assert torch.equal(module.model[0].weight, net.get_parameter("0.weight"))


def test_trained_weights_come_before_their_averages(tmp_path: Path, net: nn.Module) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    torch.save({"state_dict_ema": zeros, "state_dict": net.state_dict()}, tmp_path / "w.pth")
    loads(tmp_path / "w.pth", net)


def test_what_fits_wins_over_what_comes_first(tmp_path: Path, net: nn.Module) -> None:
    teacher = {"state_dict": {"big.weight": torch.ones(9)}, "model": net.state_dict()}
    torch.save(teacher, tmp_path / "w.pth")
    loads(tmp_path / "w.pth", net)


def test_batch_counts_may_be_missing(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()  # Says its version, by which torch knows that the count should be there.
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pth")
    loads(tmp_path / "w.pth", net)


def test_lazy_modules_take_their_shapes_from_the_file(tmp_path: Path, net: nn.Module) -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.LazyLinear(3))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    load_weights(lazy, tmp_path / "w.pth")
    assert torch.equal(lazy[3].weight, net.get_parameter("3.weight"))


def test_weights_of_the_source_are_loaded(
    tmp_path: Path, factory: Path, net: nn.Module, x: torch.Tensor
) -> None:
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    module = load_model(parse_source(f"{factory}:build", weights=tmp_path / "w.pth")).module
    assert module is not None
    torch.testing.assert_close(module(x), net(x), rtol=0, atol=0)


def test_missing_and_unexpected_names_are_counted(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    state["head.weight"] = state.pop("3.weight")
    state["head.bias"] = state.pop("3.bias")
    torch.save(state, tmp_path / "w.pth")
    text = failure(tmp_path / "w.pth")
    assert "2 of the model's 9 weights are not in the file (`3.weight`, `3.bias`)" in text
    assert "2 of the file's 9 are not in the model (`head.weight`, `head.bias`)" in text
    assert "Is `3.weight` what the file calls `head.weight`?" in text


def test_a_name_too_many_is_refused(tmp_path: Path, net: nn.Module) -> None:
    torch.save(dict(net.state_dict()) | {"head.weight": torch.ones(2)}, tmp_path / "w.pth")
    text = failure(tmp_path / "w.pth")
    assert "does not fit the model: 1 of the file's 10 are not in the model (`head.weight`). Check" in text


def test_long_lists_of_names_are_cut(tmp_path: Path) -> None:
    # No hint: the names are alike, but the shapes are not.
    torch.save({f"{i}.weights": torch.ones(1) for i in range(20)}, tmp_path / "w.pth")
    text = failure(tmp_path / "w.pth")
    assert "8 of the model's 9 weights are not in the file (`0.weight`, `0.bias`, `1.weight`, ...)" in text
    assert "20 of the file's 20 are not in the model (" in text
    assert text.endswith("Check that the file belongs to this architecture.")


@pytest.mark.parametrize(
    ("has_options", "expected"),
    [(False, "Build the model with 10 outputs."), (True, "Pass num_classes=10: `NAME?num_classes=10`.")],
)
def test_another_number_of_classes(tmp_path: Path, has_options: bool, expected: str) -> None:
    ten = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10))
    torch.save(ten.state_dict(), tmp_path / "w.pth")
    text = failure(tmp_path / "w.pth", has_options=has_options)
    assert (
        "2 differ in shape (`3.weight` has shape (10, 8) in the file and (3, 8) in the model; `3.bias`"
        in text
    )
    assert text.endswith(expected)


def test_another_number_of_input_channels(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 8, 3).state_dict(), tmp_path / "w.pth")
    text = failure(tmp_path / "w.pth", nn.Conv2d(3, 8, 3))
    assert text.endswith("Build the model with 1 input channels.")
    text = failure(tmp_path / "w.pth", nn.Conv2d(3, 8, 5))
    assert text.endswith("Check that the file belongs to this architecture.")


def test_what_a_loading_hook_raises_is_told(tmp_path: Path, net: nn.Module) -> None:
    module = blank()

    def refuse(*args: object) -> None:
        raise ValueError("this hook wants something else")

    module.register_load_state_dict_pre_hook(refuse)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert "loading raised ValueError: this hook wants something else" in failure(tmp_path / "w.pth", module)


def test_files_without_a_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "w.pth")
    text = failure(tmp_path / "w.pth")
    assert "holds no state dict: it is a dictionary with `epoch`, `lr`." in text
    torch.save([1, 2], tmp_path / "w.pth")
    assert "holds no state dict: it is a value of type list." in failure(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "needs"),
    [
        (argparse.Namespace(lr=0.1), "`argparse.Namespace`"),
        (np.float64(0.9), "multiarray.scalar`"),
        (np.ones(2), "multiarray._reconstruct`"),
    ],
)
def test_harmless_values_get_the_command_that_takes_them_out(
    tmp_path: Path, net: nn.Module, value: object, needs: str, zipped: bool
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": net.state_dict(), "args": value}, path, _use_new_zipfile_serialization=zipped)
    text = failure(path)
    assert needs in text
    assert "harmless values" in text
    command = text.partition("If you trust it, write once: `")[2].partition("`")[0]
    assert command == (
        "checkpoint = torch.load('w.pth', weights_only=False); torch.save(checkpoint['model'], 'weights.pth')"
    )


def test_the_way_out_works(tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"net": net.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    command = failure(tmp_path / "w.pth").partition("write once: `")[2].partition("`")[0]
    monkeypatch.chdir(tmp_path)
    exec(command, {"torch": torch})
    loads(tmp_path / "weights.pth", net)


def test_other_classes_are_named(tmp_path: Path, net: nn.Module) -> None:
    torch.save({"state_dict": net.state_dict(), "loss": Whole()}, tmp_path / "w.pth")
    text = failure(tmp_path / "w.pth")
    assert f"needs `{Whole.__module__}.Whole`" in text
    assert "would run their code. It was not read." in text


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_are_refused(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    torch.save(net, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    text = failure(tmp_path / "w.pth")
    assert "is a pickled object of class `torch.nn.modules.container.Sequential`, not a state dict." in text
    assert "torch.save(model.state_dict(), 'weights.pth')" in text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["zip", "legacy", "plain", "top"])
def test_hostile_pickles_are_never_run(tmp_path: Path, net: nn.Module, form: str, protocol: int) -> None:
    path, target = tmp_path / "w.pth", tmp_path / "pwned"
    value = {"state_dict": net.state_dict(), "extra": Attack(target)}
    if form in {"zip", "legacy"}:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(value if form == "plain" else Attack(target), protocol=protocol))
    with pytest.raises(ModelError) as error:
        load_weights(blank(), path)
    # Pickles of protocols 0 and 1 have no mark to know them by.
    if protocol >= 2 or form == "zip":
        assert "would call `posix.system`" in str(error.value)
        assert "attacks do" in str(error.value)
    with pytest.raises(ModelError) as error:
        parse_source(path)
    if protocol >= 2 or form == "zip":
        assert "would call `posix.system` when it is read. It was not read." in str(error.value)
    assert not target.exists()


def test_what_the_scan_misses_is_not_run_either(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": net.state_dict(), "extra": Attack(tmp_path / "pwned")}, tmp_path / "w.pth")
    monkeypatch.setattr("alula.sources.weights.scan_checkpoint", lambda file: PickleScan())
    text = failure(tmp_path / "w.pth")
    assert "cannot be read: " in text
    assert "posix.system" in text
    assert "weights_only" not in text  # torch's own advice would run it
    assert not (tmp_path / "pwned").exists()


def test_hidden_names_count_as_unknown() -> None:
    """A pickle that shuffles its stack cannot pass an import off as another."""
    # Pushes `posix`, `system`, then two decoys that it takes off again before it imports.
    names = [b"\x8c" + bytes([len(n)]) + n for n in (b"posix", b"system", b"torch", b"Size")]
    scan = scan_checkpoint(io.BytesIO(b"\x80\x04" + b"".join(names) + b"00\x93."))
    assert scan.needs == ("None.None",)


def test_damaged_files(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(ModelError, match="does not exist"):
        load_weights(blank(), path)
    path.touch()
    assert "is empty (0 bytes)" in failure(path)
    path.write_bytes(b"GIF89a, say")
    assert "is in no known model format" in failure(path)
    torch.save(net.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is cut off" in failure(path)
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-40])
    assert "cannot be read: " in failure(path)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    text = failure(tmp_path / "w.safetensors")
    assert "cannot be read: SafetensorError: " in text
    assert "copy or save it again" in text


def test_whole_models_as_weights(
    tmp_path: Path, net: nn.Module, save_torchscript: Callable[[nn.Module, Path], None]
) -> None:
    save_torchscript(net, tmp_path / "w.pt")
    text = failure(tmp_path / "w.pt")
    assert "is a whole model (torchscript). Pass it as MODEL, without --weights." in text


def test_missing_safetensors_comes_with_its_command(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(EngineUnavailableError, match="`safetensors` is not installed here"):
        load_weights(blank(), tmp_path / "w.safetensors")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(["zip", "legacy", "safetensors"]))
def test_random_damage_gives_errors_of_alula_only(
    tmp_path: Path, net: nn.Module, data: st.DataObject, form: str
) -> None:
    path = tmp_path / f"w.{form}"
    if form == "safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    content = bytearray(path.read_bytes())
    if form == "zip":
        # The archive's own checks would catch what is changed outside of the pickle.
        with zipfile.ZipFile(path) as archive:
            start = content.find(archive.read("w/data.pkl"))
    else:
        start = 0
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(start, min(start + 600, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 100]))])
    try:
        load_weights(blank(), path)
    except ModelError as error:
        assert "\n" not in str(error)
