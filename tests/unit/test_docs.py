"""The documents: links lead somewhere, options exist, code compiles, fields and examples are real."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import numpy as np
import pytest

from alula.bundle import DeclaredRung, EnsembleManifest, Manifest
from alula.core import Settings, Signature, TensorSpec
from alula.engines import Engine, engine_named, engine_names
from alula.errors import EngineError
from alula.features import PRESETS, parse_description
from alula.postprocess import parse_postprocessing
from alula.quantization import quantizer_names

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks")
    for path in folder.glob("*.md")
    if path.is_file()
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(path.read_text("utf-8")) if language in languages]


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """The fragments that a heading can be reached by, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def all_blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, text in enumerate(blocks(path, *languages), 1)
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), f"{path.name} links to {target}, which does not exist"
        if fragment:
            assert fragment in anchors(file), f"{path.name} links to {target}, and there is no such heading"


def commands() -> dict[str, Any]:
    """The click commands of `alula` by name."""
    import click

    cli = pytest.importorskip("alula.cli", reason="the command line is not there")
    groups = [value for value in vars(cli).values() if isinstance(value, click.Group)]
    assert groups, "alula.cli holds no click group"
    return dict(groups[0].commands)


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each `alula ...` line of a console block, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["alula"]:
            yield words[1:]


def test_command_lines_use_commands_and_options_that_exist() -> None:
    known = commands()
    seen = 0
    for path in DOCUMENTS:
        spans = re.findall(r"`(alula [a-z][^`]*)`", prose(path))
        for text in [*blocks(path, "console", "sh", "bash"), *spans]:
            for name, *words in command_lines(text):
                if not name.islower():  # `alula COMMAND --help` stands for all of them
                    continue
                seen += 1
                assert name in known, f"{path.name}: there is no command `alula {name}`"
                for option in (word.partition("=")[0] for word in words if word.startswith("-")):
                    assert option in {"--help", *options_of(known[name])}, (
                        f"{path.name}: alula {name} {option}"
                    )
    assert seen > 10


def test_options_in_the_text_exist() -> None:
    known = {"--help"}.union(*(options_of(command) for command in commands().values()))
    for path in DOCUMENTS:
        if path.parent.name == "benchmarks" or path.name == "CONTRIBUTING.md":
            continue  # these speak of options of scripts and tools, too
        for option in re.findall(r"`(--?[a-z][a-z-]*)[^`]*`", prose(path)):
            assert option in known, f"{path.name} names {option}"


def test_readme_lists_every_command_recipe_and_preset() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    recipes = [f"{name}/fp32" for name in engine_names() if engine_named(name).offered]
    for name in (*recipes, *quantizer_names(), *PRESETS):
        assert f"`{name}`" in readme, name
    for name in commands():
        assert f"`alula {name}" in readme, name


@pytest.mark.parametrize("text", all_blocks("python"))
def test_python_blocks_compile(text: str) -> None:
    compile(text, "<document>", "exec")


@pytest.mark.parametrize("text", all_blocks("toml"))
def test_toml_blocks_are_what_they_say(text: str) -> None:
    tables = tomllib.loads(text)
    if "project" in tables:
        assert tables["project"]["entry-points"]["alula.engines"]
    elif "step" in tables or "view" in tables:
        parse_postprocessing(text)
    elif "rung" in tables:
        assert msgspec.convert(tables["rung"], type=list[DeclaredRung])
    elif "type" in tables or "preset" in tables:
        parse_description(text)
    else:
        known = commands()
        for name, table in tables.items():
            missing = {f"--{key}" for key in table} - options_of(known[name])
            assert not missing, f"alula {name} has no {missing}"


def field_paths(kind: Any, prefix: str) -> Iterator[str]:
    """Yield the path of every field of a JSON document of this type, as the bundle format writes them."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind.__struct_config__.tag is not None:
            yield f"{prefix}.type".lstrip(".")
        for field in msgspec.structs.fields(kind):
            yield from field_paths(field.type, f"{prefix}.{field.encode_name}".lstrip("."))
    elif origin is tuple:
        yield from field_paths(arguments[0], f"{prefix}[]")
    elif origin is dict:
        yield from field_paths(arguments[1], f"{prefix}{{}}")
    elif arguments and origin is not None and any(_has_fields(argument) for argument in arguments):
        for argument in arguments:
            if _has_fields(argument):
                yield from field_paths(argument, prefix)
    else:
        yield prefix


def _has_fields(kind: Any) -> bool:
    inside = get_origin(kind) in (tuple, dict) or get_args(kind)
    return (isinstance(kind, type) and issubclass(kind, msgspec.Struct)) or bool(
        inside and (get_origin(kind) in (tuple, dict) or any(map(_has_fields, get_args(kind))))
    )


def test_bundle_format_lists_every_field_and_no_other() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([a-z_.\[\]{}0-9]+)` \|", text, re.MULTILINE))
    real = {path.replace("fallbacks[].", "chosen.") for path in field_paths(Manifest, "")}
    headings = {"input", "chosen", "fallbacks[]", "folder", "machine", "input.mel"}
    assert real - listed == set(), "not described"
    assert listed - real - headings == set(), "described, but there is no such field"


def test_the_format_of_ensembles_lists_every_field_and_no_other() -> None:
    text = (ROOT / "docs" / "ensembles.md").read_text("utf-8").partition("## Format")[2]
    listed = set(re.findall(r"^\| `([a-z_.\[\]{}0-9]+)` \|", text, re.MULTILINE))
    assert listed == set(field_paths(EnsembleManifest, ""))


def test_the_example_engine_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    (example,) = blocks(ROOT / "docs" / "writing-an-engine.md", "python")
    (tmp_path / "onnx_reference_engine.py").write_text(example, "utf-8")
    distribution = tmp_path / "alula_onnx_reference-1.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: alula-onnx-reference\nVersion: 1\n")
    (project,) = (tomllib.loads(text)["project"] for text in blocks_with_project())
    points = project["entry-points"]["alula.engines"]
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (distribution / "entry_points.txt").write_text(f"[alula.engines]\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = importlib.import_module("alula.engines")
    registry._targets.cache_clear()
    try:
        assert set(points) <= set(engine_names())
        engine = engine_named("onnx-reference")
    finally:
        registry._targets.cache_clear()
    assert isinstance(engine, Engine)
    assert engine.version() == onnx.__version__

    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "example",
        [helper.make_tensor_value_info("x", floats, ["b", 3])],
        [helper.make_tensor_value_info("y", floats, ["b", 3])],
    )
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, export / "model.onnx")
    (recipe,) = engine.recipes(())
    assert engine.export_format(recipe) == "onnx"
    assert engine.knobs(recipe, Settings()) == ()
    engine.build(export, artifact, recipe=recipe)
    signature = Signature(
        (TensorSpec("x", "float32", ("b", 3)),),
        (TensorSpec("y", "float32", ("b", 3)),),
    )
    session = engine.load(artifact, recipe=recipe, signature=signature, settings=Settings(batch_size=2))
    x = np.array([[-1, 0, 2], [3, -4, 5]], np.float32)
    (y,) = session.run((x,))
    assert np.array_equal(y, np.maximum(x, 0))
    with pytest.raises(EngineError, match="expected float32"):
        session.run((x.astype(np.float64),))
    session.close()
    session.close()
    for damage in (b"", b"no graph"):
        (artifact / "model.onnx").write_bytes(damage)
        with pytest.raises(EngineError, match="no readable ONNX file"):
            engine.load(artifact, recipe=recipe, signature=signature, settings=Settings())


def blocks_with_project() -> list[str]:
    texts = blocks(ROOT / "docs" / "writing-an-engine.md", "toml")
    return [text for text in texts if "project" in tomllib.loads(text)]
