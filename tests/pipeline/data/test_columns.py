from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.columns import (
    MAX_CATEGORIES,
    Column,
    coded,
    dictionary,
    distinct,
    feature_names,
    fit,
    raw_columns,
)
from pipeline.data.encoding import encode, pack, parts_of
from pipeline.data.spec import Texts
from pipeline.errors import UserError
from tests.conftest import ROOT


def column(kind: str, values: Any) -> tuple[Column, dict[str, np.ndarray]]:
    """Return a column fitted to values, and the values."""
    raw = {"c": np.array(values, object if kind == "category" else np.float64)}
    return fit(raw, [Column(name="c", kind=kind)])[0], raw


def test_a_number_is_centred_by_the_mean_and_scaled_by_the_deviation_of_what_is_there() -> None:
    found, raw = column("number", [1, 2, 6, np.nan])
    assert (found.center, found.fill, found.has_missing) == (3, 2, True)
    np.testing.assert_allclose(found.scale, np.std([1, 2, 6]))
    np.testing.assert_allclose(encode(raw, [found]), [[-2 / found.scale, 0], [-1 / found.scale, 0], [3 / found.scale, 0],
                                                      [-1 / found.scale, 1]], rtol=1e-6)  # fmt: skip


def test_a_number_never_missing_in_training_is_filled_by_the_median_and_has_no_slot_for_it() -> None:
    found, _ = column("number", [1, 2, 3, 10])
    assert found.width == 1 and found.fill == 2.5
    np.testing.assert_array_equal(encode({"c": np.array([np.nan])}, [found]), encode({"c": np.array([2.5])}, [found]))


@pytest.mark.parametrize(
    "values", [[5.0] * 7, [0.1] * 1001, [np.nan, np.nan], [1e308, -1e308, 1e308], [1e-320, 2e-320], [2.0**60, 2.0**60 + 256]]
)
def test_statistics_are_finite_and_no_scale_is_zero(values: list[float]) -> None:
    found, raw = column("number", values)
    assert np.isfinite([found.center, found.scale, found.fill]).all() and found.scale > 0
    assert np.isfinite(encode(raw, [found])).all()
    assert Column.from_json(found.to_json()) == found


def test_a_constant_has_the_scale_one_and_becomes_zero() -> None:
    found, raw = column("number", [0.1] * 1001)
    assert found.scale == 1 and not encode(raw, [found]).any()


def test_whole_numbers_beyond_float32_keep_their_differences() -> None:
    found, raw = column("number", [2.0**40 + k for k in range(100)])
    assert len(np.unique(encode(raw, [found]))) == 100 and len(np.unique(raw["c"].astype(np.float32))) == 1


def test_booleans_stay_zero_and_one() -> None:
    found, raw = column("boolean", [0, 1, 1, np.nan])
    np.testing.assert_array_equal(encode(raw, [found]), [[0, 0], [1, 0], [1, 0], [1, 1]])


def test_a_category_has_a_slot_one_is_for_all_others_and_one_for_none() -> None:
    found, raw = column("category", ["b", "a", "b", "a", "once", ""])
    assert found.categories == ("a", "b") and feature_names([found]) == ("c = a", "c = b", "c (other)", "c (missing)")
    np.testing.assert_array_equal(encode(raw, [found]).argmax(1), [1, 0, 1, 0, 2, 3])
    np.testing.assert_array_equal(encode({"c": np.array(["unseen", "A", " a"], object)}, [found]).argmax(1), [2, 2, 2])


def test_a_missing_category_is_other_where_none_was_missing_in_training() -> None:
    found, _ = column("category", ["b", "a", "b", "a"])
    np.testing.assert_array_equal(encode({"c": np.array([""], object)}, [found]), [[0, 0, 1]])


def test_what_becomes_of_a_missing_text_in_pandas_is_missing_unless_it_is_a_category() -> None:
    texts = {"c": np.array(["nan", "None", "<NA>"], object)}
    found, _ = column("category", ["a", "a", ""])
    np.testing.assert_array_equal(encode(texts, [found]).argmax(1), [2, 2, 2])
    found, _ = column("category", ["None", "None", ""])
    np.testing.assert_array_equal(encode(texts, [found]).argmax(1), [2, 0, 2])


def test_the_most_frequent_categories_have_slots_and_of_equal_ones_the_first_by_name() -> None:
    found, _ = column("category", [f"{k:03}" for k in range(100) for _ in range(2)] + ["099"])
    assert found.categories == (*(f"{k:03}" for k in range(MAX_CATEGORIES - 1)), "099") and found.width == MAX_CATEGORIES + 1


def test_one_row_or_column_and_none_are_encoded_too() -> None:
    found, _ = column("category", ["a", "a"])
    assert encode({"c": np.array([], object)}, [found]).shape == (0, 2)
    np.testing.assert_array_equal(encode({"c": np.array([["a"]], object)}, [found]), [[1, 0]])  # as it is fed to onnxruntime


def test_encoding_some_rows_gives_the_rows_of_encoding_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n = 30_000
    raw = {"x": rng.normal(size=n), "c": np.array([*"abcdefg", ""], object)[rng.integers(0, 8, n)]}
    raw["x"][::7] = np.nan
    columns = fit(raw, [Column(name="x", kind="number"), Column(name="c", kind="category")])
    whole = encode(raw, columns)
    rows = rng.permutation(n)[:1000]
    np.testing.assert_array_equal(whole[rows], encode({name: values[rows] for name, values in raw.items()}, columns))
    monkeypatch.setattr("pipeline.data.encoding._PART", 30_000)
    texts = raw | {"c": dictionary(raw["c"])}
    parts = [part.copy() for part in parts_of(pack(texts, columns), rows)]
    assert len(parts) == 2
    np.testing.assert_array_equal(np.concatenate(parts), whole[rows])
    some = {name: values.of(rows) if isinstance(values, Texts) else values[rows] for name, values in texts.items()}
    assert fit(some, columns) == fit({name: values[rows] for name, values in raw.items()}, columns) == fit(texts, columns, rows)
    slow = [[(v - columns[0].center) / columns[0].scale, 0] if v == v else [0, 1] for v in raw["x"][:200]]
    seen = whole[:200, :2].copy()
    seen[seen[:, 1] == 1, 0] = 0  # the fill
    np.testing.assert_allclose(seen, slow, rtol=1e-6, atol=1e-7)


def test_categories_between_numbers_keep_their_places_in_the_matrix() -> None:
    raw = {
        "a": np.array(["x", "y", "x", "y"], object), "b": np.array([1, np.nan, 3, 1]),
        "c": np.array(["u", "u", "", "v"], object), "d": np.array([0.0, 1, 1, 0]),
    }  # fmt: skip
    columns = fit(
        raw, [Column(name=n, kind=k) for n, k in zip("abcd", ("category", "number", "category", "boolean"), strict=True)]
    )
    found, first = encode(raw, columns), 0
    assert found.shape == (4, 3 + 2 + 3 + 1)
    for column in columns:
        np.testing.assert_array_equal(found[:, first : first + column.width], encode(raw, [column]))
        first += column.width


def test_text_that_is_a_dictionary_already_is_coded_as_text_is() -> None:
    """In the order in which texts come first, whatever that of the dictionaries is; some hold one twice, or one of no row."""
    words = ["b", None, "a", "", "b", "ü", None, "a", "c"]
    plain = pa.chunked_array([pa.array(words[:4]), pa.array(words[4:])])
    other = pa.chunked_array([
        pa.DictionaryArray.from_arrays(pa.array([1, None, 2, 3]), pa.array(["unused", "b", "a", ""])),
        pa.DictionaryArray.from_arrays(pa.array([4, 3, 2, 0, 1]), pa.array(["a", "c", None, "ü", "b"])),
    ])  # fmt: skip
    twice = pa.chunked_array(
        [pa.DictionaryArray.from_arrays(pa.array([1, 0, 3, 0, 2, 4, None, 3, 5]), pa.array(["", *"bbaüc"]))]
    )
    short = pa.DictionaryArray.from_arrays(pa.array([0, 3, 1, 2, 0, 4, 3, 1, 5]), pa.array(["b", "a", "", None, "ü", "c"]))
    expected = coded(plain)
    assert expected.found == ["b", "", "a", "ü", "c"] and expected.codes.tolist() == [0, 1, 2, 1, 0, 3, 1, 2, 4]
    for values in (other, twice, pa.chunked_array([short])):
        found = coded(values)
        assert found.found == expected.found and found.codes.dtype == np.int64
        np.testing.assert_array_equal(found.codes, expected.codes)


@pytest.mark.parametrize("late", [None, 0.5, np.nan, 7.0], ids=str)
def test_numbers_that_are_few_are_found_as_all_are(late: float | None) -> None:
    """Also where one comes only after the rows that are looked at first."""
    values = np.random.default_rng(0).integers(-1, 4, 20_000).astype(np.float64)
    if late is not None:
        values[-1] = late
    found, codes = distinct(values)
    expected, places = np.unique(values, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(codes, places)


DAY = datetime(2024, 2, 29, 12, tzinfo=UTC)
ARROW = {
    "int8": ("number", pa.array([1, None], pa.int8()), [1, np.nan]),
    "uint64": ("number", pa.array([2**63, None], pa.uint64()), [2.0**63, np.nan]),
    "half": ("number", pa.array([np.float16(0.5), None], pa.float16()), [0.5, np.nan]),
    "float with NaN": ("number", pa.array([0.5, float("nan")]), [0.5, np.nan]),
    "decimal": ("number", pa.array([Decimal("1.25"), None]), [1.25, np.nan]),
    "null": ("number", pa.nulls(2), [np.nan, np.nan]),
    "number as text": ("number", pa.array(["1.5", ""]), [1.5, np.nan]),
    "time": ("number", pa.array([3600, None], pa.time32("s")), [3600, np.nan]),
    "duration": ("number", pa.array([timedelta(seconds=1.5), None]), [1.5, np.nan]),
    "bool": ("boolean", pa.array([True, None]), [1, np.nan]),
    "bool as 0 and 1": ("boolean", pa.array([0, 1]), [0, 1]),
    "bool as text": ("boolean", pa.array(["true", "false"]), [1, 0]),
    "date32": ("date", pa.array([date(1970, 1, 2), None]), [1, np.nan]),
    "date64": ("date", pa.array([date(1970, 1, 2), None], pa.date64()), [1, np.nan]),
    "time stamp": ("date", pa.array([DAY.replace(tzinfo=None), None], pa.timestamp("ns")), [19782.5, np.nan]),
    "time stamp of a zone": ("date", pa.array([DAY, None], pa.timestamp("s", "Asia/Tokyo")), [19782.5, np.nan]),
    "date as text": ("date", pa.array(["1970-01-02", None]), [1, np.nan]),
    "no dates": ("date", pa.nulls(2), [np.nan, np.nan]),
    "text": ("category", pa.array(["a", None]), ["a", ""]),
    "large text": ("category", pa.array(["a", None], pa.large_string()), ["a", ""]),
    "text view": ("category", pa.array(["a", None], pa.string_view()), ["a", ""]),
    "dictionary": ("category", pa.array(["a", None]).dictionary_encode(), ["a", ""]),
    "dictionary of numbers": ("category", pa.array([7, None]).dictionary_encode(), ["7", ""]),
    "number as a category": ("category", pa.array([7, None]), ["7", ""]),
    "bool as a category": ("category", pa.array([True, None]), ["true", ""]),
}


@pytest.mark.parametrize("name", ARROW)
def test_every_flat_type_of_arrow_becomes_float64_or_text(name: str) -> None:
    kind, values, expected = ARROW[name]
    for array in (values, pa.chunked_array([values[:1], values[1:]]), pa.chunked_array([values[:0], values])):
        found = raw_columns(pa.table({"c": array}), [Column(name="c", kind=kind)])["c"]
        assert found.dtype == (object if kind == "category" else np.float64)
        assert found.tolist() == expected if kind == "category" else np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "number",
            pa.array(["1", "2", "x1", "4"]),
            "input: the column c holds 'x1' in row 3, which is not a number. Mend it, or",
        ),
        ("number", pa.array([DAY]), "in row 1, which is not a number"),
        ("number", pa.array([1.0, float("-inf")]), "input: the column c holds an infinite number in row 2. Write"),
        ("boolean", pa.array([0, 1, 2]), "holds 2 in row 3, which is not true or false"),
        ("date", pa.array(["2020-01-01", "1.2.2020"]), "holds '1.2.2020' in row 2, which is not a date"),
        ("date", pa.array([2020]), "holds 2020 in row 1, which is not a date"),
    ],
)
def test_a_value_that_is_not_of_its_kind_is_named_with_its_row(kind: str, values: pa.Array, message: str) -> None:
    with pytest.raises(UserError) as error:
        raw_columns(pa.table({"c": values}), [Column(name="c", kind=kind)])
    assert message in str(error.value)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"input: the table has no column b\. Add"):
        raw_columns(pa.table({"a": [1]}), [Column(name=name, kind="number") for name in "ab"])


@pytest.mark.parametrize(
    "change", [{"kind": "image"}, {"scale": 0.0}, {"scale": float("nan")}, {"fill": "1"}, {"categories": [1]}]
)
def test_a_damaged_description_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Column.from_json(Column(name="c", kind="number").to_json() | change)


def test_tables_are_read_and_encoded_without_torch_or_scikit_learn() -> None:
    code = "import sys, pipeline.data.columns, pipeline.data.table_file; print({'torch', 'sklearn', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
