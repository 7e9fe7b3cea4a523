"""Each picture shows what it is said to: points, numbers, names, the best step. No pixels are compared."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn import metrics

from models.handwritten import ACTIVATIONS
from pipeline.cli import main
from pipeline.config import PlotConfig
from pipeline.plots import evaluation, standalone, style
from pipeline.plots.curves import curves
from tests.pictures import history, legend_texts

DIGITS = tuple("0123456789")
TUMORS = ("malignant", "benign")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A picture that matplotlib warns about (a missing glyph, a layout that does not fit) is not right."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def moons(*, shift: float = 0.0) -> dict[str, style.Series]:
    rng = np.random.default_rng(0)
    sizes = {"train": 30, "val": 12, "test": 18}
    return {name: (rng.normal(shift, 1, (n, 2)).astype(np.float32), rng.integers(0, 2, n)) for name, n in sizes.items()}


def texts(figure: Figure) -> list[str]:
    """All visible words of a figure, legends and ticks apart."""
    return [t.get_text() for axes in figure.axes for t in [*axes.texts, axes.title] if t.get_text()]


def losses(num: int, channels: int = 1, **changes: Any) -> Figure:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "true": np.full(num, 4),
        "predicted": np.where(np.arange(num) < 3, 9, 4),
        "probability": np.linspace(0.02, 0.5, num, dtype=np.float32),
        "loss": np.linspace(3.9, 0.7, num, dtype=np.float32),
        "classes": DIGITS,
        "title": "3 of 359 are wrong",
    }
    return evaluation.top_losses(rng.integers(0, 256, (num, channels, 28, 28), dtype=np.uint8), **(values | changes))


@pytest.mark.parametrize("num_classes", [2, 10, 20])
def test_confusion_matrix_writes_every_count_in_its_cell(num_classes: int) -> None:
    counts = np.arange(num_classes**2).reshape(num_classes, num_classes)
    figure = evaluation.confusion_matrix(counts, classes=[f"class {k}" for k in range(num_classes)], split="test")
    axes = figure.axes[0]
    assert {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts} == {
        (i, j): str(counts[i, j]) for i, j in np.ndindex(counts.shape)
    }
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert axes.get_title() == f"{np.trace(counts)} of {counts.sum()} test samples right"


def test_confusion_matrix_colours_a_cell_by_its_share_of_the_true_class() -> None:
    figure = evaluation.confusion_matrix(np.array([[30, 10], [0, 0]]), classes=TUMORS, split="test")
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[0.75, 0.25], [0, 0]]


def test_a_hundred_classes_are_drawn_without_their_counts(tmp_path: Path) -> None:
    names = [f"a long name of a class, number {k}" for k in range(100)]
    figure = evaluation.confusion_matrix(np.eye(100, dtype=int), classes=names, split="test")
    style.save(figure, tmp_path / "matrix.png", about="a run")
    assert not figure.axes[0].texts and len(figure.axes[0].get_yticklabels()) == 100
    assert max(len(t.get_text()) for t in figure.axes[0].get_yticklabels()) <= 24
    assert max(figure.get_size_inches()) < 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("num_images", "num_tiles"), [(1, 1), (7, 7), (30, 25)])
def test_top_losses_draws_up_to_25_titled_tiles_right_ones_too(num_images: int, num_tiles: int, channels: int) -> None:
    figure = losses(num_images, channels)
    assert sum(bool(axes.images) for axes in figure.axes) == num_tiles == len(texts(figure))
    assert texts(figure)[0] == "true: 4\npredicted: 9\nloss 3.9, p(true) 0.02"
    colors = [axes.title.get_color() for axes in figure.axes if axes.images]
    assert colors == [colors[0]] * min(num_tiles, 3) + ["black"] * (num_tiles - 3) and colors[0] != "black"
    assert figure.get_suptitle() == "3 of 359 are wrong"


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_roc_and_precision_recall_carry_their_areas_and_the_decision_that_is_taken(shift: float) -> None:
    margin = np.array([-3, -2, -1, -0.5, 0.5, 1, 2, 3]) - shift
    truth = np.array([0, 0, 1, 0, 1, 0, 1, 1], bool)
    figure = evaluation.roc_pr(margin, is_positive=truth, positive="benign", split="test")
    area, average = metrics.roc_auc_score(truth, margin), metrics.average_precision_score(truth, margin)
    assert [t for t in legend_texts(figure) if t[-1].isdigit()] == [f"AUC {area:.4f}", f"average precision {average:.4f}"]
    assert "8 test samples, 4 of them benign" in figure.get_suptitle()
    points = [np.asarray(line.get_xydata()).tolist() for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert points == ([[[0.25, 0.75]], [[0.75, 0.75]]] if not shift else [[[0, 0]]])  # nothing is called benign any more


def test_roc_of_a_single_class_is_a_note() -> None:
    figure = evaluation.roc_pr(np.ones(3), is_positive=np.ones(3, bool), positive="benign", split="train")
    assert [t.get_text() for t in figure.texts] == ["ROC and precision-recall need train samples of both classes."]


@pytest.mark.parametrize("split", ["test", "train"])
def test_pictures_name_the_split_that_they_are_of(split: str) -> None:
    rng, x = np.random.default_rng(0), np.linspace(-3, 3, 50)[:, None]
    features = rng.normal(size=(8, 3)).astype(np.float32)
    figures = [
        evaluation.confusion_matrix(np.eye(2, dtype=int), classes=TUMORS, split=split),
        evaluation.tsne(features, labels=np.arange(8) % 2, classes=TUMORS, of=f"{split} samples"),
        evaluation.roc_pr(features[:, 0], is_positive=np.arange(8) > 3, positive="benign", split=split),
        evaluation.fitted_curve(x, np.sin(x), predicted=x, split=split),
    ]
    for figure in figures:
        words = " ".join([*texts(figure), *legend_texts(figure), figure.get_suptitle()])
        assert split in words and {"test": "train", "train": "test"}[split] not in words


@pytest.mark.parametrize("folder", ["cnn-2a2cd71d", "a-" * 100, "x" * 255, "$x_1$ \udcff"])
def test_every_saved_picture_carries_model_data_and_run_and_nothing_of_it_is_cut(folder: str, tmp_path: Path) -> None:
    figures = every_figure() | demanding_figures() if folder == "cnn-2a2cd71d" else {"the narrowest": curves([])}
    for name, figure in figures.items():
        for _ in range(2 if name in ("curves", "the narrowest") else 1):
            style.save(figure, tmp_path / f"{name}.png", about=f"cnn on digits, run {folder}")
        heading = figure.get_suptitle()
        assert heading.startswith("cnn on digits, run") and heading.count("cnn on digits") == 1
        figure.set_dpi(style.DPI)  # letters are a whole number of dots apart
        figure.draw_without_rendering()
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 >= 0 and drawn.x1 <= width and drawn.y0 >= 0 and drawn.y1 <= height, f"{name} is cut: {drawn}"


@pytest.mark.parametrize("picture", standalone.PICTURES)
def test_a_picture_without_a_run_says_above_it_what_it_shows(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "_embed", lambda features, *, seed: features[:, 20:22].astype(np.float32))
    saved: list[Figure] = []
    save = style.save
    monkeypatch.setattr(
        standalone, "save", lambda figure, path, *, about: (saved.append(figure), save(figure, path, about=about))
    )
    assert main(["plot", "--plot", picture]) == 0
    assert (
        capsys.readouterr().out == f"drawing {picture} ...\nruns/plots/{picture}.png\n"
        and Path(f"runs/plots/{picture}.png").is_file()
    )
    assert saved[0].get_suptitle() == standalone.PICTURES[picture][0]
    boxes = [saved[0]._suptitle, *(axes.get_legend() for axes in saved[0].axes), *saved[0].legends]  # type: ignore[attr-defined]
    title, *others = (box.get_window_extent() for box in boxes if box)
    assert not [box for box in others if box.overlaps(title)]


def test_tsne_draws_each_sample_as_its_short_class_name() -> None:
    labels = np.arange(40) % 10
    labels[labels == 3] = 7  # a class without a sample
    features = np.random.default_rng(0).normal(labels[:, None], 0.1, (40, 8)).astype(np.float32)
    figure = evaluation.tsne(features, labels=labels, classes=DIGITS, of="test samples")
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == [DIGITS[k] for k in labels]
    assert len({str(t.get_color()) for t in axes.texts}) == 9
    low_x, high_x = axes.get_xlim()
    assert all(low_x < t.get_position()[0] < high_x for t in axes.texts)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("t-SNE dimension 1", "t-SNE dimension 2")


@pytest.mark.parametrize(("num_samples", "num_features"), [(4, 5), (40, 1), (40, 30)])
def test_tsne_draws_long_class_names_in_a_legend(num_samples: int, num_features: int) -> None:
    features = np.random.default_rng(0).normal(size=(num_samples, num_features)).astype(np.float32)
    figure = evaluation.tsne(features, labels=np.arange(num_samples) % 2, classes=TUMORS, of="test samples")
    assert legend_texts(figure) == list(TUMORS)
    drawn = [np.asarray(c.get_offsets()) for c in figure.axes[0].collections]
    assert sum(map(len, drawn)) == num_samples and all(np.isfinite(points).all() for points in drawn)


def test_tsne_takes_the_first_500_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_embed", lambda features, *, seed: features[:, :2])
    features = np.arange(1200, dtype=np.float32).reshape(600, 2)
    figure = evaluation.tsne(features, labels=np.zeros(600, int), classes=TUMORS, of="test samples")
    assert np.asarray(figure.axes[0].collections[0].get_offsets()).tolist() == features[:500].tolist()


@pytest.mark.parametrize("num_samples", [0, 3, 50])
def test_tsne_of_too_few_or_equal_samples_is_a_note(num_samples: int) -> None:
    features = np.full((num_samples, 8), 0.5, np.float32)  # 50 of these crash scikit-learn 1.9 and Python
    figure = evaluation.tsne(features, labels=np.zeros(num_samples, int), classes=DIGITS, of="test samples")
    assert figure.axes == [] and len(figure.texts) == 1


def test_scatter_draws_every_point_of_every_split() -> None:
    splits = moons()
    figure = evaluation.scatter(splits, classes=TUMORS)
    (axes,) = figure.axes
    assert [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()] == ["Samples", "feature 1", "feature 2"]
    drawn = [np.asarray(c.get_offsets()).tolist() for c in axes.collections]
    assert drawn == [x.tolist() for x, _ in splits.values()]
    assert legend_texts(figure) == [*TUMORS, "train (30)", "val (12)", "test (18)"]


@pytest.mark.parametrize("shift", [0.0, 6.0, -6.0])
def test_the_grid_covers_the_square_and_every_point(shift: float) -> None:
    seen = []

    def predict(points: style.Array) -> style.Array:
        seen.append(points)
        return 1 / (1 + np.exp(-points[:, 0]))

    splits = moons(shift=shift)
    figure = evaluation.decision_regions(predict, splits, classes=TUMORS)
    (grid,) = seen
    assert grid.shape == (evaluation.GRID**2, 2) and grid.dtype == np.float32
    low, high = grid.min(axis=0), grid.max(axis=0)
    assert (low <= -math.pi + 1e-6).all() and (high >= math.pi - 1e-6).all()
    for x, _ in splits.values():
        assert (low < x).all() and (x < high).all()
    if not shift:
        np.testing.assert_allclose([low, high], [[-math.pi] * 2, [math.pi] * 2], rtol=1e-6)
    mesh = figure.axes[0].collections[0]
    assert np.asarray(mesh.get_array()).ravel().tolist() == predict(grid).tolist()


def test_regions_grow_rightwards_and_upwards_with_the_features() -> None:
    figure = evaluation.decision_regions(lambda p: (p[:, 1] > 0).astype(np.int64), moons(), classes=TUMORS)
    answers = np.asarray(figure.axes[0].collections[0].get_array())  # row 0 is drawn at the bottom
    assert answers[: evaluation.GRID // 2].max() == 0 and answers[evaluation.GRID // 2 :].min() == 1


@pytest.mark.parametrize("kind", ["probabilities", "classes", "one answer"])
def test_regions_list_classes_and_the_splits_that_hold_points(kind: str, tmp_path: Path) -> None:
    answers = {
        "probabilities": lambda p: 1 / (1 + np.exp(-p[:, 0])),
        "classes": lambda p: (p[:, 0] > 0).astype(np.int64),
        "one answer": lambda p: np.full(len(p), 0.3, np.float32),
    }
    splits = moons() | {"val": (np.zeros((0, 2), np.float32), np.zeros(0, int))}
    figure = evaluation.decision_regions(answers[kind], splits, classes=TUMORS)
    style.save(figure, tmp_path / "regions.png", about="a run")
    axes = figure.axes[0]
    assert legend_texts(figure) == [*TUMORS, "train (30)", "test (18)"]
    legend = axes.get_legend()
    assert legend and legend.get_window_extent().x0 > axes.get_window_extent().x1, "the legend covers the data"


def test_fitted_curve_draws_data_fit_and_residuals_in_the_order_of_x() -> None:
    x = np.random.default_rng(0).permutation(np.linspace(-3, 3, 50, dtype=np.float32))[:, None]
    figure = evaluation.fitted_curve(x, np.sin(x), predicted=0.5 * x, split="test", formula="y = 0.5 x")
    top, bottom = figure.axes
    data, fit, residual = (np.asarray(line.get_xydata()) for line in (*top.lines, bottom.lines[1]))
    assert data[:, 0].tolist() == fit[:, 0].tolist() == residual[:, 0].tolist() == sorted(x[:, 0].tolist())
    np.testing.assert_allclose(data[:, 1], np.sin(data[:, 0]), atol=1e-6)
    np.testing.assert_allclose(fit[:, 1], 0.5 * fit[:, 0], atol=1e-6)
    np.testing.assert_allclose(residual[:, 1], data[:, 1] - fit[:, 1], atol=1e-6)
    assert top.get_title(loc="right") == "y = 0.5 x"
    assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("y", "data - fit", "x")


def test_activations_draw_each_function_and_its_derivative() -> None:
    figure = standalone.activations()
    assert texts(figure) == list(ACTIVATIONS)
    for axes in figure.axes:
        function, derivative = axes.lines
        x, y = np.asarray(function.get_xydata()).T
        slope = np.asarray(derivative.get_ydata())
        assert (len(x), x[0], x[-1], derivative.get_linestyle()) == (10_000, -10, 10, "--")
        rise = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(x))])
        np.testing.assert_allclose(rise, y - y[0], atol=5e-3)  # the derivative's integral is the function


def test_moons_are_drawn_for_each_noise() -> None:
    figure = standalone.scatter()
    assert texts(figure) == ["noise 0", "noise 0.2", "noise 0.5"]
    assert [len(np.asarray(axes.collections[0].get_offsets())) for axes in figure.axes] == [1000] * 3


def test_samples_are_five_of_each_digit() -> None:
    figure = standalone.samples()
    assert sum(len(axes.images) for axes in figure.axes) == 50 and texts(figure) == list(DIGITS)


def test_raw_pixels_of_six_digits_are_drawn_by_tsne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_embed", lambda features, *, seed: features[:, 20:22].astype(np.float32))
    figure = standalone.tsne()
    assert len(figure.axes[0].texts) == 500 and {t.get_text() for t in figure.axes[0].texts} == set("012345")


def test_the_flag_names_every_picture() -> None:
    choices = PlotConfig.__dataclass_fields__["plot"].metadata["choices"]
    assert sorted(choices) == sorted(standalone.PICTURES)


def every_figure() -> dict[str, Figure]:
    x = np.linspace(-3, 3, 50)[:, None]
    features = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    return {
        "curves": curves(history(20)),
        "no curves": curves([]),
        "confusion_matrix": evaluation.confusion_matrix(np.eye(2, dtype=int), classes=TUMORS, split="test"),
        "top_losses": losses(3),
        "roc_pr": evaluation.roc_pr(features[:, 0], is_positive=features[:, 1] > 0, positive="benign", split="test"),
        "tsne": evaluation.tsne(features, labels=np.arange(12) % 10, classes=DIGITS, of="test samples"),
        "scatter": evaluation.scatter(moons(), classes=TUMORS),
        "decision_regions": evaluation.decision_regions(lambda p: p[:, 0] > 0, moons(), classes=TUMORS),
        "fitted_curve": evaluation.fitted_curve(x, np.sin(x), predicted=x, split="test"),
    }


def demanding_figures() -> dict[str, Figure]:
    """Long names, many classes, many learning rates."""
    rng = np.random.default_rng(0)
    names = [f"{k}, a class of a very long name" for k in range(100)]
    layers = {f"train/lr/some_layer_{k}": 1e-3 / (k + 1) for k in range(7)}
    numbers, features = np.arange(300) % 100, rng.normal(size=(300, 4)).astype(np.float32)
    rows = [row | layers if "train/lr" in row else row for row in history(5)]
    return {
        "smoothed": curves(rows, monitor="accuracy", smoothed=True),
        "100 classes": evaluation.confusion_matrix(np.eye(100, dtype=int), classes=names, split="test"),
        "long names": evaluation.confusion_matrix(np.eye(3, dtype=int), classes=names[:3], split="test"),
        "tsne": evaluation.tsne(features, labels=numbers, classes=names, of="test samples, by the features"),
        "losses": losses(25, 3, classes=names),
        "one loss": losses(1, classes=names),
    }


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    first, second = every_figure(), every_figure()
    for name in first:
        files = [tmp_path / folder / f"{name}.png" for folder in ("first", "saved again", "made again")]
        for figure, file in zip((first[name], first[name], second[name]), files, strict=True):
            style.save(figure, file, about="a run")
        contents = [file.read_bytes() for file in files]
        assert contents[0].startswith(b"\x89PNG")
        assert contents[0] == contents[1] == contents[2], name


def test_drawing_leaves_pyplot_and_torch_alone() -> None:
    code = "import sys; from pipeline.plots.curves import curves; curves([]); print(*sys.modules, sep='\\n')"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "matplotlib.pyplot"} & set(done.stdout.split())
