"""Pages of each kind of model in Chromium: the answers of torch, by mouse and by keyboard, from a server and from disk."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import csv

from pipeline.data import images
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare, read_raw
from pipeline.run import Run
from tests.docs_data import make as make_data
from tests.export.web.browser import NARROW, WIDE, chromium, decided, drop, opened, served, with_camera
from tests.export.web.conftest import MakePage, Proven

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIGITS = ("digits", "--model", "cnn", "--test_split", "0.4", "--epochs", "6", "--formats", "onnx,onnx-int8,onnx-fp16")
ASK_IMAGES = """async (texts) => {
  const found = [];
  for (const text of texts) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const { values, scores, decided } = await Images.take(new Blob([bytes]));
    found.push([decided, [...scores], [...values]]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def digits(proven: Proven) -> Path:
    return proven(*DIGITS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_data(tmp_path)
    return tmp_path


def _png(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _asked(page: Any, files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the page decided, and its scores (N, C)."""
    found = page.evaluate(ASK_IMAGES, [base64.b64encode(content).decode() for content in files])
    return np.array([each[0] for each in found]), np.array([each[1] for each in found])


def _torch(run: Run, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return run.load_model()(x)[0]


@pytest.mark.parametrize("how", ["folder", "file"])
def test_each_test_sample_is_decided_as_torch_does(digits: Path, make_page: MakePage, browser: Any, how: str) -> None:
    run = Run.open(digits)
    x = open_split(prepare(run.config), "test").x[:]
    want = _torch(run, x)
    folder = make_page(digits, *(["--single_file", "true"] if how == "file" else []))
    with served(folder) as address, opened(browser, address if how == "folder" else (folder / "index.html").as_uri()) as page:
        decided_here, scores = _asked(page, [_png(image[0].numpy()) for image in x])
    assert len(x) >= 500 and (decided_here != want.argmax(1).numpy()).sum() == 0
    assert np.abs(scores - want.numpy()).max() < 1e-4


@pytest.mark.parametrize("name", ["onnx-int8", "onnx-fp16"])
def test_a_smaller_file_agrees_as_its_gate_asks(digits: Path, make_page: MakePage, browser: Any, name: str) -> None:
    run = Run.open(digits)
    x = open_split(prepare(run.config), "test").x[:]
    with served(make_page(digits, "--format", name)) as address, opened(browser, address) as page:
        found, _ = _asked(page, [_png(image[0].numpy()) for image in x])
    assert (found == _torch(run, x).argmax(1).numpy()).mean() >= 0.995


def test_own_photos_of_any_size_are_decided_as_torch_does(
    proven: Proven, make_page: MakePage, browser: Any, data: Path
) -> None:
    flags = ("--dataset", str(data / "photos"), "--model", "cnn", "--image_size", "28", "--epochs", "6", "--formats", "onnx")
    folder = proven("photos", *flags)
    run, files = Run.open(folder), sorted((data / "photos").rglob("*.*"))
    x = torch.from_numpy(np.stack([images.resize(images.decode(path, 3), 28) for path in files]))
    with served(make_page(folder)) as address, opened(browser, address) as page:
        found, scores = _asked(page, [path.read_bytes() for path in files])
        want = _torch(run, x)
        assert (found == want.argmax(1).numpy()).all() and np.abs(scores - want.numpy()).max() < 1e-3
        for path in (files[0], files[1]):  # a PNG and a JPEG
            drop(page, path.read_bytes(), path.name)
            decided(page, run.data.classes[int(want[files.index(path)].argmax())])
            page.wait_for_function("(name) => document.getElementById('picture').alt.includes(name)", arg=path.name)
        assert files[0].suffix == ".png" and files[1].suffix == ".jpg" and page.locator("#pad").count() == 0
        drop(page, b"no image", "notes.txt")
        page.wait_for_function("document.getElementById('problem').textContent.startsWith('notes.txt is no JPEG')")
        assert page.inner_text("#decision") == "" and not page.locator("#bars").is_visible()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "phone"])
def test_a_digit_is_drawn_with_the_mouse(digits: Path, make_page: MakePage, browser: Any, size: dict[str, int]) -> None:
    with served(make_page(digits)) as address, opened(browser, address, size=size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        page.locator("#pen").fill("14")
        box = page.locator("#pad").bounding_box()
        for k in range(41):
            turn = 2 * math.pi * k / 40
            across, down = 0.5 + 0.22 * math.sin(turn), 0.5 - 0.35 * math.cos(turn)
            page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
            if not k:
                page.mouse.down()
        page.mouse.up()
        decided(page, "0 (")
        assert page.locator("#bars li").count() == 10 and page.locator("#bars li.chosen").inner_text().startswith("0")
        page.locator("#clear").click()
        page.wait_for_function("document.getElementById('decision').textContent === ''")


def test_the_keyboard_alone_is_enough(digits: Path, make_page: MakePage, browser: Any) -> None:
    with served(make_page(digits)) as address, opened(browser, address) as page:
        reached = []
        for _ in range(6):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert [name for name in reached if name][:4] == ["file", "pad", "clear", "pen"]
        page.locator("#pen").focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.id") == "pad"
        for key, times in (("ArrowUp", 10), (" ", 1), ("ArrowDown", 20)):
            for _ in range(times):
                page.keyboard.press(key)
        decided(page, "1 (")
        page.keyboard.press("Escape")
        page.wait_for_function("document.getElementById('decision').textContent === ''")


def test_an_image_is_pasted_and_one_is_taken_with_the_camera(digits: Path, make_page: MakePage, browser: Any) -> None:
    with served(make_page(digits)) as address:
        with opened(browser, address) as page:
            assert page.locator("#camera").count() == 0, "there is none, so none is offered"
            page.evaluate(
                """(text) => {
                  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                  const given = new DataTransfer();
                  given.items.add(new File([bytes], "", { type: "image/png" }));
                  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: given, bubbles: true }));
                }""",
                base64.b64encode(_png(np.zeros((40, 30), np.uint8))).decode(),
            )
            page.wait_for_function("document.querySelectorAll('#bars li').length === 10")
        with with_camera(browser) as camera, opened(camera, address) as page:
            page.locator("#camera").click()
            page.locator("#shoot").click()
            page.wait_for_function("document.querySelectorAll('#bars li').length === 10")
            assert not page.locator("video").is_visible() and page.evaluate("document.activeElement.id") == "camera"


def test_the_folder_says_what_to_do_where_it_is_opened_from_disk(sine: Path, make_page: MakePage, browser: Any) -> None:
    page = browser.new_page()
    page.goto((make_page(sine) / "index.html").as_uri())
    page.wait_for_function("!document.getElementById('problem').hidden")
    assert "build it with --single_file true" in page.inner_text("#problem")
    page.close()


TABLES = {
    "sold": ("sold", "price,part", "binary"), "labels": ("garage,cellar", "sold,part", "multilabel"),
    "prices": ("price,rooms", "sold,part", "regression"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_each_row_of_a_table_is_answered_as_torch_does(
    proven: Proven, make_page: MakePage, browser: Any, data: Path, name: str
) -> None:
    target, ignored, kind = TABLES[name]
    flags = ("--dataset", str(data / "houses.csv"), "--target", target, "--ignore_columns", ignored, "--model", "mlp")
    folder = proven(name, *flags, "--epochs", "8", "--formats", "onnx")
    run = Run.open(folder)
    prepared = prepare(run.config)
    raw, want = read_raw(prepared), _torch(run, open_split(prepared, "test").x[:])
    rows = [
        [str(raw[c.name][k]) if c.is_category else (None if math.isnan(raw[c.name][k]) else float(raw[c.name][k]))
         for c in run.data.columns]
        for k in range(len(want))
    ]  # fmt: skip
    with served(make_page(folder)) as address, opened(browser, address) as page:
        found = page.evaluate(
            """async (rows) => {
              const known = rows.map((row) => row.map((value) => (value === null ? NaN : value)));
              return (await Model.ask(Form.inputs(known), known.length)).map((each) => [each.decided, [...each.scores]]);
            }""",
            rows,
        )
        assert run.data.task == kind and len(rows) > 40
        scores = np.array([each[1] for each in found])
        assert np.allclose(scores, want.numpy(), rtol=1e-3, atol=1e-4)
        if run.task.has_decisions:
            assert (np.array([each[0] for each in found]) == run.task.decide(want).numpy()).all()
        _by_hand(page, run, data)


def _by_hand(page: Any, run: Run, data: Path) -> None:
    """Fill the form in, and hold what the page says against `predict`'s answer to the same row."""
    from export.serve import model as models
    from export.serve import tables

    places = {column.name: f"#field-{k}" for k, column in enumerate(run.data.columns)}
    page.locator(places["area"]).fill("98.5")
    page.locator(places["district"]).select_option("not known")
    page.locator(places["street"]).select_option("another one")
    page.locator(places["garden"]).select_option("no")
    page.locator(places["built"]).fill("1984-05-01")
    page.locator(places["garage" if "garage" in places else "price"]).fill("")
    chosen = {"district": "", "street": "another one", "garden": "false"}
    texts = {name: chosen.get(name) or page.locator(place).input_value() for name, place in places.items()} | chosen
    assert texts["area"] == "98.5" and texts["built"] == "1984-05-01"
    csv.write_csv(pa.table({name: [texts[name]] for name in places}), data / "row.csv")
    model = models.load(run.folder / "export" / "model.onnx")
    ((_, inputs),) = tables.blocks(data / "row.csv", model, lambda row, reason: pytest.fail(reason))
    answers = model.answer(inputs)
    if not run.task.has_decisions:
        decided(page, f"{model.names[0]}: {float(answers.values[0, 0]):.6g}"[:12])
        assert page.locator("#plot svg").count() == len(model.names)
        return
    assert answers.decided is not None
    shown = [f"{100 * value:.1f} %" for value in answers.values[0].tolist()]
    page.wait_for_function(
        "(shown) => [...document.querySelectorAll('#bars .share')].map((each) => each.textContent).join() === shown.join()",
        arg=shown,
    )
