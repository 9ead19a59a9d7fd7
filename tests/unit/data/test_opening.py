"""Data sets in every form: folders, manifests, .npz, arrays, sequences, torch."""

import io
import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.data import Samples, memory, open_samples, split
from alula.errors import DataError, EngineUnavailableError, UsageError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def paths(samples: Samples, folder: Path) -> list[str]:
    return [item.path.relative_to(folder).as_posix() for item in samples.items if item.path is not None]


class TestFolders:
    def test_class_folders_in_sorted_order_with_extensions_in_any_case(self, tmp_path: Path) -> None:
        touch(tmp_path, "wren/a.WAV", "wren/deep/b.flac", "owl/c.Mp3", "Robin/d.ogg", "meta.csv", "owl/x.txt")
        touch(tmp_path, ".cache/e.wav", "owl/._c.wav", "__MACOSX/owl/f.wav")
        samples = open_samples(tmp_path)
        assert samples.kind == "audio"
        assert samples.task == "single-label"
        assert samples.labels == ("Robin", "owl", "wren")
        assert paths(samples, tmp_path) == ["Robin/d.ogg", "owl/c.Mp3", "wren/a.WAV", "wren/deep/b.flac"]
        assert samples.targets is not None
        assert samples.targets.dtype == np.int64
        assert samples.targets.tolist() == [0, 1, 2, 2]
        assert "4 audio files in 3 class folders" in samples.source
        assert not samples.targets.flags.writeable
        with pytest.raises(DataError, match="are audio files"):
            samples.array(0)

    def test_names_of_digits_are_sorted_as_names(self, tmp_path: Path) -> None:
        touch(tmp_path, "9/10.wav", "9/9.wav", "10/a/1.wav", "10/a-1.wav", "0/1.wav")
        samples = open_samples(tmp_path)
        assert samples.labels == ("0", "10", "9")
        assert paths(samples, tmp_path) == ["0/1.wav", "10/a/1.wav", "10/a-1.wav", "9/10.wav", "9/9.wav"]

    def test_given_order_may_have_classes_without_files(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/a.png", "dog/b.JPG")
        (tmp_path / "empty").mkdir()
        samples = open_samples(str(tmp_path), labels=["dog", "cow", "cat", "empty"])
        assert samples.labels == ("dog", "cow", "cat", "empty")
        assert samples.targets is not None
        assert samples.targets.tolist() == [2, 0]

    def test_class_folder_that_is_not_among_the_given_names(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/a.png", "dgo/b.png")
        with pytest.raises(
            DataError, match=r"`dgo` is not among the 2 given class names.*Did you mean `dog`"
        ):
            open_samples(tmp_path, labels=["cat", "dog"])

    def test_files_without_class_folders_have_no_labels(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png", "b.JPEG", "notes.txt")
        samples = open_samples(tmp_path)
        assert (samples.kind, samples.task, samples.targets, samples.labels) == ("image", None, None, None)
        assert len(samples) == 2

    def test_class_folders_of_arrays(self, tmp_path: Path) -> None:
        for name, value in (("a/0.npy", 1.0), ("b/0.npy", 2.0)):
            (tmp_path / name).parent.mkdir()
            np.save(tmp_path / name, np.full((2, 3), value))
        samples = open_samples(tmp_path)
        assert samples.kind == "array"
        (array,) = samples.array(1)
        np.testing.assert_array_equal(array, np.full((2, 3), 2.0))

    def test_mixed_kinds_name_both(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/x.wav", "b/y.png")
        with pytest.raises(DataError, match=r"mix of 1 audio files \(.*x\.wav.*\) and 1 image files"):
            open_samples(tmp_path)

    def test_nothing_readable(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/x.txt", "b/y.aac")
        with pytest.raises(DataError, match=r"found 2 files: .*\.aac.*Expected audio.*\.wav"):
            open_samples(tmp_path)

    def test_one_class_folder_with_nothing_readable(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/x.png", "b/y.txt", "c/z.png")
        (tmp_path / "d").mkdir()
        with pytest.raises(DataError, match="2 of 4 class folders: `b`, `d`"):
            open_samples(tmp_path)

    def test_files_beside_class_folders(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/x.png", "b/y.png", "loose.png")
        with pytest.raises(DataError, match=r"1 files lie beside the class folders, such as `loose\.png`"):
            open_samples(tmp_path)

    def test_names_of_outputs_make_no_classes_where_there_are_no_folders(self, tmp_path: Path) -> None:
        touch(tmp_path, "x.png", "y.png")
        samples = open_samples(tmp_path, labels=["cat", "dog"])
        assert len(samples) == 2
        assert samples.targets is None
        assert samples.labels is None

    def test_parts_of_a_data_set_are_not_classes(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/cat/x.png", "test/cat/y.png")
        with pytest.raises(DataError, match=r"`test`, `train` look like parts.*Pass one of them"):
            open_samples(tmp_path)

    def test_a_linked_file_is_in_the_group_of_its_target(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/x.png", "b/z.png")
        (tmp_path / "b" / "y.png").symlink_to(tmp_path / "a" / "x.png")
        x, y, z = open_samples(tmp_path).items
        assert x.group == y.group != z.group

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            open_samples(tmp_path / "nowhere")
        touch(tmp_path, "a.wav")
        with pytest.raises(DataError, match=r"file of type `\.wav`.*Expected a folder"):
            open_samples(tmp_path / "a.wav")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    touch(tmp_path, "a.wav", "sub/b.OGG", "c,d.mp3")
    return tmp_path


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "birds.csv"
    path.write_bytes(text.encode(encoding))
    return path


class TestManifests:
    def test_single_label_with_windows(self, recordings: Path) -> None:
        text = (
            'path,label,start_s,end_s,note\na.wav,wren,,5,x\na.wav,owl,5,,"y\nz"\n\n"c,d.mp3",wren,1.5,2,\n'
        )
        samples = open_samples(manifest(recordings, text))
        assert (samples.kind, samples.task, samples.labels) == ("audio", "single-label", ("owl", "wren"))
        assert samples.targets is not None
        assert samples.targets.tolist() == [1, 0, 1]
        assert [(item.start_s, item.end_s) for item in samples.items] == [(0, 5), (5, None), (1.5, 2)]
        assert paths(samples, recordings) == ["a.wav", "a.wav", "c,d.mp3"]
        first, second, third = (item.group for item in samples.items)
        assert first == second != third

    def test_several_labels(self, recordings: Path) -> None:
        text = "path,label\na.wav,owl; wren\nsub/b.OGG,wren\na.wav,;\n"
        samples = open_samples(manifest(recordings, text))
        assert (samples.task, samples.labels) == ("multi-label", ("owl", "wren"))
        assert samples.targets is not None
        assert samples.targets.dtype == np.float32
        assert samples.targets.tolist() == [[1, 1], [0, 1], [0, 0]]

    def test_without_labels(self, recordings: Path) -> None:
        assert open_samples(manifest(recordings, "path\na.wav\n")).task is None
        assert open_samples(manifest(recordings, "path,label\na.wav,\nsub/b.OGG, \n")).task is None

    def test_byte_order_mark_spaces_and_line_ends(self, recordings: Path) -> None:
        text = "path, label\r\na.wav, Grünspecht\r\n"
        assert open_samples(manifest(recordings, text, "utf-8-sig")).labels == ("Grünspecht",)

    def test_numbers_are_sorted_as_numbers(self, recordings: Path) -> None:
        samples = open_samples(manifest(recordings, "path,label\na.wav,10\na.wav,9\na.wav,0\n"))
        assert samples.labels == ("0", "9", "10")

    def test_given_labels(self, recordings: Path) -> None:
        path = manifest(recordings, "path,label\na.wav,owl\n")
        samples = open_samples(path, labels=["wren", "owl"])
        assert samples.targets is not None
        assert samples.targets.tolist() == [1]
        with pytest.raises(DataError, match=r"birds\.csv: The label `owl` is not among"):
            open_samples(path, labels=["wren"])

    def test_absolute_paths_and_dots_are_one_group(self, recordings: Path) -> None:
        text = f"path\n{recordings / 'a.wav'}\n./sub/../a.wav\na.wav\n"
        assert len({item.group for item in open_samples(manifest(recordings, text)).items}) == 1

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "no column `path`; its columns are none"),
            ("path,label\n", "no rows"),
            ("Path,label\na.wav,x\n", "no column `path`.*Rename `Path` to `path`"),
            ("pth,label\na.wav,x\n", "Rename `pth` to `path`"),
            ("filename,label\na.wav,x\n", "Rename `filename` to `path`"),
            ("x,y\na.wav,x\n", "its columns are `x`, `y`"),
            ("path,lable\na.wav,x\n", "no column `label`.*Rename `lable` to `label`"),
            ("path,start,end_s\na.wav,1,2\n", "no column `start_s`.*Rename `start`"),
            ("path,label,label\na.wav,x,y\n", "column `label` is there 2 times"),
            ("path;label\na.wav;x\n", "Expected commas"),
            ("path,label\na.wav,x\nb.wav,x,y\n", r"line 3: Got 3 cells for 2 columns"),
            ("path,label\na.wav,x\n,x\n", r"line 3: The path is empty"),
            ('path,label\n"a.wav"b,x\n', "line 2: The line is not CSV"),
            ('path,label\n"a.wav,x\n', "The line is not CSV"),
            ("path,label\na.wav,x\nnone.wav,y\n", r"1 of 2 files do not exist: .*none\.wav` \(line 3\)\."),
            ("path\n1.wav\n2.wav\n3.wav\n4.wav\n", r"4 of 4.*1\.wav` \(line 2\).*3\.wav` .*and more\. Paths"),
            ("path,label\na.wav,x\na.wav,\n", "line 3: 1 of 2 rows have no label"),
            ("path,start_s\na.wav,soon\n", "line 2: `start_s` is `soon`. Expected seconds"),
            ("path,start_s\na.wav,-1\n", "line 2: `start_s` is `-1`"),
            ("path,end_s\na.wav,inf\n", "line 2: `end_s` is `inf`"),
            ("path,start_s,end_s\na.wav,5,5\n", "line 2: `end_s` is 5. Expected more than `start_s`, 5"),
            ("path\nnotes.txt\n", r"line 2: Got `notes\.txt`, a file of unknown kind"),
            ("path\na.wav\nb.png\n", "mix of 1 audio files .* and 1 image files"),
        ],
    )
    def test_errors_name_file_line_and_reason(self, recordings: Path, text: str, reason: str) -> None:
        path = manifest(recordings, text)
        with pytest.raises(DataError, match=f"(?s){reason}") as error:
            open_samples(path)
        assert str(error.value).startswith(str(path))

    def test_lines_are_counted_past_quoted_line_ends(self, recordings: Path) -> None:
        text = 'path,note,start_s\na.wav,"one\ntwo",0\na.wav,"x\ny",bad\n'
        with pytest.raises(DataError, match="line 4: `start_s`"):
            open_samples(manifest(recordings, text))

    def test_other_encodings(self, recordings: Path) -> None:
        with pytest.raises(DataError, match="not UTF-8"):
            open_samples(manifest(recordings, "path,label\na.wav,Grünspecht\n", "latin-1"))

    def test_times_belong_to_audio(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png")
        with pytest.raises(DataError, match="line 2: Got `start_s` or `end_s` for image files"):
            open_samples(manifest(tmp_path, "path,end_s\na.png,3\n"))

    def test_parquet_is_read_like_csv(self, recordings: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        path = recordings / "birds.Parquet"
        columns = {
            "path": ["a.wav", "sub/b.OGG"],
            "label": ["owl;wren", "wren"],
            "start_s": [0.0, float("nan")],
            "end_s": [None, 2.5],
            "other": [1, 2],
        }
        pq.write_table(pa.table(columns), path)
        samples = open_samples(path)
        assert samples.targets is not None
        assert samples.targets.tolist() == [[1, 1], [0, 1]]
        assert [(item.start_s, item.end_s) for item in samples.items] == [(0, None), (0, 2.5)]

        columns["label"] = [["owl", "wren"], []]  # type: ignore[list-item]
        pq.write_table(pa.table(columns), path)
        samples = open_samples(path)
        assert samples.targets is not None
        assert samples.targets.tolist() == [[1, 1], [0, 0]]

    def test_parquet_errors(self, recordings: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        path = recordings / "birds.parquet"
        pq.write_table(pa.table({"pathh": ["a.wav"]}), path)
        with pytest.raises(DataError, match="Rename `pathh`"):
            open_samples(path)
        pq.write_table(pa.table({"path": ["a.wav", None]}), path)
        with pytest.raises(DataError, match="row 2: The path is empty"):
            open_samples(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match="not a whole Parquet file"):
            open_samples(path)

    def test_parquet_without_pyarrow(self, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "pyarrow", None)
        touch(recordings, "birds.parquet")
        with pytest.raises(EngineUnavailableError, match=r"pip install 'alula\[parquet\]'"):
            open_samples(recordings / "birds.parquet")


class TestNpz:
    def saved(self, folder: Path, **arrays: Any) -> Path:
        path = folder / "data.NPZ"
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return path

    def test_class_indices_and_names(self, tmp_path: Path) -> None:
        x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        path = self.saved(tmp_path, x=x, y=np.array([0, 1, 1, 0], np.uint8), labels=np.array(["a", "b"]))
        samples = open_samples(path)
        assert (samples.kind, samples.task, samples.labels) == ("array", "single-label", ("a", "b"))
        assert samples.targets is not None
        assert samples.targets.dtype == np.int64
        assert len(samples) == 4
        (array,) = samples.array(2)
        np.testing.assert_array_equal(array, x[2])
        assert open_samples(path, labels=["c", "d"]).labels == ("c", "d")

    def test_several_inputs(self, tmp_path: Path) -> None:
        samples = open_samples(self.saved(tmp_path, x1=np.ones((3, 5)), x0=np.zeros((3, 2)), y=[1.5, 2, 3]))
        first, second = samples.array(0)
        assert (first.shape, second.shape) == ((2,), (5,))
        assert samples.task == "regression"

    @pytest.mark.parametrize(
        ("y", "task", "dtype"),
        [
            (np.array([0, 2, 1]), "single-label", "int64"),
            (np.array([True, False, True]), "single-label", "int64"),
            (np.array([[0, 1], [1, 1], [0, 0]]), "multi-label", "float32"),
            (np.array([[0, 1], [1, 1], [0, 0]], np.float64), "multi-label", "float32"),
            (np.array([[True], [False], [True]]), "multi-label", "float32"),
            (np.array([0.0, 1.0, 1.0]), "regression", "float32"),
            (np.array([[0.5, 1], [1, 1], [0, 0]]), "regression", "float32"),
            (np.zeros((3, 2, 2)), "regression", "float32"),
            (np.array(["b", "a", "b"]), "single-label", "int64"),
        ],
    )
    def test_what_labels_mean(self, tmp_path: Path, y: np.ndarray, task: str, dtype: str) -> None:
        samples = open_samples(self.saved(tmp_path, x=np.zeros((3, 1)), y=y))
        assert samples.targets is not None
        assert (samples.task, samples.targets.dtype.name) == (task, dtype)
        if y.dtype.kind == "U":
            assert samples.labels == ("a", "b")
            assert samples.targets.tolist() == [1, 0, 1]
        else:
            np.testing.assert_array_equal(samples.targets, y)

    @pytest.mark.parametrize(
        ("arrays", "reason"),
        [
            ({"X": np.zeros((3, 1))}, "no array `x`; it holds `X`"),
            ({}, "it holds nothing"),
            ({"x": np.array([{}, {}, {}], object)}, "no whole .npz of plain arrays: Object arrays"),
            ({"x": np.zeros((3, 1)), "y": np.zeros(2, int)}, r"labels of shape \(2,\) for 3 samples"),
            ({"x": np.zeros((3, 1)), "y": np.array(1)}, r"labels of shape \(\) for 3 samples"),
            ({"x": np.zeros((3, 1)), "y": np.array([0, -1, 0])}, "go from -1 to 0. Expected 0 and more"),
            ({"x": np.zeros((3, 1)), "y": np.array([0, 2, 0]), "labels": ["a", "b"]}, "0 to 1 for 2 class"),
            ({"x": np.zeros((3, 1)), "y": np.array([[0], [2], [0]])}, r"from 0 to 2.*y\[:, 0\]"),
            ({"x": np.zeros((3, 1)), "y": np.array([0, np.nan, 0])}, "NaN"),
            ({"x": np.zeros((3, 1)), "y": np.zeros((3, 2), int), "labels": ["a"]}, "2 columns for 1 class"),
            ({"x": np.zeros((3, 1)), "y": np.zeros(3, int), "labels": [1, 2]}, "`labels` must be text"),
            ({"x": np.array(3.0)}, r"arrays of shape \(\)"),
            ({"x": np.zeros((0, 2))}, r"arrays of shape \(0, 2\)"),
            ({"x0": np.zeros((3, 1)), "x1": np.zeros((2, 1))}, r"\(3, 1\), \(2, 1\)"),
            ({"x": np.array(["a", "b"])}, "dtype <U1"),
        ],
    )
    def test_errors(self, tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            open_samples(self.saved(tmp_path, **arrays))

    def test_damaged(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, x=np.zeros((3, 100)))
        whole = path.read_bytes()
        for content in (b"", b"text", whole[:100], whole[: len(whole) // 2], b"\x80\x04\x95cos\nsystem\n"):
            path.write_bytes(content)
            with pytest.raises(DataError, match=str(path)):
                open_samples(path)
        np.save(tmp_path / "single.npy", np.zeros(3))
        (tmp_path / "single.npy").rename(tmp_path / "single.npz")
        with pytest.raises(DataError, match="single array"):
            open_samples(tmp_path / "single.npz")

    @settings(max_examples=150, deadline=None)
    @given(
        edits=st.lists(
            st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5
        )
    )
    def test_damage_anywhere_gives_samples_or_a_data_error(
        self, tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, int]]
    ) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=np.arange(60.0).reshape(4, 15), y=np.arange(4))
        content = bytearray(buffer.getvalue())
        for place, value in edits:
            content[int(place * len(content))] = value
        path = tmp_path_factory.getbasetemp() / "fuzzed.npz"
        path.write_bytes(bytes(content))
        try:
            assert len(open_samples(path)) > 0
        except DataError:
            return

    def test_npy_has_no_labels(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
        samples = open_samples(tmp_path / "x.npy")
        assert (len(samples), samples.task) == (3, None)
        np.testing.assert_array_equal(samples.array(1)[0], [2, 3])


X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


class TestSequences:
    def test_arrays_without_labels(self) -> None:
        for source in (list(X), tuple(X), X):
            samples = open_samples(source)
            assert (samples.kind, samples.task, len(samples)) == ("array", None, 4)
            np.testing.assert_array_equal(samples.array(3)[0], X[3])

    def test_pairs(self) -> None:
        samples = open_samples([(X[0], 1), (X[1], np.int32(0)), (X[2], np.array(2)), (X[3], True)])
        assert samples.task == "single-label"
        assert samples.targets is not None
        assert samples.targets.tolist() == [1, 0, 2, 1]

    def test_names_arrays_and_numbers_as_labels(self) -> None:
        named = open_samples([(x, name) for x, name in zip(X, "abab", strict=True)], labels=["b", "a"])
        assert named.targets is not None
        assert named.targets.tolist() == [1, 0, 1, 0]
        assert open_samples([(x, np.array([0, 1])) for x in X]).task == "multi-label"
        assert open_samples([(x, 0.5) for x in X]).task == "regression"

    def test_several_inputs_in_order(self) -> None:
        inputs = (np.zeros(2), np.ones(3))
        for x in (inputs, list(inputs), {"b": inputs[0], "a": inputs[1]}):
            samples = open_samples([(x, 0)] * 4)
            assert [array.shape for array in samples.array(1)] == [(2,), (3,)]
        assert open_samples([(inputs,)] * 3).task is None
        assert open_samples([(inputs, None)] * 3).task is None
        assert [array.shape for array in open_samples([{"u": X[0], "v": X[1, 0]}] * 3).array(0)] == [
            (3, 2),
            (2,),
        ]

    def test_stacked_x_and_y(self) -> None:
        samples = open_samples((X, [0, 1, 1, 0]))
        assert samples.task == "single-label"
        assert len(samples) == 4
        several = open_samples(({"a": X, "b": X[:, 0]}, np.array([0, 1, 1, 0])))
        assert [array.shape for array in several.array(0)] == [(3, 2), (2,)]
        with pytest.raises(DataError, match=r"labels of shape \(3,\) for 4 samples"):
            open_samples((X, [0, 1, 1]))

    def test_scalars_per_sample_keep_being_arrays(self) -> None:
        (array,) = open_samples(np.arange(5.0)).array(2)
        assert isinstance(array, np.ndarray)
        assert array.shape == ()

    def test_index_is_checked(self) -> None:
        with pytest.raises(IndexError, match="from 0 to 3; got -1"):
            open_samples(X).array(-1)
        with pytest.raises(IndexError):
            open_samples(list(X)).array(4)

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ([], "empty"),
            ([X[0], X[1], (X[2], X[3], X[0])], "Got 3 values"),
            ([(X[0], 1), (X[1], None), (X[2], 1)], "1 of 3 samples have no label"),
            ([(X[0], [1]), (X[1], [1, 2]), (X[2], [1])], "different shapes"),
            ([[1.0, 2.0]] * 3, "Got float as x. Expected a NumPy array"),
            (["a.wav", "b.wav"], "Got str as x"),
            ([np.array([{}])] * 3, "dtype object"),
            ([()] * 3, "Got 0 values|no array"),
            ([((), 1)] * 3, "Got no array"),
        ],
    )
    def test_errors(self, source: Any, reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            for index in range(len(samples := open_samples(source))):
                samples.array(index)

    def test_number_of_inputs_must_agree(self) -> None:
        samples = open_samples([((X[0], X[1]), 0), ((X[0],), 1), ((X[0], X[1]), 0)])
        with pytest.raises(DataError, match=r"sample 1: Got 1 arrays\. Expected 2, as in sample 0"):
            samples.array(1)

    @pytest.mark.parametrize("source", [iter([X]), None, 3, b"bytes", {"x": X}])
    def test_other_types_are_refused(self, source: object) -> None:
        with pytest.raises(UsageError, match="`data` is of type"):
            open_samples(source)

    @pytest.mark.parametrize("labels", [[], ["a", "a"], "ab", [1, 2]])
    def test_bad_class_names(self, labels: Any) -> None:
        with pytest.raises(UsageError, match="`labels` must be"):
            open_samples([(x, 0) for x in X], labels=labels)

    def test_they_are_read_when_asked_for(self) -> None:
        class Recording(list[Any]):
            asked: list[int] = []  # noqa: RUF012

            def __getitem__(self, index: Any) -> Any:
                self.asked.append(index)
                return super().__getitem__(index)

        source = Recording(X)
        samples = open_samples(source)
        assert source.asked == [0]
        samples.array(2)
        assert source.asked == [0, 2]


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self) -> Any:
        return pytest.importorskip("torch")

    def test_tensors(self, torch: Any) -> None:
        assert len(open_samples(torch.from_numpy(X))) == 4
        samples = open_samples((torch.from_numpy(X).requires_grad_(), torch.tensor([0, 1, 1, 0])))
        assert samples.task == "single-label"
        np.testing.assert_array_equal(samples.array(3)[0], X[3])
        (half,) = open_samples([torch.ones(2, dtype=torch.bfloat16)] * 3).array(0)
        assert half.dtype == np.float32

    def test_dataset_is_read_on_demand(self, torch: Any) -> None:
        asked: list[int] = []

        class Lazy(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
            def __len__(self) -> int:
                return 7

            def __getitem__(self, index: int) -> Any:
                asked.append(index)
                return torch.full((2,), float(index)), index % 2

        samples = open_samples(Lazy())
        assert samples.targets is not None
        assert samples.targets.tolist() == [0, 1, 0, 1, 0, 1, 0]
        asked.clear()
        np.testing.assert_array_equal(samples.array(5)[0], [5, 5])
        assert asked == [5]

    def test_long_datasets_are_spread_evenly(self, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("alula.data.opening.MAX_LABELLED", 5)
        dataset = torch.utils.data.TensorDataset(torch.arange(20.0), torch.arange(20) // 4)
        samples = open_samples(dataset)
        assert samples.targets is not None
        assert samples.targets.tolist() == [0, 1, 2, 3, 4]
        assert [float(samples.array(index)[0]) for index in range(5)] == [0, 4, 8, 12, 16]
        assert "5 of 20 samples, evenly spread" in samples.source

    def test_loader_is_unbatched(self, torch: Any) -> None:
        data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.tensor([2, 1, 0, 1]))
        samples = open_samples(torch.utils.data.DataLoader(data, batch_size=3))
        assert len(samples) == 4
        assert samples.targets is not None
        assert samples.targets.tolist() == [2, 1, 0, 1]
        for index in range(4):
            np.testing.assert_array_equal(samples.array(index)[0], X[index])
        unlabelled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X)))
        assert open_samples(unlabelled).task is None

    def test_loader_with_several_inputs_and_names(self, torch: Any) -> None:
        pairs = [((x, x[0]), name) for x, name in zip(torch.from_numpy(X), "abba", strict=True)]
        samples = open_samples(torch.utils.data.DataLoader(pairs, batch_size=2))
        assert samples.labels == ("a", "b")
        assert [array.shape for array in samples.array(0)] == [(3, 2), (2,)]
        mapped = torch.utils.data.DataLoader([{"u": x, "v": x[0]} for x in torch.from_numpy(X)], batch_size=4)
        assert [array.shape for array in open_samples(mapped).array(3)] == [(3, 2), (2,)]

    def test_loader_stops_at_the_limit(self, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "MAX_KEPT_BYTES", 2 * X[:2].nbytes)

        def endless() -> Iterator[Any]:
            while True:
                yield torch.from_numpy(X[0]), 1

        class Endless(torch.utils.data.IterableDataset):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Iterator[Any]:
                return endless()

        samples = open_samples(torch.utils.data.DataLoader(Endless(), batch_size=2))
        assert len(samples) == 4
        assert "first 4 samples (the rest was not read" in samples.source
        stream = open_samples(Endless())
        assert len(stream) == 4
        assert stream.task == "single-label"

    def test_loader_errors(self, torch: Any) -> None:
        loader = torch.utils.data.DataLoader
        with pytest.raises(UsageError, match="Give it a `batch_size`"):
            open_samples(loader(list(X), batch_size=None))
        with pytest.raises(DataError, match="gave no batch"):
            open_samples(loader(torch.utils.data.TensorDataset(torch.zeros(0, 2))))
        with pytest.raises(DataError, match=r"batch 0: Got arrays of shape .* with 1 labels"):
            open_samples(loader(list(X), batch_size=2, collate_fn=lambda batch: (np.stack(batch), 3)))

    def test_dataset_without_length(self, torch: Any) -> None:
        class Bare(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
            def __getitem__(self, index: int) -> Any:
                return X[0]

        with pytest.raises(DataError, match="no length"):
            open_samples(Bare())

    def test_picture_objects_are_refused_with_the_way_out(self) -> None:
        from PIL import Image

        with pytest.raises(DataError, match=r"Got PIL\.Image\.Image as x.*transform of the data set"):
            open_samples([(Image.new("RGB", (2, 2)), 0)] * 3)


def test_windows_of_one_recording_stay_together(tmp_path: Path) -> None:
    rows = [
        f"{number}.wav,{'owl' if number % 2 else 'wren'},{start}" for number in range(9) for start in (0, 5)
    ]
    for number in range(9):
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(struct.pack("<h", 0) * 80)
    path = tmp_path / "m.csv"
    path.write_text("path,label,start_s\n" + "\n".join(rows), "utf-8")
    samples = open_samples(path)
    result = split(samples)
    calibrating = {samples.items[index].path for index in result.calibration}
    assert len(result.calibration) == 6
    assert not calibrating & {samples.items[index].path for index in result.validation}
