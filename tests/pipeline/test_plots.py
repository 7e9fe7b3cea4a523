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

from models.activations import ACTIVATIONS
from pipeline import pictures, plots
from pipeline.config import PlotConfig

DIGITS = tuple("0123456789")
TUMOURS = ("malignant", "benign")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A picture that matplotlib warns about (a missing glyph, a layout that does not fit) is not right."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def history(num_epochs: int, *, factor: float = 0.9) -> list[dict[str, Any]]:
    """Rows as train writes them: the best validation loss and accuracy are at 60 % of the epochs."""
    rows: list[dict[str, Any]] = []
    best = max(1, round(0.6 * num_epochs))
    for epoch in range(1, num_epochs + 1):
        common = {"step": 10 * epoch, "epoch": float(epoch), "time": 1_700_000_000_000 + epoch}
        rows.append(common | {"train/loss": factor**epoch, "lr": 0.1})
        distance = abs(epoch - best) / num_epochs
        rows.append(common | {"val/loss": 0.5 + distance, "val/accuracy": 0.9 - distance / 2})
    return rows


def moons(*, shift: float = 0.0) -> dict[str, plots.Part]:
    rng = np.random.default_rng(0)
    sizes = {"train": 30, "val": 12, "test": 18}
    return {name: (rng.normal(shift, 1, (n, 2)).astype(np.float32), rng.integers(0, 2, n)) for name, n in sizes.items()}


def texts(figure: Figure) -> list[str]:
    """All visible words of a figure, legends and ticks apart."""
    return [t.get_text() for axes in figure.axes for t in [*axes.texts, axes.title] if t.get_text()]


def legend_texts(figure: Figure) -> list[str]:
    legends = [axes.get_legend() for axes in figure.axes]
    return [t.get_text() for legend in legends if legend for t in legend.get_texts()]


def wrong_images(num: int, channels: int = 1) -> Figure:
    rng = np.random.default_rng(0)
    return plots.wrongest(
        rng.integers(0, 256, (num, channels, 28, 28), dtype=np.uint8),
        true=np.full(num, 4),
        predicted=np.full(num, 9),
        confidence=np.linspace(0.98, 0.5, num, dtype=np.float32),
        classes=DIGITS,
    )


def test_curves_mark_the_best_validation_point_of_each_panel() -> None:
    figure = plots.curves(history(20))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert figure.axes[-1].get_xlabel() == "optimiser step"
    for axes, value in zip(figure.axes, (0.5, 0.9), strict=True):
        (mark,) = [line for line in axes.lines if str(line.get_label()).startswith("best")]
        assert np.asarray(mark.get_xydata()).tolist() == [[120, value]]
        assert mark.get_label() == f"best: {value:.4g} at step 120"


def test_curves_draw_every_row_of_a_long_run() -> None:
    train, val, _ = plots.curves(history(2000)).axes[0].lines
    assert (train.get_label(), val.get_label()) == ("train/loss", "val/loss")
    assert len(np.asarray(train.get_xdata())) == len(np.asarray(val.get_xdata())) == 2000


@pytest.mark.parametrize(("factor", "scale"), [(0.9, "linear"), (0.5, "log")])
def test_the_loss_axis_is_logarithmic_beyond_two_decades(factor: float, scale: str) -> None:
    assert plots.curves(history(10, factor=factor)).axes[0].get_yscale() == scale


def test_rmse_is_best_where_it_is_lowest() -> None:
    rows = [{"step": s, "val/rmse": v} for s, v in ((1, 3.0), (2, 1.0), (3, 2.0))]
    assert legend_texts(plots.curves(rows)) == ["val/rmse", "best: 1 at step 2"]


@pytest.mark.parametrize("varies", [True, False])
def test_the_learning_rate_is_drawn_only_if_it_varies(varies: bool) -> None:
    rows = [{"step": s, "train/loss": 1.0, "lr": 0.1 / (s if varies else 1)} for s in (1, 2, 3)]
    labels = [axes.get_ylabel() for axes in plots.curves(rows).axes]
    assert labels == ["loss", "learning rate"][: 1 + varies]


def test_curves_survive_a_loss_that_diverged(tmp_path: Path) -> None:
    rows = [{"step": s, "val/loss": v} for s, v in enumerate((2.0, 1.0, math.inf, math.nan))]
    figure = plots.curves(rows)
    assert "best: 1 at step 1" in legend_texts(figure)
    plots.save(figure, tmp_path / "curves.png")


def test_one_row_is_drawn_as_a_point_on_whole_steps(tmp_path: Path) -> None:
    figure = plots.curves(history(1))
    plots.save(figure, tmp_path / "curves.png")
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines)
    assert [t for t in figure.axes[-1].get_xticks() if t % 1] == []


@pytest.mark.parametrize("num_classes", [2, 10, 20])
def test_confusion_matrix_writes_every_count_in_its_cell(num_classes: int) -> None:
    counts = np.arange(num_classes**2).reshape(num_classes, num_classes)
    figure = plots.confusion_matrix(counts, classes=[f"class {k}" for k in range(num_classes)])
    axes = figure.axes[0]
    assert {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts} == {
        (i, j): str(counts[i, j]) for i, j in np.ndindex(counts.shape)
    }
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert axes.get_title() == f"{np.trace(counts)} of {counts.sum()} right"


def test_confusion_matrix_colours_a_cell_by_its_share_of_the_true_class() -> None:
    figure = plots.confusion_matrix(np.array([[30, 10], [0, 0]]), classes=TUMOURS)
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[0.75, 0.25], [0, 0]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("num_wrong", "num_tiles"), [(1, 1), (7, 7), (30, 25)])
def test_wrongest_draws_up_to_25_titled_tiles(num_wrong: int, num_tiles: int, channels: int) -> None:
    figure = wrong_images(num_wrong, channels)
    assert sum(bool(axes.images) for axes in figure.axes) == num_tiles == len(texts(figure))
    assert texts(figure)[0] == "true 4, said 9 (98 %)"


def test_wrongest_says_that_no_image_was_wrong() -> None:
    figure = wrong_images(0)
    assert [t.get_text() for t in figure.texts] == ["No test image was wrong."]


def test_tsne_draws_each_sample_as_its_short_class_name() -> None:
    labels = np.arange(40) % 10
    labels[labels == 3] = 7  # a class without a sample
    features = np.random.default_rng(0).normal(labels[:, None], 0.1, (40, 8)).astype(np.float32)
    figure = plots.tsne(features, labels=labels, classes=DIGITS)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == [DIGITS[k] for k in labels]
    assert len({str(t.get_color()) for t in axes.texts}) == 9
    low_x, high_x = axes.get_xlim()
    assert all(low_x < t.get_position()[0] < high_x for t in axes.texts)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("t-SNE dimension 1", "t-SNE dimension 2")


@pytest.mark.parametrize(("num_samples", "num_features"), [(4, 5), (40, 1), (40, 30)])
def test_tsne_draws_long_class_names_in_a_legend(num_samples: int, num_features: int) -> None:
    features = np.random.default_rng(0).normal(size=(num_samples, num_features)).astype(np.float32)
    figure = plots.tsne(features, labels=np.arange(num_samples) % 2, classes=TUMOURS)
    assert legend_texts(figure) == list(TUMOURS)
    drawn = [np.asarray(c.get_offsets()) for c in figure.axes[0].collections]
    assert sum(map(len, drawn)) == num_samples and all(np.isfinite(points).all() for points in drawn)


def test_tsne_takes_the_first_500_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_embed", lambda features, *, seed: features[:, :2])
    features = np.arange(1200, dtype=np.float32).reshape(600, 2)
    figure = plots.tsne(features, labels=np.zeros(600, int), classes=TUMOURS)
    assert np.asarray(figure.axes[0].collections[0].get_offsets()).tolist() == features[:500].tolist()


@pytest.mark.parametrize("num_samples", [0, 3, 50])
def test_tsne_of_too_few_or_equal_samples_is_a_note(num_samples: int) -> None:
    features = np.full((num_samples, 8), 0.5, np.float32)  # 50 of these crash scikit-learn 1.9 and Python
    figure = plots.tsne(features, labels=np.zeros(num_samples, int), classes=DIGITS)
    assert figure.axes == [] and len(figure.texts) == 1


def test_scatter_draws_every_point_of_every_split() -> None:
    splits = moons()
    figure = plots.scatter(splits, classes=TUMOURS, title="two moons")
    (axes,) = figure.axes
    assert [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()] == ["two moons", "feature 1", "feature 2"]
    drawn = [np.asarray(c.get_offsets()).tolist() for c in axes.collections]
    assert drawn == [x.tolist() for x, _ in splits.values()]
    assert legend_texts(figure) == [*TUMOURS, "train (30)", "val (12)", "test (18)"]


@pytest.mark.parametrize("shift", [0.0, 6.0, -6.0])
def test_the_grid_covers_the_square_and_every_point(shift: float) -> None:
    seen = []

    def predict(points: plots.Array) -> plots.Array:
        seen.append(points)
        return 1 / (1 + np.exp(-points[:, 0]))

    splits = moons(shift=shift)
    figure = plots.decision_regions(predict, splits, classes=TUMOURS)
    (grid,) = seen
    assert grid.shape == (plots.GRID**2, 2) and grid.dtype == np.float32
    low, high = grid.min(axis=0), grid.max(axis=0)
    assert (low <= -math.pi + 1e-6).all() and (high >= math.pi - 1e-6).all()
    for x, _ in splits.values():
        assert (low < x).all() and (x < high).all()
    if not shift:
        np.testing.assert_allclose([low, high], [[-math.pi] * 2, [math.pi] * 2], rtol=1e-6)
    mesh = figure.axes[0].collections[0]
    assert np.asarray(mesh.get_array()).ravel().tolist() == predict(grid).tolist()


def test_regions_grow_rightwards_and_upwards_with_the_features() -> None:
    figure = plots.decision_regions(lambda p: (p[:, 1] > 0).astype(np.int64), moons(), classes=TUMOURS)
    answers = np.asarray(figure.axes[0].collections[0].get_array())  # row 0 is drawn at the bottom
    assert answers[: plots.GRID // 2].max() == 0 and answers[plots.GRID // 2 :].min() == 1


@pytest.mark.parametrize("kind", ["probabilities", "classes", "one answer"])
def test_regions_list_classes_and_the_splits_that_hold_points(kind: str, tmp_path: Path) -> None:
    answers = {
        "probabilities": lambda p: 1 / (1 + np.exp(-p[:, 0])),
        "classes": lambda p: (p[:, 0] > 0).astype(np.int64),
        "one answer": lambda p: np.full(len(p), 0.3, np.float32),
    }
    splits = moons() | {"val": (np.zeros((0, 2), np.float32), np.zeros(0, int))}
    figure = plots.decision_regions(answers[kind], splits, classes=TUMOURS)
    plots.save(figure, tmp_path / "regions.png")
    axes = figure.axes[0]
    assert legend_texts(figure) == [*TUMOURS, "train (30)", "test (18)"]
    legend = axes.get_legend()
    assert legend and legend.get_window_extent().x0 > axes.get_window_extent().x1, "the legend covers the data"


def test_fitted_curve_draws_data_fit_and_residuals_in_the_order_of_x() -> None:
    x = np.random.default_rng(0).permutation(np.linspace(-3, 3, 50, dtype=np.float32))[:, None]
    figure = plots.fitted_curve(x, np.sin(x), predicted=0.5 * x, formula="y = 0.5 x")
    top, bottom = figure.axes
    data, fit, residual = (np.asarray(line.get_xydata()) for line in (*top.lines, bottom.lines[1]))
    assert data[:, 0].tolist() == fit[:, 0].tolist() == residual[:, 0].tolist() == sorted(x[:, 0].tolist())
    np.testing.assert_allclose(data[:, 1], np.sin(data[:, 0]), atol=1e-6)
    np.testing.assert_allclose(fit[:, 1], 0.5 * fit[:, 0], atol=1e-6)
    np.testing.assert_allclose(residual[:, 1], data[:, 1] - fit[:, 1], atol=1e-6)
    assert top.get_title(loc="right") == "y = 0.5 x"
    assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("y", "data - fit", "x")


def test_activations_draw_each_function_and_its_derivative() -> None:
    figure = pictures.activations()
    assert texts(figure) == list(ACTIVATIONS)
    for axes in figure.axes:
        function, derivative = axes.lines
        x, y = np.asarray(function.get_xydata()).T
        slope = np.asarray(derivative.get_ydata())
        assert (len(x), x[0], x[-1], derivative.get_linestyle()) == (10_000, -10, 10, "--")
        rise = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(x))])
        np.testing.assert_allclose(rise, y - y[0], atol=5e-3)  # the derivative's integral is the function


def test_moons_are_drawn_for_each_noise() -> None:
    figure = pictures.scatter()
    assert texts(figure) == ["noise 0", "noise 0.2", "noise 0.5"]
    assert [len(np.asarray(axes.collections[0].get_offsets())) for axes in figure.axes] == [1000] * 3


def test_samples_are_five_of_each_digit() -> None:
    figure = pictures.samples()
    assert sum(len(axes.images) for axes in figure.axes) == 50 and texts(figure) == list(DIGITS)


def test_raw_pixels_of_six_digits_are_drawn_by_tsne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_embed", lambda features, *, seed: features[:, 20:22].astype(np.float32))
    figure = pictures.tsne()
    assert len(figure.axes[0].texts) == 500 and {t.get_text() for t in figure.axes[0].texts} == set("012345")


def test_the_flag_names_every_picture() -> None:
    choices = PlotConfig.__dataclass_fields__["picture"].metadata["choices"]
    assert sorted(choices) == sorted(pictures.PICTURES)


def every_figure() -> dict[str, Figure]:
    x = np.linspace(-3, 3, 50)[:, None]
    features = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    return {
        "curves": plots.curves(history(20)),
        "no curves": plots.curves([]),
        "confusion_matrix": plots.confusion_matrix(np.eye(2, dtype=int), classes=TUMOURS),
        "wrongest": wrong_images(3),
        "tsne": plots.tsne(features, labels=np.arange(12) % 10, classes=DIGITS),
        "scatter": plots.scatter(moons(), classes=TUMOURS),
        "decision_regions": plots.decision_regions(lambda p: p[:, 0] > 0, moons(), classes=TUMOURS),
        "fitted_curve": plots.fitted_curve(x, np.sin(x), predicted=x),
    }


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    first, second = every_figure(), every_figure()
    for name in first:
        files = [tmp_path / folder / f"{name}.png" for folder in ("first", "saved again", "made again")]
        for figure, file in zip((first[name], first[name], second[name]), files, strict=True):
            plots.save(figure, file)
        contents = [file.read_bytes() for file in files]
        assert contents[0].startswith(b"\x89PNG")
        assert contents[0] == contents[1] == contents[2], name


def test_drawing_leaves_pyplot_and_torch_alone() -> None:
    code = "import sys; from pipeline import plots; plots.curves([]); print(*sys.modules, sep='\\n')"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "matplotlib.pyplot"} & set(done.stdout.split())
