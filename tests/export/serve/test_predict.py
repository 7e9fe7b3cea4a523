"""`predict` answers as the trained model does, about whatever can be read, and tells what cannot."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import csv as arrow_csv
from pyarrow import feather, parquet

from export.module import export_module
from export.serve import model as models
from pipeline.cli import main
from pipeline.data import images
from pipeline.task import TASKS
from tests.export.conftest import Trained
from tests.export.serve.conftest import CLASSES, MakeOnnx

Said = pytest.CaptureFixture[str]


def _save(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _predict(onnx: Path, *inputs: object, output: str = "answers.csv", **flags: object) -> int:
    more = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    written = ["--output", output] if output else []
    return main(["predict", "--onnx", str(onnx), "--input", *map(str, inputs), *written, *more])


def _probabilities(rows: list[dict[str, str]]) -> np.ndarray[Any, Any]:
    return np.array([[float(value) for name, value in row.items() if name.startswith("p_")] for row in rows])


def test_images_are_answered_as_the_trained_model_does(exports: Callable[[str], Trained], tmp_path: Path) -> None:
    run = exports("cnn").run
    paths = [_save(tmp_path / f"{k}.png", 20 + k, 33 + 2 * k, seed=k) for k in range(9)]
    assert _predict(run.folder / "export" / "model.onnx", *paths) == 0
    x = np.stack([images.resize(images.decode(path, 1), run.data.sample_shape[-1]) for path in paths])
    _, probabilities, _ = export_module(run)(torch.from_numpy(x))
    rows = _rows(tmp_path / "answers.csv")
    assert [row["input"] for row in rows] == [str(path) for path in paths]
    assert list(rows[0]) == ["input", "prediction", "probability", *(f"p_{name}" for name in run.data.classes)]
    np.testing.assert_allclose(_probabilities(rows), probabilities.numpy(), atol=1e-6)
    assert [row["prediction"] for row in rows] == [run.data.classes[k] for k in probabilities.argmax(1)]
    assert [float(row["probability"]) for row in rows] == list(_probabilities(rows).max(axis=1))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_images_of_any_size_are_answered_in_their_order(make_onnx: MakeOnnx, tmp_path: Path, batch_size: int) -> None:
    onnx = make_onnx(side=8)
    sizes = [(8, 8), (30, 40), (1, 1), (30, 40), (100, 33), (8, 8), (30, 40)] * 3
    paths = [_save(tmp_path / "photos" / f"{k:02}.png", *size, seed=k) for k, size in enumerate(sizes)]
    assert _predict(onnx, tmp_path / "photos", batch_size=batch_size) == 0
    session = onnxruntime.InferenceSession(onnx)
    alone = [session.run(["probabilities"], {"input": images.decode(path, 3)[None]})[0][0] for path in paths]
    rows = _rows(tmp_path / "answers.csv")
    assert [row["input"] for row in rows] == [str(path) for path in paths]
    np.testing.assert_allclose(_probabilities(rows), alone, atol=1e-6)


def test_csv_jsonl_and_parquet_say_the_same(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    onnx = make_onnx(side=8)
    names = ["a,b.png", 'say "x".png', "ü\n.png"]
    paths = [_save(tmp_path / "photos" / name, 9, 12, seed) for seed, name in enumerate(names)]
    for ending in ("csv", "jsonl", "parquet"):
        more = {"top": 2} if ending == "jsonl" else {}
        assert _predict(onnx, tmp_path / "photos", output=f"answers.{ending}", **more) == 0
    rows = _rows(tmp_path / "answers.csv")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["input"] for row in rows] == [row["input"] for row in table] == [str(path) for path in paths]
    for row, line, stored in zip(rows, lines, table, strict=True):
        best = line.pop("top")
        assert (
            list(row) == list(line) == list(stored)
            and {n: str(v) for n, v in line.items() if n[0] != "p"}.items() <= row.items()
        )
        for name in row:
            if name.startswith("p_") or name == "probability":
                assert np.float32(row[name]) == np.float32(line[name]) == np.float32(stored[name])
        order = sorted(CLASSES, key=lambda name: -line[f"p_{name}"])[:2]
        assert best == [{"class": name, "probability": line[f"p_{name}"]} for name in order]


AGES, MEMBERS, CITIES = [20.0, None, 300.0, 5.0], [True, False, False, True], ["Rome", "Oslo", "", "NA"]
EXPECTED = [
    "dog",
    "cat",
    "cat",
    "a bird, or none",
]  # NA is a city, and one that is not known; age is filled with 40


def _table(**changes: Any) -> pa.Table:
    days = pa.array([0, 1, 2, 3], pa.int32()).cast(pa.date32())
    return pa.table({"id": [7, 8, 9, 10], "age": AGES, "member": MEMBERS, "since": days, "city": CITIES} | changes)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "feather"])
def test_a_table_is_answered_from_its_raw_columns(table_onnx: Path, tmp_path: Path, ending: str, capsys: Said) -> None:
    path = tmp_path / f"people.{ending}"
    if ending in ("csv", "tsv"):
        arrow_csv.write_csv(_table(), path, arrow_csv.WriteOptions(delimiter="\t" if ending == "tsv" else ","))
    else:
        {"parquet": parquet.write_table, "feather": feather.write_feather}[ending](_table(), path)
    assert _predict(table_onnx, path) == 0
    rows = _rows(tmp_path / "answers.csv")
    assert [row["input"] for row in rows] == ["1", "2", "3", "4"] and [row["prediction"] for row in rows] == EXPECTED
    scores = np.array([[0.2, 1, 1], [0.4, 0, 0], [3, 0, 0], [0.05, 1, 2]])
    np.testing.assert_allclose(_probabilities(rows), np.exp(scores) / np.exp(scores).sum(1, keepdims=True), atol=1e-6)
    told = capsys.readouterr().err
    assert "1 columns that the model does not take are passed over (id)" in told


def test_columns_that_are_missing_are_named_with_the_nearest(table_onnx: Path, tmp_path: Path, capsys: Said) -> None:
    arrow_csv.write_csv(_table().rename_columns(["id", "Age ", "member", "since", "place"]), tmp_path / "people.csv")
    assert _predict(table_onnx, "people.csv") == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "input=people.csv has no column age, which the model takes. Is it Age ? Then rename that.",
        "input=people.csv has no column city, which the model takes. Add it; values that are not known may be empty.",
    ]
    assert not (tmp_path / "answers.csv").exists()


def test_a_row_that_cannot_be_used_fails_and_the_rest_is_answered(table_onnx: Path, tmp_path: Path, capsys: Said) -> None:
    lines = [f"{k % 90},true,2024-01-05,Rome" for k in range(20_000)]
    lines[3], lines[15_000] = "young,true,2024-01-05,Rome", "30,perhaps,2024-01-05,Rome"
    (tmp_path / "people.csv").write_text("age,member,since,city\n" + "\n".join(lines))
    assert _predict(table_onnx, "people.csv") == 1
    told = capsys.readouterr().err
    assert "row 4 cannot be used: the column age holds 'young', which is not a number" in told
    assert "row 15001 cannot be used: the column member holds 'perhaps', which is not true or false" in told
    assert told.splitlines()[-1] == "2 of 20000 inputs failed"
    numbers = [int(row["input"]) for row in _rows(tmp_path / "answers.csv")]
    assert numbers == [k for k in range(1, 20_001) if k not in (4, 15_001)]


def test_a_table_that_is_cut_off_is_answered_as_far_as_it_goes(table_onnx: Path, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "ragged.csv").write_text("age,member,since,city\n20,true,2024-01-05,Rome\n20,true\n")
    parquet.write_table(_table(), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    parquet.write_table(_table(), tmp_path / "good.parquet")
    assert _predict(table_onnx, "ragged.csv", "cut.parquet", "good.parquet") == 1
    told = capsys.readouterr().err
    assert "ragged.csv is no whole csv file" in told or "ragged.csv cannot be read further" in told
    assert "cut.parquet is no whole parquet file" in told
    assert [row["input"] for row in _rows(tmp_path / "answers.csv")] == [f"good.parquet:{k}" for k in (1, 2, 3, 4)]


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "headless", "parquet"])
def test_vectors_come_as_arrays_or_as_columns_in_their_order(make_onnx: MakeOnnx, tmp_path: Path, kind: str) -> None:
    onnx = make_onnx(shape=(5,))
    x = np.random.default_rng(0).normal(size=(700, 5)).astype(np.float32)
    names = [f"column {k}" for k in range(5)]
    path = tmp_path / f"x.{'csv' if kind == 'headless' else kind}"
    if kind == "npy":
        np.save(path, x)
    elif kind == "npz":
        np.savez(path, x=x, y=np.zeros(700))
    elif kind == "parquet":
        parquet.write_table(pa.table(dict(zip(names, x.T, strict=True))), path)
    else:
        np.savetxt(path, x, delimiter=",", fmt="%.9g", header="" if kind == "headless" else ",".join(names), comments="")
    assert _predict(onnx, path) == 0
    expected = onnxruntime.InferenceSession(onnx).run(["probabilities"], {"input": x})[0]
    rows = _rows(tmp_path / "answers.csv")
    assert [row["input"] for row in rows] == [str(k) for k in range(1, 701)]
    np.testing.assert_allclose(_probabilities(rows), expected, atol=1e-6)


def test_arrays_of_images_are_answered(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 20, 10), dtype=np.uint8)
    np.save("x.npy", x)
    assert _predict(make_onnx(side=8), "x.npy") == 0 and len(_rows(tmp_path / "answers.csv")) == 6
    assert _predict(make_onnx(), "x.npy", overwrite="true") == 2  # this one takes 8x8 alone


def test_a_regression_has_a_column_for_each_target(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    np.save("x.npy", np.eye(4, 5, dtype=np.float32))
    assert _predict(make_onnx(of="regression", shape=(5,), outputs=2, targets=["price", "area"]), "x.npy") == 0
    assert list(_rows(tmp_path / "answers.csv")[0]) == ["input", "prediction_price", "prediction_area"]
    assert _predict(make_onnx(of="regression", shape=(5,), outputs=1), "x.npy", output="one.csv") == 0
    assert list(_rows(tmp_path / "one.csv")[0]) == ["input", "prediction"]


def test_several_labels_are_joined_and_have_no_single_probability(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32) * 30
    np.save("x.npy", x)
    onnx = make_onnx(of="multilabel", shape=(5,), targets=CLASSES)
    assert _predict(onnx, "x.npy") == 0
    rows = _rows(tmp_path / "answers.csv")
    assert list(rows[0]) == ["input", "prediction", *(f"p_{name}" for name in CLASSES)]
    scores = onnxruntime.InferenceSession(onnx).run(["logits"], {"input": x})[0]
    joined = [";".join(name for name, score in zip(CLASSES, row, strict=True) if score > 0) for row in scores]
    assert [row["prediction"] for row in rows] == joined and "" in joined and any(";" in text for text in joined)


def test_two_classes_are_decided_by_the_one_score(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    assert _predict(make_onnx(of="binary", shape=(5,), outputs=1, classes=["no", "yes"]), "x.npy") == 0
    rows = _rows(tmp_path / "answers.csv")
    assert {row["prediction"] for row in rows} == {"no", "yes"}
    assert all((float(row["p_yes"]) > 0.5) == (row["prediction"] == "yes") for row in rows)


def test_what_cannot_be_read_is_told_and_the_rest_is_answered(make_onnx: MakeOnnx, tmp_path: Path, capsys: Said) -> None:
    for k in range(30):
        _save(tmp_path / "photos" / f"{k:02}.png", 9, 9, seed=k)
        (tmp_path / "photos" / f"bad{k:02}.jpg").write_bytes(b"not a picture")
    (tmp_path / "photos" / "notes.txt").write_text("x")
    (tmp_path / "photos" / ".hidden.png").write_text("x")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    assert _predict(make_onnx(side=8), tmp_path / "photos") == 1
    told = capsys.readouterr().err.splitlines()
    assert sum("bad" in line for line in told) == 20
    assert told[0].endswith("1 files of other kinds are passed over (.txt: 1)")
    assert told[-2:] == ["... and 10 more", "30 of 60 inputs failed"]
    assert len(_rows(tmp_path / "answers.csv")) == 30


def test_where_nothing_can_be_read_nothing_is_written(make_onnx: MakeOnnx, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    (tmp_path / "answers.csv").write_text("kept")
    assert _predict(make_onnx(side=8), "bad.jpg", overwrite="true") == 2
    told = capsys.readouterr().err
    assert "input=bad.jpg: none of the 1 inputs could be answered. Nothing was written." in told
    assert (tmp_path / "answers.csv").read_text() == "kept"


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_a_failed_input(
    make_onnx: MakeOnnx, tmp_path: Path, capsys: Said, weight: float
) -> None:
    x = np.ones((5, 5), np.float32)
    x[2, 1] = weight
    np.save("x.npy", x)
    assert _predict(make_onnx(shape=(5,)), "x.npy") == 1
    assert "3 is answered with what is no number" in capsys.readouterr().err
    assert [row["input"] for row in _rows(tmp_path / "answers.csv")] == ["1", "2", "4", "5"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input", "x.png"], "onnx: nothing was given. Add --onnx FILE."),
        (["--onnx", "model.onnx"], "input: nothing was given. Add --input FILE or FOLDER."),
        (["--onnx", "nowhere.onnx", "--input", "x.png"], "onnx=nowhere.onnx is not a file. Give the path of an .onnx file."),
        (["--onnx", "text.onnx", "--input", "x.png"], "onnx=text.onnx cannot be loaded by onnxruntime ("),
        (["--onnx", "foreign.onnx", "--input", "x.png"], "its metadata lacks task, classes, input_shape, input_dtype. Give a"),
        (["--onnx", "odd.onnx", "--input", "x.png"], 'says of itself task="guess", which is not understood'),
        (["--onnx", "model.onnx", "--input", "nowhere.png"], "input=nowhere.png is not there. Give a file or a folder."),
        (["--onnx", "model.onnx", "--input", "t.csv"], "input=t.csv is nothing that this model takes: it takes images (.jpg,"),
        (["--onnx", "model.onnx", "--input", "empty"], "input=empty holds no file that this model takes (images"),
        (["--onnx", "model.onnx", "--input", "x.png", "--output", "a.xlsx"], "output=a.xlsx ends in none of .csv, .jsonl"),
        (["--onnx", "model.onnx", "--input", "x.png", "--output", "there.csv"], "output=there.csv is there already. Give"),
        (["--onnx", "model.onnx", "--input", "x.png", "--output", "x.png/a.csv"], "output=x.png/a.csv is a file, not a folder"),
        (["--onnx", "model.onnx", "--input", "x.png", "--output", "empty"], "output=empty is no file"),
        (["--onnx", "vector.onnx", "--input", "t.csv"], "input=t.csv has 2 columns, and the model takes 5 numbers"),
        (["--onnx", "model.onnx", "--input", "x.png", "--batch_size", "0"], "batch_size=0 is out of range"),
        (["--onnx", "model.onnx", "--input", "x.png", "--top", "2", "--output", "a.csv"], "top=2 has no effect on output="),
        (["--onnx", "model.onnx", "--input", "x.png", "--overwrite", "true"], "overwrite=true has no effect without --output"),
        (["--onnx", "model.onnx", "--input", "x\udcff"], "input=x\\udcff is not UTF-8"),
    ],
)  # fmt: skip
def test_a_mistake_gets_a_sentence_exit_2_and_leaves_nothing(
    words: list[str], said: str, make_onnx: MakeOnnx, tmp_path: Path, capsys: Said
) -> None:
    make_onnx(shape=(5,)).rename(tmp_path / "vector.onnx")
    make_onnx(task="guess").rename(tmp_path / "odd.onnx")
    make_onnx(side=8)
    (tmp_path / "text.onnx").write_text("hello")
    import onnx

    foreign = onnx.load(tmp_path / "model.onnx")
    foreign.ClearField("metadata_props")
    onnx.save(foreign, tmp_path / "foreign.onnx")
    _save(tmp_path / "x.png", 9, 9)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    assert main(["predict", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and told.count("\n") == 1, told
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "there.csv").read_text() == "kept"


def test_an_output_file_that_is_an_input_is_refused(make_onnx: MakeOnnx, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "t.csv").write_text("1,2,3,4,5\n")
    assert _predict(make_onnx(shape=(5,)), "t.csv", output="./t.csv", overwrite="true") == 2
    assert "output=./t.csv is an input as well" in capsys.readouterr().err
    assert (tmp_path / "t.csv").read_text() == "1,2,3,4,5\n"


def test_an_error_in_the_middle_leaves_the_old_file(
    make_onnx: MakeOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("x.npy", np.ones((9000, 5), np.float32))
    (tmp_path / "answers.csv").write_text("kept")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.serve.answers.columns", fails)
    assert _predict(make_onnx(shape=(5,)), "x.npy", overwrite="true") == 1
    assert (tmp_path / "answers.csv").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "model.onnx", "x.npy"]


def test_without_an_output_the_first_answers_are_shown(make_onnx: MakeOnnx, tmp_path: Path, capsys: Said) -> None:
    onnx = make_onnx(side=8)
    for k in range(30):
        _save(tmp_path / "photos" / f"{k:02}.png", 9, 9, seed=k)
    assert _predict(onnx, "photos/00.png", output="", top=2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("photos/00.png: ") and lines[1].startswith(f"  {lines[0][15:]}")
    assert _predict(onnx, "photos", output="") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["input", "prediction", "probability"] and len(lines) == 22
    assert lines[-1] == "these are the first 20; --output FILE.csv answers all"


def test_decisions_are_those_of_every_task() -> None:
    assert set(models._OUTPUTS) == set(TASKS)
    for name, kind in TASKS.items():
        scores = np.random.default_rng(0).normal(size=(50, 1 if name == "binary" else 4)).astype(np.float32)
        assert models._OUTPUTS[name] == kind.outputs[:2]
        assert (name in models._DECIDE) == kind.has_decisions
        if kind.has_decisions:
            assert np.array_equal(models._DECIDE[name](scores), kind.decide(torch.from_numpy(scores)).numpy())
