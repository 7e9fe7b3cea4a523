"""What a request to /predict asks, from its bytes; and the answer as JSON, by the names that `predict` writes.

The content decides what a body is, not its header: JSON begins with a brace, an image does not. Whatever is not right raises
BadRequest with a sentence. The arrays of one sample are the same as `predict` makes of the same image or row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from export.serve import answers, tables
from export.serve.model import Array, Model
from pipeline.data.columns import Column, raw_column
from pipeline.errors import UserError
from pipeline.values import shown

MAX_PIXELS = 1 << 25  # of an image; a small file may hold far more, and each pixel takes 16 bytes and more in a graph
_FLOAT32 = float(np.finfo(np.float32).max)


class BadRequest(ValueError):
    """What a client has to mend. The text is the whole sentence."""


class NotFinite(ArithmeticError):
    """The model's own answer is NaN or infinite, which no client must take for one."""


class Question(NamedTuple):
    """N samples for a model: its inputs, (N, ...) each, the outputs that are wanted, and what makes a body of these."""

    inputs: list[Array]
    outputs: tuple[str, ...]
    answer: Callable[[list[Array]], bytes]


def read(content: bytes, model: Model) -> Question:
    """Return what a body asks: an image, or JSON with `rows` or `instances`. Raises BadRequest."""
    is_json = content[:64].lstrip()[:1] in (b"{", b"[")
    inputs = _instances(parsed(content), model, content) if is_json or not model.is_image else [_image(content, model)]
    return Question(inputs, model.decisive, lambda outputs: _written(outputs, model, len(inputs[0])))


def parsed(content: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds. Raises BadRequest; NaN and Infinity are no JSON."""
    try:
        found = orjson.loads(content)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON ({shown(str(error))}).") from error
    if not isinstance(found, dict):
        raise BadRequest("the body is JSON, but no object.")
    return found


def _image(content: bytes, model: Model) -> Array:
    """Return one image as (1, C, H, W), of the model's size where it takes no other."""
    from pipeline.data import images

    channels, height, width = model.input_shape
    try:
        header = images.header(content)
        if header.width * header.height > MAX_PIXELS:
            raise BadRequest(
                f"the image has {header.width}x{header.height} pixels, more than the {MAX_PIXELS} that are decoded."
            )
        image = images.decode(content, channels)
        if not model.any_size and height == width:
            image = images.resize(image, height)
    except images.BadImage as error:
        raise BadRequest(f"the image {error}.") from error
    if not model.any_size and image.shape != model.input_shape:
        raise BadRequest(f"the image is {image.shape[2]}x{image.shape[1]}, and the model takes {width}x{height} alone.")
    return image[None]


def _instances(body: dict[str, Any], model: Model, content: bytes) -> list[Array]:
    given = [name for name in ("rows", "instances") if name in body]
    if len(given) != 1:
        what = "both `rows` and `instances`" if given else "neither `rows` nor `instances`"
        raise BadRequest(f"the body has {what}. Send {takes(model)}.")
    items = body[given[0]]
    if not isinstance(items, list) or not items:
        raise BadRequest(f"`{given[0]}` is no list with something in it. Send {takes(model)}.")
    return _rows(items, model) if model.columns else [_samples(items, model, content)]


def takes(model: Model) -> str:
    """Return what a body may be, in words."""
    if model.columns:
        names = tables.listed([column.name for column in model.columns])
        return f'{{"rows": [{{column: value}}, ...]}} with its columns ({names})'
    shape = "x".join(map(str, model.input_shape))
    kind = "whole numbers from 0 to 255" if model.dtype == "uint8" else "numbers"
    arrays = f'{{"instances": [...]}} with arrays of {shape} {kind}'
    return f"an image, or {arrays}" if model.is_image else arrays


def _rows(items: list[Any], model: Model) -> list[Array]:
    if not all(isinstance(item, dict) for item in items):
        raise BadRequest(f"a row is no object. Send {takes(model)}.")
    wanted = [column.name for column in model.columns]
    for number, item in enumerate(items, start=1):
        if missing := [name for name in wanted if name not in item]:
            others = [name for name in item if name not in wanted]
            raise BadRequest(tables.missing_column(f"row {number}", missing[0], others))
    return [raw_values([item[column.name] for item in items], column) for column in model.columns]


def raw_values(values: list[Any], column: Column) -> Array:
    """Return one column's values as the model takes them, (N, 1) float64 or texts; null is a missing one. Raises BadRequest."""
    import pyarrow as pa

    what = f"the column {shown(column.name)}"
    if bad := [value for value in values if not (value is None or isinstance(value, (str, int, float)))]:
        raise BadRequest(f"{what} holds {type(bad[0]).__name__} where a single value belongs.")
    if all(value is None for value in values):
        missing = np.full(len(values), "" if column.is_category else np.nan, object if column.is_category else np.float64)
        return missing[:, None]
    try:
        return raw_column(pa.chunked_array([pa.array(values)]), column, what="")[:, None]
    except UserError as error:
        raise BadRequest(shown(error.messages[0].strip())) from error
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        raise BadRequest(f"{what} holds values of several kinds, or one that is too large.") from error


def _samples(items: list[Any], model: Model, content: bytes) -> Array:
    """Return nested lists of numbers as (N, ...), channels first."""
    x = numbers(items, model.dtype, may_have_booleans=b"true" in content or b"false" in content)
    if model.is_image:
        channels = model.input_shape[0]
        if x.ndim == 3 and channels == 1:
            x = x[:, None]
        elif x.ndim == 4 and x.shape[1] != channels == x.shape[3]:
            x = np.ascontiguousarray(np.moveaxis(x, 3, 1))
    check_shape(x.shape, model)
    return x


def check_shape(shape: Sequence[int], model: Model) -> None:
    """Raise BadRequest where samples (N, ...) are not of a shape that the model takes."""
    wanted = model.input_shape
    fits = tuple(shape[1:]) == wanted
    if model.any_size:
        fits = len(shape) == 4 and shape[1] == wanted[0] and min(shape) > 0 and shape[2] * shape[3] <= MAX_PIXELS
    if not fits or not shape[0]:
        size = "(N, C, height, width) of any size" if model.any_size else f"(N, {', '.join(map(str, wanted))})"
        raise BadRequest(f"the samples have the shape ({', '.join(map(str, shape))}), and the model takes {size}.")


def numbers(items: list[Any], dtype: str, *, may_have_booleans: bool, is_missing_taken: bool = False) -> Array:
    """Return lists of numbers as an array of uint8, float32 or float64 that holds each of them. Raises BadRequest.

    Only what the type holds is taken: whole numbers from 0 to 255 for uint8, finite ones for floats. With `is_missing_taken`,
    null stands for one that is missing.
    """
    if may_have_booleans and any(isinstance(value, bool) for value in flat(items)):
        raise BadRequest("true or false stands where a number belongs.")
    if is_missing_taken and any(value is None for value in flat(items)):
        items = _with_nan(items)
    try:
        x = np.array(items)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the lists of numbers are not all of one length, or are nested too deeply.") from error
    if x.dtype.kind not in "iuf":
        raise BadRequest("a null, a text or a number that is too large stands where a number belongs.")
    if not x.size:
        raise BadRequest("a list of numbers is empty.")
    if dtype == "uint8":
        if x.dtype.kind == "f" or int(np.bitwise_or.reduce(x, axis=None)) & ~255:  # in one pass; a sign is a bit, too
            raise BadRequest("a number is no whole one from 0 to 255, as pixels are.")
        return x.astype(np.uint8)
    largest = _FLOAT32 if dtype == "float32" else math.inf
    if np.isinf(x).any() or (np.abs(x[~np.isnan(x)] if x.dtype.kind == "f" else x.astype(float)) > largest).any():
        raise BadRequest(f"a number is too large for {dtype}.")
    return x.astype(dtype)


def flat(items: Iterable[Any]) -> Iterable[Any]:
    """Yield what nested lists hold, without recursion."""
    waiting = [iter(items)]
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, list):
                waiting.append(iter(item))
                break
            yield item
        else:
            waiting.pop()


def _with_nan(items: list[Any]) -> list[Any]:
    return [_with_nan(item) if isinstance(item, list) else math.nan if item is None else item for item in items]


def _written(outputs: list[Array], model: Model, count: int) -> bytes:
    """Return the answers as JSON: as many digits as tell a float32 from its neighbors."""
    found = model.read(outputs, count)
    if not found.is_finite.all():
        raise NotFinite(f"sample {int(found.is_finite.argmin()) + 1} is answered with what is no number (NaN or infinity).")
    columns = answers.columns(model, answers.Block([""] * count, found))
    plain = {k: _texts(v) for k, v in columns.items() if k != "input" and not k.startswith("p_")}
    names = [_text(name) for name in model.names] if model.has_decisions else []
    each = [_texts(columns[f"p_{name}"]) for name in model.names] if names else []
    rows = []
    for k in range(count):
        parts = [f"{_text(name)}: {values[k]}" for name, values in plain.items()]
        if names:
            pairs = ", ".join(f"{name}: {values[k]}" for name, values in zip(names, each, strict=True))
            parts.append(f'"probabilities": {{{pairs}}}')
        rows.append(f"{{{', '.join(parts)}}}")
    return f'{{"predictions": [{", ".join(rows)}]}}\n'.encode()


def _texts(values: Sequence[str] | Array) -> list[str]:
    return [str(value) for value in values] if isinstance(values, np.ndarray) else [_text(value) for value in values]


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
