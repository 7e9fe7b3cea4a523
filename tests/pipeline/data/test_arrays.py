"""Own data as arrays: what an .npz file or a function may hold, and hostile ones. What becomes of it is in test_own_data.py."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import find
from pipeline.data.arrays import source
from pipeline.data.spec import DataOptions, Samples, Source
from pipeline.errors import UserError
from pipeline.resolve import resolve

N = 24
LABELS = np.arange(N) % 3
GREY = np.random.default_rng(0).integers(0, 256, (N, 6, 5), dtype=np.uint8)  # (N, H, W)
RGB = np.random.default_rng(1).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)  # (N, H, W, C)
VECTORS = np.random.default_rng(2).normal(size=(N, 4))


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path / "own.npz", **arrays)
    return str(path / "own.npz")


def function(path: Path, body: str, *, takes: str = "") -> str:
    """Write `own` into a file of the name own.py, and return what names it."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    (path / "own.py").write_text(
        "import numpy as np\nx = np.random.default_rng(0).normal(size=(12, 3))\ny = np.arange(12) % 2\n"
        f"def own({takes}):\n{lines}\n"
    )
    return f"{path}/own.py:own"


def load(found: Source) -> Samples:
    return found.load(data_dir=Path("data"), seed=0)


def refusal(name: str, options: DataOptions | None = None) -> str:
    """Return the one sentence with which data is refused."""
    with pytest.raises(UserError) as raised:
        source(name, options or DataOptions())
    (message,) = raised.value.messages
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (RGB, np.moveaxis(RGB, 3, 1)),
        (np.moveaxis(RGB, 3, 1), np.moveaxis(RGB, 3, 1)),
        (VECTORS, VECTORS.astype(np.float32)),
        (VECTORS > 0, (VECTORS > 0).astype(np.float32)),
        (GREY[:, 0], GREY[:, 0].astype(np.float32)),
    ],
    ids=["HW", "1HW", "HW1", "HWC", "CHW", "vectors", "booleans", "bytes"],
)
def test_images_become_uint8_of_c_h_w_and_vectors_float32(tmp_path: Path, x: np.ndarray, expected: np.ndarray) -> None:
    found = source(npz(tmp_path, x=x, y=LABELS), DataOptions())
    samples = load(found)
    assert isinstance(samples.x, np.ndarray)
    assert np.array_equal(samples.x, expected) and samples.x.dtype == expected.dtype == found.spec.dtype
    assert found.spec.sample_shape == expected.shape[1:] and found.num_train == N and samples.split is None
    assert found.spec.value_range == ((0, 255) if expected.ndim == 4 else None) and not found.spec.any_size


@pytest.mark.parametrize(
    ("y", "task", "classes", "targets"),
    [
        (np.array(["b", "a", "c"] * 8), "multiclass", ("a", "b", "c"), ()),
        (np.array([b"b", b"a"] * 12), "binary", ("a", "b"), ()),
        (LABELS, "multiclass", ("0", "1", "2"), ()),
        (LABELS[:, None] * 5 - 5, "multiclass", ("-5", "0", "5"), ()),
        (LABELS > 0, "binary", ("False", "True"), ()),
        (LABELS * 0.5, "regression", (), ("0",)),
        (VECTORS[:, :2], "regression", (), ("0", "1")),
        (np.arange(N), "regression", (), ("0",)),
        ((VECTORS > 0).astype(int), "multilabel", (), ("0", "1", "2", "3")),
        (VECTORS > 0, "multilabel", (), ("0", "1", "2", "3")),
    ],
    ids=["text", "bytes", "few", "column", "bool", "floats", "two", "many", "labels", "bools"],
)
def test_the_task_follows_from_the_targets(tmp_path: Path, y: np.ndarray, task: str, classes: Any, targets: Any) -> None:
    found = source(npz(tmp_path, x=VECTORS, y=y), DataOptions())
    samples = load(found)
    spec = found.spec
    named = spec.targets or spec.classes if task == "multilabel" else spec.targets
    assert (spec.task, named) == (task, targets) and (task == "multilabel" or spec.classes == classes)
    if classes:
        assert samples.y.dtype == np.int64 and samples.y.shape == (N,)
        as_text = [v.decode() if isinstance(v, bytes) else str(v) for v in y.ravel()]
        assert [classes[k] for k in samples.y] == as_text
    else:
        assert samples.y.dtype == np.float32 and np.array_equal(samples.y, y.reshape(N, -1).astype(np.float32))


def test_a_task_that_is_asked_for_stands_above_what_the_targets_look_like(tmp_path: Path) -> None:
    name = npz(tmp_path, x=VECTORS, y=LABELS)
    assert source(name, DataOptions(task="regression")).spec.targets == ("0",)
    found = source(npz(tmp_path, x=VECTORS, y=LABELS + 1e7), DataOptions(task="multiclass"))
    assert found.spec.classes == ("10000000", "10000001", "10000002") and load(found).y.dtype == np.int64


def test_names_of_classes_and_of_targets_come_from_the_file(tmp_path: Path) -> None:
    found = source(npz(tmp_path, x=VECTORS, y=LABELS, classes=["cat", "dog", "cow", "none yet"]), DataOptions())
    assert found.spec.classes == ("cat", "dog", "cow", "none yet") and np.array_equal(load(found).y, LABELS)
    found = source(npz(tmp_path, x=VECTORS, y=VECTORS[:, :2], classes=np.array([b"height", b"width"])), DataOptions())
    assert found.spec.targets == ("height", "width")


@pytest.mark.parametrize(
    "names",
    [("x", "y", "x_val", "y_val", "x_test", "y_test"), ("X_train", "y_train", "X_valid", "y_valid", "X_test", "y_test"),
     ("x_train", "y_train", "x_validation", "y_validation", "x_test", "y_test")],
    ids=["plain", "keras", "validation"],
)  # fmt: skip
def test_splits_of_its_own_are_kept(tmp_path: Path, names: tuple[str, ...]) -> None:
    parts = [VECTORS[:12], LABELS[:12], VECTORS[12:18], LABELS[12:18], VECTORS[18:], LABELS[18:]]
    found = source(npz(tmp_path, **dict(zip(names, parts, strict=True))), DataOptions())
    samples = load(found)
    assert found.num_train == 12 and found.has_val_set and found.has_test_set and samples.split is not None
    assert samples.split.tolist() == ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    assert np.array_equal(samples.x, VECTORS.astype(np.float32)) and np.array_equal(samples.y, LABELS)


def test_a_class_keeps_its_number_in_all_splits(tmp_path: Path) -> None:
    found = source(
        npz(tmp_path, x=VECTORS[:12], y=np.array(["b", "c"] * 6), x_test=VECTORS[12:14], y_test=np.array(["c", "b"])),
        DataOptions(),
    )
    assert found.spec.classes == ("b", "c") and load(found).y.tolist() == [0, 1] * 6 + [1, 0]


HOSTILE: dict[str, dict[str, Any]] = {
    "no y": {"x": VECTORS},
    "nothing": {},
    "an unknown name": {"x": VECTORS, "y": LABELS, "weights": LABELS},
    "fewer targets": {"x": VECTORS, "y": LABELS[:5]},
    "a number": {"x": VECTORS, "y": 3},
    "no samples": {"x": VECTORS[:0], "y": LABELS[:0]},
    "x_val without y_val": {"x": VECTORS, "y": LABELS, "x_val": VECTORS},
    "y_val without x_val": {"x": VECTORS, "y": LABELS, "y_val": LABELS},
    "the same array twice": {"x": VECTORS, "y": LABELS, "x_train": VECTORS + 1},
    "another width in val": {"x": VECTORS, "y": LABELS, "x_val": VECTORS[:, :2], "y_val": LABELS},
    "scalars": {"x": VECTORS[:, 0], "y": LABELS},
    "five axes": {"x": RGB[:, None], "y": LABELS},
    "no features": {"x": VECTORS[:, :0], "y": LABELS},
    "no whole features": {"x": LABELS[:, None][:, :0], "y": LABELS},
    "images without pixels": {"x": GREY[:, :0], "y": LABELS},
    "scaled images": {"x": GREY / np.float32(255), "y": LABELS},
    "deep images": {"x": GREY.astype(np.uint16), "y": LABELS},
    "four channels": {"x": np.concatenate([RGB, RGB[..., :1]], 3), "y": LABELS},
    "complex": {"x": VECTORS * 1j, "y": LABELS},
    "texts": {"x": np.array([["a", "b"]] * N), "y": LABELS},
    "dates": {"x": VECTORS, "y": np.arange(N).astype("datetime64[D]")},
    "whole numbers beyond 2^24": {"x": np.full((N, 2), 2**24 + 1), "y": LABELS},
    "targets of three axes": {"x": VECTORS, "y": RGB},
    "complex targets": {"x": VECTORS, "y": LABELS * 1j},
    "no target at all": {"x": VECTORS, "y": VECTORS[:, :0]},
    "one class": {"x": VECTORS, "y": np.zeros(N, int)},
    "a label without a name": {"x": VECTORS, "y": LABELS, "classes": ["a", "b"]},
    "a negative label": {"x": VECTORS, "y": LABELS - 1, "classes": ["a", "b", "c"]},
    "the same name twice": {"x": VECTORS, "y": LABELS, "classes": ["a", "b", "a"]},
    "a single name": {"x": VECTORS, "y": LABELS, "classes": "a"},
}


@pytest.mark.parametrize("arrays", HOSTILE.values(), ids=HOSTILE)
def test_arrays_that_are_no_data_are_refused_in_one_sentence(tmp_path: Path, arrays: dict[str, Any]) -> None:
    name = npz(tmp_path, **arrays)
    assert refusal(name).startswith(f"dataset={name} ")


@pytest.mark.parametrize(
    ("y", "task"),
    [(np.array(["a", "b", "c"] * 8), "regression"), (VECTORS, "multiclass"), (VECTORS[:, 0], "binary"), (LABELS, "binary")],
    ids=["texts", "columns", "floats", "three"],
)
def test_a_task_that_does_not_fit_is_refused(tmp_path: Path, y: np.ndarray, task: str) -> None:
    name = npz(tmp_path, x=VECTORS, y=y)
    message = refusal(name, DataOptions(task=task))
    assert message.startswith(f"task={task} ") and name in message and "Leave --task out" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300], ids=str)
@pytest.mark.parametrize("where", ["x", "y"])
def test_what_is_not_finite_is_told_with_its_place(tmp_path: Path, bad: float, where: str) -> None:
    from pipeline.data.prepare import prepare

    arrays = {"x": VECTORS.copy(), "y": VECTORS[:, :1].copy()}
    arrays[where][7] = bad
    config = resolve({"model": "mlp", "dataset": npz(tmp_path, **arrays), "cache_dir": str(tmp_path / "cache")})
    with pytest.raises(UserError, match=r"^dataset=own has (inputs|targets) that are not finite, first in sample 7"):
        prepare(config)
    assert not list((tmp_path / "cache").glob("own-*/manifest.json"))


def _object_array(path: Path) -> None:
    np.savez(path, x=VECTORS, y=np.array([{"a": 1}] * N, dtype=object))


def _cut_off(path: Path) -> None:
    np.savez(path, x=VECTORS, y=LABELS)
    path.write_bytes(path.read_bytes()[:-300])


def _cut_within(path: Path) -> None:
    """A zip whose directory is whole, and whose member is not a whole array."""
    np.savez(path, x=VECTORS, y=LABELS)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:-20])


def _flipped(path: Path) -> None:
    np.savez(path, x=VECTORS, y=LABELS)
    content = bytearray(path.read_bytes())
    content[400] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [_object_array, _cut_off, _cut_within, _flipped, lambda path: path.write_bytes(b"PK\x03\x04 no zip"),
     lambda path: path.write_text("a,b\n1,2\n"), lambda path: path.write_bytes(b""), lambda path: path.mkdir()],
    ids=["objects", "cut off", "cut within", "flipped bit", "no zip", "text", "empty", "folder"],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "own.npz"
    write(path)
    message = refusal(str(path))
    assert message.startswith(f"dataset={path} cannot be read (")


def test_an_npy_and_a_file_that_is_nothing_are_told_what_there_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VECTORS)
    for name in ("x.npy", "none.pdf"):
        (tmp_path / "none.pdf").touch()
        assert refusal(str(tmp_path / name)).startswith(f"dataset={tmp_path / name} is no data that can be read. Give a folder")


GOOD = {
    "tuple": "return x, y",
    "list": "return [x, y]",
    "dict": "return {'x': x, 'y': y}",
    "nested lists": "return x.tolist(), y.tolist()",
    "torch tensors": "import torch\nreturn torch.tensor(x), torch.tensor(y)",
    "map-style data set": (
        "import torch\n"
        "return torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))"
    ),
    "own data set": (
        "class D:\n"
        "    def __len__(self):\n"
        "        return 12\n"
        "    def __getitem__(self, i):\n"
        "        return x[i], int(y[i])\n"
        "return D()"
    ),
}  # fmt: skip


@pytest.mark.parametrize("body", GOOD.values(), ids=GOOD)
def test_a_function_may_return_arrays_or_a_data_set(tmp_path: Path, body: str) -> None:
    found = source(function(tmp_path, body), DataOptions())
    samples = load(found)
    assert found.spec.name == "own-own" and found.spec.task == "binary" and len(found.digest) == 64
    np.testing.assert_allclose(samples.x, np.random.default_rng(0).normal(size=(12, 3)), rtol=1e-6)
    assert samples.y.tolist() == [0, 1] * 6


def test_names_of_classes_and_texts_come_from_a_function_too(tmp_path: Path) -> None:
    found = source(
        function(tmp_path, "return {'x': x, 'y': y, 'classes': ['no', 'yes'], 'x_test': x, 'y_test': y}"), DataOptions()
    )
    assert found.spec.classes == ("no", "yes") and found.has_test_set
    assert source(function(tmp_path, "return x, np.array(['a', 'b'])[y]"), DataOptions()).spec.classes == ("a", "b")


def test_pictures_of_pil_are_images(tmp_path: Path) -> None:
    body = "from PIL import Image\nreturn [(Image.new('RGB', (5, 4), (k, 0, 255)), k % 2) for k in range(12)]"
    found = source(function(tmp_path, body), DataOptions())
    assert found.spec.sample_shape == (3, 4, 5) and found.spec.dtype == "uint8"
    x = load(found).x
    assert isinstance(x, np.ndarray) and x[7, :, 0, 0].tolist() == [7, 0, 255]


def test_data_args_reach_the_function_and_shape_the_tensors(tmp_path: Path) -> None:
    from pipeline.data.prepare import prepared_folder

    name = function(tmp_path, "return x * scale, y", takes="scale=1.0")
    flags = {"model": "mlp", "dataset": name, "cache_dir": str(tmp_path)}
    plain, scaled = resolve(flags), resolve(flags | {"data_args": "scale=2"})
    twice = load(find(name, DataOptions(args='{"scale": 2}'))).x
    once = load(find(name)).x
    assert isinstance(twice, np.ndarray) and np.allclose(twice, 2 * np.asarray(once))
    assert prepared_folder(plain) != prepared_folder(scaled)


def test_what_a_function_returns_shapes_the_name_of_the_tensors(tmp_path: Path) -> None:
    first = source(function(tmp_path, "return x, y"), DataOptions()).digest
    assert source(function(tmp_path, "return x + 0, y + 0"), DataOptions()).digest == first
    assert source(function(tmp_path, "return x + 1e-9, y"), DataOptions()).digest != first


BAD = {
    "raises": "raise RuntimeError('no disk')",
    "asserts": "assert False",
    "ends the program": "import sys\nsys.exit(0)",
    "nothing": "return None",
    "a number": "return 3",
    "an array": "return x",
    "a text": "return 'data'",
    "three": "return x, y, y",
    "a generator": "return ((a, b) for a, b in zip(x, y))",
    "ragged rows": "return [[1, 2], [3]], [0, 1]",
    "objects": "return np.array([object()] * 12), y",
    "samples of other lengths": "return [(np.zeros(k + 1), 0) for k in range(12)]",
    "samples that are no pairs": "return [1, 2, 3]",
    "a data set of nothing": "return []",
    "an unknown name": "return {'x': x, 'y': y, 'z': y}",
    "a number as name": "return {1: x}",
    "scaled images": "return np.zeros((12, 4, 4)), y",
    "fewer targets": "return x, y[:5]",
    "dates": "return x, np.arange(12).astype('datetime64[D]')",
    "a deep recursion": "return own()",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_a_function_that_gives_no_data_is_refused_in_one_sentence(tmp_path: Path, body: str) -> None:
    name = function(tmp_path, body)
    message = refusal(name)
    assert message.startswith(f"dataset={name} ")


def test_a_function_that_raises_is_told_with_its_line(tmp_path: Path) -> None:
    assert "RuntimeError: no disk (own.py:5: `raise RuntimeError('no disk')`)" in refusal(
        function(tmp_path, "raise RuntimeError('no disk')")
    )


@pytest.mark.parametrize(
    ("takes", "args"), [("", '{"a": 1}'), ("size", "{}"), ("size=1", '{"siez": 2}')], ids=["none", "missing", "misspelt"]
)
def test_arguments_that_a_function_does_not_take_are_refused(tmp_path: Path, takes: str, args: str) -> None:
    message = refusal(function(tmp_path, "return x, y", takes=takes), DataOptions(args=args))
    assert message.startswith(f"data_args={args} does not fit dataset=")


@pytest.mark.parametrize(
    ("name", "text"),
    [("none.py:own", ""), ("own.py:nothing", "def own(): pass"), ("own.py:own", "def own(:"), ("own.py:own", "own = 3"),
     ("own.py:own", "import sys; sys.exit(3)\ndef own(): pass"), ("own.py:own", "import no_such_module\ndef own(): pass")],
    ids=["no file", "no function", "syntax", "a value", "ends the program", "an import"],
)  # fmt: skip
def test_a_file_without_the_function_is_refused_in_one_sentence(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "own.py").write_text(text)
    message = refusal(f"{tmp_path}/{name}")
    assert message.startswith(f"dataset={tmp_path}/{name} ")


def test_a_configuration_takes_own_arrays_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz(tmp_path, x=VECTORS, y=LABELS)
    function(tmp_path, "return x, y")
    monkeypatch.chdir(tmp_path)
    for name in ("own.npz", "own.py:own"):
        assert resolve({"model": "mlp", "dataset": name}).dataset == f"{tmp_path}/{name}"
