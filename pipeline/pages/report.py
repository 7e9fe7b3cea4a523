"""report.html: all that is known of a run on one page, made of what its stages have left in its folder and of its data.

Made again from the same files it has the same bytes. What is not there yet, a proof or a benchmark, is said to be missing, with
the command that makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import __version__, answers, calibration, files, intervals, manifest
from pipeline.answers import Answers
from pipeline.data.prepare import read_raw
from pipeline.output import say
from pipeline.pages import artifacts, charts, figures, loading, samples
from pipeline.pages.page import png, render
from pipeline.plots.curves import kept_epoch
from pipeline.run import Run, parse_rows
from pipeline.tracking.tracker import Tracker

_DRAWN_HERE = ("curves", "confusion_matrix", "top_losses")  # pictures that the page has in its own way
_MOST_CELLS = 20  # classes of a confusion matrix, beyond which the picture and the largest confusions are shown
_MOST_CLASSES = 60


def write(run: Run, data: Path) -> Path:
    """Write a run's report.html, unsealed; `data` is the prepared folder. Raises UserError where it was not evaluated yet."""
    found = answers.read(run)
    raw = read_raw(data) if run.data.columns else {}
    proof = artifacts.parity(run)
    exported = artifacts.exported(run, proof)
    table = files.read_json(run.folder / f"{found.split}.json")
    has_decisions = found.decided is not None
    text = render(
        "report.html", title=f"{Path(run.config.model).name} on {run.data.name}", run=run, folder=run.folder.resolve().name,
        version=__version__, split=found.split, num_samples=len(found.target), num_resamples=intervals.num_resamples(
            len(found.target)), metric=run.task.metric, has_decisions=has_decisions, is_image=run.data.is_image,
        counts=samples.counts(run, data), examples=samples.examples(run, data, found.split), columns=samples.columns(run),
        recipe=artifacts.recipe(run), curves=_curves(run), **_figures(run, found, table), **_confusion(run, table),
        calibration=_calibration(run, found) if has_decisions else None, top=samples.top_losses(run, data, found),
        fits=[] if has_decisions else _fits(run, found), pictures=_pictures(run, is_large=len(run.data.classes) > _MOST_CELLS),
        proof=proof, exported=exported, benchmark=artifacts.benchmark(run), moments=artifacts.moments(run),
        lineage=artifacts.lineage(run, found.split_sha256),
        snippets=loading.snippets(run, {f["name"]: f["format"] for f in exported if f["name"].startswith("export/")}, raw=raw),
    )  # fmt: skip
    run.unseal("report")
    with files.atomic(run.folder / manifest.PAGE) as path:
        path.write_text(text)
    return run.folder / manifest.PAGE


def publish(run: Run, tracker: Tracker, data: Path) -> None:
    """Write a run's page, seal it, and send all files of the run to MLflow."""
    page = write(run, data)
    run.seal("report")
    tracker.upload()
    say(f"report of the run: {page}")


def _figures(run: Run, found: Answers, table: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with their intervals, those without, the baselines of scikit-learn, and what each class has."""
    told = figures.estimates(found, has_labels=run.task.has_labels)
    rows = [{"name": n, "value": e.value, "interval": e.interval} for n, e in told.items() if not n.startswith("class ")]
    more = {name: value for name, value in table.items() if isinstance(value, float) and name not in told}
    rows += [{"name": f"{name} (of the training)" if name == "loss" else name, "value": value, "interval": None}
             for name, value in more.items()]  # fmt: skip
    journal = parse_rows((run.folder / manifest.METRICS).read_bytes(), run.folder / manifest.METRICS)
    baselines = {name: value for row in journal for name, value in row.items() if name.startswith("baseline/")}
    names = run.data.classes or run.data.targets
    kinds = [n.removeprefix("class 0 ") for n in told if n.startswith("class 0 ")]
    by_class = [{"name": name, "figures": [told[f"class {k} {kind}"] for kind in kinds]}
                for k, name in enumerate(names[:_MOST_CLASSES])] if kinds else []  # fmt: skip
    wrong = 0 if found.decided is None else int((~figures.right(found)).any(axis=1).sum())
    return {"figures": rows, "headline": told[run.task.metric], "baselines": baselines, "by_class": by_class, "kinds": kinds,
            "num_wrong": wrong, "num_more_classes": max(0, len(names) - _MOST_CLASSES)}  # fmt: skip


def _curves(run: Run) -> list[dict[str, Any]]:
    rows = parse_rows((run.folder / manifest.METRICS).read_bytes(), run.folder / manifest.METRICS)
    panels = {
        "loss": ("train/epoch_loss", "train/loss", "val/loss", "val/ema/loss"),
        "accuracy": ("train/accuracy", "val/accuracy", "val/ema/accuracy"), "rmse": ("train/rmse", "val/rmse", "val/ema/rmse"),
        "learning rate": ("train/lr",),
    }  # fmt: skip
    kept = kept_epoch(rows, run.config.monitor)
    drawn = []
    for label, names in panels.items():
        series = {}
        for name in names:
            if points := [(row["step"], row[name]) for row in rows if name in row]:
                steps, values = np.array(points, dtype=float).T
                series[name] = (steps, values)
        if series:
            mark = kept[0]["step"] if kept else None
            chart = charts.lines(series, x="optimizer step", y=label, mark=mark)
            drawn.append({"chart": chart, "label": label, "names": [*zip(series, charts.COLORS)]})  # noqa: B905
    return [{"panels": drawn, "kept": f"epoch {kept[0]['epoch']:g}, {kept[1]}" if kept else ""}]


def _confusion(run: Run, table: dict[str, Any]) -> dict[str, Any]:
    matrix = table.get("confusion_matrix")
    if not matrix:
        return {"matrix": None, "confusions": []}
    small = len(matrix) <= _MOST_CELLS
    return {"matrix": samples.shades(matrix) if small else None, "confusions": samples.confusions(matrix, run.data.classes)}


def _calibration(run: Run, found: Answers) -> dict[str, Any]:
    applied = artifacts.calibrated(run)
    temperatures = {"as trained": 1.0} | ({f"exported, T = {applied['temperature']:g}": applied["temperature"]}
                                          if applied else {})  # fmt: skip
    tables = figures.calibrations(found, temperatures, has_labels=run.task.has_labels)
    rows = [
        {
            "name": name, "ece": float(calibration.expected_error(tables[name])),
            "nll": float(calibration.negative_log_likelihood(found.scores, found.target, temperature=value).mean()),
        }
        for name, value in temperatures.items()
    ]  # fmt: skip
    bins = [[f"{k / calibration.BINS:.3f} to {(k + 1) / calibration.BINS:.3f}", int(n), s / n, r / n]
            for k, (n, s, r) in enumerate(tables[[*tables][-1]].T.tolist()) if n]  # fmt: skip
    return {"chart": charts.reliability(tables), "rows": rows, "names": [*zip(tables, charts.COLORS)], "applied": applied,  # noqa: B905
            "bins": bins, "can_be": bool(run.data.counts.get("val"))}  # fmt: skip


def _fits(run: Run, found: Answers) -> list[dict[str, Any]]:
    names = run.data.targets or ("",)
    return [{"chart": charts.scatter(found.target[:, k], found.scores[:, k], name=name)} for k, name in enumerate(names[:6])]


def _pictures(run: Run, *, is_large: bool) -> list[dict[str, str]]:
    """Return the pictures of the evaluation that the page does not draw itself, as they are."""
    drawn = tuple(name for name in _DRAWN_HERE if name != "confusion_matrix" or not is_large)
    sealed = [name for name in manifest.read(run.folder)[1] if name.startswith("plots/")]
    return [
        {"name": Path(name).stem.replace("_", " "), "src": png((run.folder / name).read_bytes())}
        for name in sealed
        if Path(name).stem not in drawn
    ]
