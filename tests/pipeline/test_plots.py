"""Each picture shows what it is said to: points, numbers, names, the best step. No pixels are compared."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn import metrics

from models.activations import ACTIVATIONS
from pipeline import pictures, plots
from pipeline.cli import main
from pipeline.config import PlotConfig, RunConfig
from pipeline.curves import curves, kept_epoch
from tests.trainings import curve, fit

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
        for half in (0.5, 1):
            step = round(10 * (epoch - 1 + half))
            window = {"train/loss": 1.1 * factor ** (epoch - 1 + half), "samples": 320, "train/lr": 0.1}
            rows.append({"step": step, "epoch": epoch - 1 + half, "time": 1_700_000_000_000 + step} | window)
        common = {"step": 10 * epoch, "epoch": float(epoch), "time": 1_700_000_000_000 + 10 * epoch}
        distance = abs(epoch - best) / num_epochs
        figures = {"val/loss": 0.5 + distance, "val/accuracy": 0.9 - distance / 2, "train/epoch_loss": factor**epoch}
        rows.append(common | figures)
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
    return plots.top_losses(rng.integers(0, 256, (num, channels, 28, 28), dtype=np.uint8), **(values | changes))


def kept_lines(figure: Figure) -> list[float]:
    return [
        float(np.asarray(line.get_xdata())[0]) for axes in figure.axes for line in axes.lines if line.get_linestyle() == "--"
    ]


@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_the_epoch_whose_weights_were_kept_is_a_line_in_every_panel_and_named_once(monitor: str) -> None:
    figure = curves(history(20), monitor=monitor)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert figure.axes[-1].get_xlabel() == "optimiser step"
    assert kept_lines(figure) == [120, 120]
    value = {"loss": "0.5", "accuracy": "0.9"}[monitor]
    assert [t for t in legend_texts(figure) if "best" in t or "kept" in t] == [f"kept: epoch 12 (best val {monitor} {value})"]


VALUES = {  # (accuracy, loss) of epochs 1, 2, ...; the epoch that training keeps by accuracy, and by loss
    "ties go to the first": ([(0.9, 0.5), (0.9, 0.5), (0.8, 0.6)], 1, 1),
    "the loss decides between equal accuracies": ([(0.9, 0.5), (0.9, 0.4), (0.8, 0.3)], 2, 3),
    "a value that is not finite is never the best": ([(0.9, 0.5), (0.95, math.nan), (0.8, 0.6)], 1, 1),
}


@pytest.mark.parametrize(("values", "by_accuracy", "by_loss"), VALUES.values(), ids=VALUES)
def test_the_kept_epoch_is_found_as_training_chooses_it(values: Any, by_accuracy: int, by_loss: int) -> None:
    rows = [{"step": 5 * k, "epoch": float(k), "val/accuracy": a, "val/loss": b} for k, (a, b) in enumerate(values, start=1)]
    for monitor, epoch in (("accuracy", by_accuracy), ("loss", by_loss)):
        assert kept_lines(curves(rows, monitor=monitor))[0] == 5 * epoch


def test_without_validation_the_last_epoch_is_the_one_that_was_kept() -> None:
    rows = [{k: v for k, v in row.items() if not k.startswith("val/")} for row in history(6)]
    figure = curves(rows)
    assert kept_lines(figure) == [60] and "kept: epoch 6 (the last)" in legend_texts(figure)


def test_the_kept_epoch_of_a_real_training_is_the_one_that_its_state_names(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    for monitor in ("loss", "accuracy"):
        training = fit(make_config(model="mlp", epochs=12, lr=0.05, seed=1, monitor=monitor), tmp_path / monitor)
        found = kept_epoch(curve(training), monitor)
        assert found and found[0]["epoch"] == training.state.best_epoch < 12


@pytest.mark.parametrize(("smoothed", "words"), [(False, "train/loss"), (True, "train/loss (smoothed labels)")])
def test_the_means_of_epochs_stand_before_those_of_samples_and_smoothed_labels_are_named(smoothed: bool, words: str) -> None:
    epochs, windows, val, _ = curves(history(2000), smoothed=smoothed).axes[0].lines
    assert (epochs.get_label(), val.get_label()) == (f"{words}, epoch mean", "val/loss")
    assert windows.get_label() == "mean of 320 samples"
    assert len(np.asarray(epochs.get_xdata())) == len(np.asarray(val.get_xdata())) == 2000
    assert len(np.asarray(windows.get_xdata())) == 4000
    assert windows.get_zorder() < epochs.get_zorder() and windows.get_alpha() < 1 and windows.get_color() == epochs.get_color()


MISSING = {
    "epoch means": ("train/epoch_loss", ["train/loss, mean of 320 samples", "val/loss"]),
    "windows": ("train/loss", ["train/loss, epoch mean", "val/loss"]),
    "samples": ("samples", ["train/loss, epoch mean", "train/loss", "val/loss"]),
}


@pytest.mark.parametrize(("name", "labels"), MISSING.values(), ids=MISSING)
def test_curves_are_drawn_of_what_was_logged(name: str, labels: list[str]) -> None:
    figure = curves([{k: v for k, v in row.items() if k != name} for row in history(5)])
    assert [str(line.get_label()) for line in figure.axes[0].lines][: len(labels)] == labels


@pytest.mark.parametrize(("factor", "scale"), [(0.9, "linear"), (0.5, "log")])
def test_the_loss_axis_is_logarithmic_beyond_two_decades(factor: float, scale: str) -> None:
    assert curves(history(10, factor=factor)).axes[0].get_yscale() == scale


def test_rmse_has_a_panel_and_the_loss_says_what_was_kept() -> None:
    rows = [{"step": s, "epoch": float(s), "val/rmse": v, "val/loss": v * v} for s, v in ((1, 3.0), (2, 1.0), (3, 2.0))]
    assert legend_texts(curves(rows)) == ["val/loss", "kept: epoch 2 (best val loss 1)", "val/rmse"]


@pytest.mark.parametrize("varies", [True, False])
def test_one_learning_rate_is_drawn_only_if_it_varies(varies: bool) -> None:
    rows = [{"step": s, "train/loss": 1.0, "train/lr": 0.1 / (s if varies else 1)} for s in (1, 2, 3)]
    labels = [axes.get_ylabel() for axes in curves(rows).axes]
    assert labels == ["loss", "learning rate"][: 1 + varies]


def test_the_learning_rate_of_every_group_is_drawn_and_named() -> None:
    rates = {"train/lr": 5e-3, "train/lr/conv1": 0.0, "train/lr/hidden": 1e-5}
    rows = [{"step": s, "train/loss": 1.0} | rates for s in (1, 2, 3)]
    axes = curves(rows).axes[-1]
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn == {"train/lr": [5e-3] * 3, "train/lr/conv1 (0: frozen)": [0] * 3, "train/lr/hidden": [1e-5] * 3}
    assert len({str(line.get_color()) for line in axes.lines}) == 3
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] < 1e-5 < 5e-3 < axes.get_ylim()[1]


def test_curves_survive_a_loss_that_diverged(tmp_path: Path) -> None:
    rows = [{"step": s, "epoch": float(s), "val/loss": v} for s, v in enumerate((2.0, 1.0, math.inf, math.nan))]
    figure = curves(rows)
    assert "kept: epoch 1 (best val loss 1)" in legend_texts(figure)
    plots.save(figure, tmp_path / "curves.png", about="a run")


def test_one_row_is_drawn_as_a_point_on_whole_steps(tmp_path: Path) -> None:
    figure = curves(history(1)[1:])
    plots.save(figure, tmp_path / "curves.png", about="a run")
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines if line.get_linestyle() == "-")
    assert [t for t in figure.axes[-1].get_xticks() if t % 1] == []


@pytest.mark.parametrize("num_classes", [2, 10, 20])
def test_confusion_matrix_writes_every_count_in_its_cell(num_classes: int) -> None:
    counts = np.arange(num_classes**2).reshape(num_classes, num_classes)
    figure = plots.confusion_matrix(counts, classes=[f"class {k}" for k in range(num_classes)], split="test")
    axes = figure.axes[0]
    assert {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts} == {
        (i, j): str(counts[i, j]) for i, j in np.ndindex(counts.shape)
    }
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert axes.get_title() == f"{np.trace(counts)} of {counts.sum()} test samples right"


def test_confusion_matrix_colours_a_cell_by_its_share_of_the_true_class() -> None:
    figure = plots.confusion_matrix(np.array([[30, 10], [0, 0]]), classes=TUMOURS, split="test")
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[0.75, 0.25], [0, 0]]


def test_a_hundred_classes_are_drawn_without_their_counts(tmp_path: Path) -> None:
    names = [f"a long name of a class, number {k}" for k in range(100)]
    figure = plots.confusion_matrix(np.eye(100, dtype=int), classes=names, split="test")
    plots.save(figure, tmp_path / "matrix.png", about="a run")
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
    figure = plots.roc_pr(margin, is_positive=truth, positive="benign", split="test")
    area, average = metrics.roc_auc_score(truth, margin), metrics.average_precision_score(truth, margin)
    assert [t for t in legend_texts(figure) if t[-1].isdigit()] == [f"AUC {area:.4f}", f"average precision {average:.4f}"]
    assert "8 test samples, 4 of them benign" in figure.get_suptitle()
    points = [np.asarray(line.get_xydata()).tolist() for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert points == ([[[0.25, 0.75]], [[0.75, 0.75]]] if not shift else [[[0, 0]]])  # nothing is called benign any more


def test_roc_of_a_single_class_is_a_note() -> None:
    figure = plots.roc_pr(np.ones(3), is_positive=np.ones(3, bool), positive="benign", split="train")
    assert [t.get_text() for t in figure.texts] == ["ROC and precision-recall need train samples of both classes."]


@pytest.mark.parametrize("split", ["test", "train"])
def test_pictures_name_the_split_that_they_are_of(split: str) -> None:
    rng, x = np.random.default_rng(0), np.linspace(-3, 3, 50)[:, None]
    features = rng.normal(size=(8, 3)).astype(np.float32)
    figures = [
        plots.confusion_matrix(np.eye(2, dtype=int), classes=TUMOURS, split=split),
        plots.tsne(features, labels=np.arange(8) % 2, classes=TUMOURS, of=f"{split} samples"),
        plots.roc_pr(features[:, 0], is_positive=np.arange(8) > 3, positive="benign", split=split),
        plots.fitted_curve(x, np.sin(x), predicted=x, split=split),
    ]
    for figure in figures:
        words = " ".join([*texts(figure), *legend_texts(figure), figure.get_suptitle()])
        assert split in words and {"test": "train", "train": "test"}[split] not in words


@pytest.mark.parametrize("folder", ["cnn-2a2cd71d", "a-" * 100, "x" * 255, "$x_1$ \udcff"])
def test_every_saved_picture_carries_model_data_and_run_and_nothing_of_it_is_cut(folder: str, tmp_path: Path) -> None:
    figures = every_figure() | demanding_figures() if folder == "cnn-2a2cd71d" else {"the narrowest": curves([])}
    for name, figure in figures.items():
        for _ in range(2):
            plots.save(figure, tmp_path / f"{name}.png", about=f"cnn on digits, run {folder}")
        heading = figure.get_suptitle()
        assert heading.startswith("cnn on digits, run") and heading.count("cnn on digits") == 1
        figure.set_dpi(plots._DPI)  # letters are a whole number of dots apart
        figure.draw_without_rendering()
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 >= 0 and drawn.x1 <= width and drawn.y0 >= 0 and drawn.y1 <= height, f"{name} is cut: {drawn}"


@pytest.mark.parametrize("picture", pictures.PICTURES)
def test_a_picture_without_a_run_says_above_it_what_it_shows(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "_embed", lambda features, *, seed: features[:, 20:22].astype(np.float32))
    saved: list[Figure] = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path, *, about: (saved.append(figure), save(figure, path, about=about)))
    assert main(["plot", "--picture", picture]) == 0
    assert (
        capsys.readouterr().out == f"drawing {picture} ...\nruns/plots/{picture}.png\n"
        and Path(f"runs/plots/{picture}.png").is_file()
    )
    assert saved[0].get_suptitle() == pictures.PICTURES[picture][0]
    boxes = [saved[0]._suptitle, *(axes.get_legend() for axes in saved[0].axes), *saved[0].legends]  # type: ignore[attr-defined]
    title, *others = (box.get_window_extent() for box in boxes if box)
    assert not [box for box in others if box.overlaps(title)]


def test_tsne_draws_each_sample_as_its_short_class_name() -> None:
    labels = np.arange(40) % 10
    labels[labels == 3] = 7  # a class without a sample
    features = np.random.default_rng(0).normal(labels[:, None], 0.1, (40, 8)).astype(np.float32)
    figure = plots.tsne(features, labels=labels, classes=DIGITS, of="test samples")
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == [DIGITS[k] for k in labels]
    assert len({str(t.get_color()) for t in axes.texts}) == 9
    low_x, high_x = axes.get_xlim()
    assert all(low_x < t.get_position()[0] < high_x for t in axes.texts)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("t-SNE dimension 1", "t-SNE dimension 2")


@pytest.mark.parametrize(("num_samples", "num_features"), [(4, 5), (40, 1), (40, 30)])
def test_tsne_draws_long_class_names_in_a_legend(num_samples: int, num_features: int) -> None:
    features = np.random.default_rng(0).normal(size=(num_samples, num_features)).astype(np.float32)
    figure = plots.tsne(features, labels=np.arange(num_samples) % 2, classes=TUMOURS, of="test samples")
    assert legend_texts(figure) == list(TUMOURS)
    drawn = [np.asarray(c.get_offsets()) for c in figure.axes[0].collections]
    assert sum(map(len, drawn)) == num_samples and all(np.isfinite(points).all() for points in drawn)


def test_tsne_takes_the_first_500_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_embed", lambda features, *, seed: features[:, :2])
    features = np.arange(1200, dtype=np.float32).reshape(600, 2)
    figure = plots.tsne(features, labels=np.zeros(600, int), classes=TUMOURS, of="test samples")
    assert np.asarray(figure.axes[0].collections[0].get_offsets()).tolist() == features[:500].tolist()


@pytest.mark.parametrize("num_samples", [0, 3, 50])
def test_tsne_of_too_few_or_equal_samples_is_a_note(num_samples: int) -> None:
    features = np.full((num_samples, 8), 0.5, np.float32)  # 50 of these crash scikit-learn 1.9 and Python
    figure = plots.tsne(features, labels=np.zeros(num_samples, int), classes=DIGITS, of="test samples")
    assert figure.axes == [] and len(figure.texts) == 1


def test_scatter_draws_every_point_of_every_split() -> None:
    splits = moons()
    figure = plots.scatter(splits, classes=TUMOURS)
    (axes,) = figure.axes
    assert [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()] == ["Samples", "feature 1", "feature 2"]
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
    plots.save(figure, tmp_path / "regions.png", about="a run")
    axes = figure.axes[0]
    assert legend_texts(figure) == [*TUMOURS, "train (30)", "test (18)"]
    legend = axes.get_legend()
    assert legend and legend.get_window_extent().x0 > axes.get_window_extent().x1, "the legend covers the data"


def test_fitted_curve_draws_data_fit_and_residuals_in_the_order_of_x() -> None:
    x = np.random.default_rng(0).permutation(np.linspace(-3, 3, 50, dtype=np.float32))[:, None]
    figure = plots.fitted_curve(x, np.sin(x), predicted=0.5 * x, split="test", formula="y = 0.5 x")
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
        "curves": curves(history(20)),
        "no curves": curves([]),
        "confusion_matrix": plots.confusion_matrix(np.eye(2, dtype=int), classes=TUMOURS, split="test"),
        "top_losses": losses(3),
        "roc_pr": plots.roc_pr(features[:, 0], is_positive=features[:, 1] > 0, positive="benign", split="test"),
        "tsne": plots.tsne(features, labels=np.arange(12) % 10, classes=DIGITS, of="test samples"),
        "scatter": plots.scatter(moons(), classes=TUMOURS),
        "decision_regions": plots.decision_regions(lambda p: p[:, 0] > 0, moons(), classes=TUMOURS),
        "fitted_curve": plots.fitted_curve(x, np.sin(x), predicted=x, split="test"),
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
        "100 classes": plots.confusion_matrix(np.eye(100, dtype=int), classes=names, split="test"),
        "long names": plots.confusion_matrix(np.eye(3, dtype=int), classes=names[:3], split="test"),
        "tsne": plots.tsne(features, labels=numbers, classes=names, of="test samples, by the features"),
        "losses": losses(25, 3, classes=names),
        "one loss": losses(1, classes=names),
    }


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    first, second = every_figure(), every_figure()
    for name in first:
        files = [tmp_path / folder / f"{name}.png" for folder in ("first", "saved again", "made again")]
        for figure, file in zip((first[name], first[name], second[name]), files, strict=True):
            plots.save(figure, file, about="a run")
        contents = [file.read_bytes() for file in files]
        assert contents[0].startswith(b"\x89PNG")
        assert contents[0] == contents[1] == contents[2], name


def test_drawing_leaves_pyplot_and_torch_alone() -> None:
    code = "import sys; from pipeline.curves import curves; curves([]); print(*sys.modules, sep='\\n')"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "matplotlib.pyplot"} & set(done.stdout.split())
