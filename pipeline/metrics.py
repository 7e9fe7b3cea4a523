"""What is measured of a model's answers: each metric by its name, the tasks that it fits, and what it is called in MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_CLASSES = ("multiclass", "multilabel", "binary")
_ALL = (*_CLASSES, "regression")


@dataclass(frozen=True)
class Results:
    """What a metric is of: scores (N, K), targets and predictions (both (N,) or (N, K)), and the classes' or targets' names."""

    scores: Array
    true: Array
    predicted: Array
    names: tuple[str, ...]

    @cached_property
    def by_class(self) -> dict[str, Any]:
        """Precision, recall, F1 and support by the name of the class, and their `macro avg`."""
        return _sklearn().classification_report(
            self.true, self.predicted, labels=[*range(len(self.names))], target_names=[*self.names], output_dict=True,
            zero_division=0.0,
        )  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """`compute` turns `Results` into a JSON value, None where it is not defined; a `headline` stands first in MLflow."""

    tasks: tuple[str, ...]
    compute: Callable[[Results], Any]
    headline: bool = False


def _sklearn() -> Any:
    from sklearn import metrics

    return metrics


def _over_labels(found: Results, score: str) -> float | None:
    """A score of scikit-learn's over the labels that have samples of both kinds, on average; None without any."""
    pairs = zip(found.true.reshape(len(found.true), -1).T, found.scores.T, strict=True)
    values = [float(getattr(_sklearn(), score)(true, scores)) for true, scores in pairs if len(set(true.tolist())) == 2]
    return sum(values) / len(values) if values else None


def _top5(found: Results) -> float | None:
    """The share of samples whose class is among the five of the largest scores; None for five classes or fewer."""
    if len(found.names) <= 5:
        return None
    return float(_sklearn().top_k_accuracy_score(found.true, found.scores, k=5, labels=[*range(len(found.names))]))


def _balanced(found: Results) -> float:
    """The recall of each class that occurs, on average."""
    occurring = sorted(set(found.true.tolist()))
    return float(_sklearn().recall_score(found.true, found.predicted, labels=occurring, average="macro", zero_division=0.0))


def _by_target(found: Results) -> dict[str, dict[str, float]] | None:
    """RMSE and R^2 of each of several targets, by its name."""
    if len(found.names) == 1:
        return None
    columns = zip(found.names, found.true.T, found.predicted.T, strict=True)
    return {name: {"rmse": _rmse(true, predicted), "r2": float(_sklearn().r2_score(true, predicted))}
            for name, true, predicted in columns}  # fmt: skip


def _rmse(true: Array, predicted: Array) -> float:
    return float(_sklearn().root_mean_squared_error(true.ravel(), predicted.ravel()))


METRICS: Mapping[str, Metric] = {  # those with a single value of several targets: over all values, and R^2 their average
    "accuracy": Metric(
        _CLASSES, lambda r: float(_sklearn().accuracy_score(r.true.ravel(), r.predicted.ravel())), headline=True
    ),
    "rmse": Metric(("regression",), lambda r: _rmse(r.true, r.predicted), headline=True),
    "r2": Metric(("regression",), lambda r: float(_sklearn().r2_score(r.true, r.predicted)), headline=True),
    "max_error": Metric(("regression",), lambda r: float(abs(r.true - r.predicted).max())),
    "sse": Metric(("regression",), lambda r: float(((r.true.astype("float64") - r.predicted) ** 2).sum())),
    "targets": Metric(("regression",), _by_target),
    "num_samples": Metric(_ALL, lambda r: len(r.true)),
    "macro": Metric(_CLASSES, lambda r: r.by_class["macro avg"]),
    "classes": Metric(_CLASSES, lambda r: {name: r.by_class[name] for name in r.names}),
    "confusion_matrix": Metric(
        ("multiclass", "binary"),
        lambda r: _sklearn().confusion_matrix(r.true, r.predicted, labels=[*range(len(r.names))]).tolist(),
    ),
    "roc_auc": Metric(("multilabel", "binary"), lambda r: _over_labels(r, "roc_auc_score"), headline=True),
    "average_precision": Metric(("multilabel", "binary"), lambda r: _over_labels(r, "average_precision_score")),
    "balanced_accuracy": Metric(("multiclass", "binary"), _balanced),
    "top5_accuracy": Metric(("multiclass",), _top5),
    "mae": Metric(("regression",), lambda r: float(_sklearn().mean_absolute_error(r.true.ravel(), r.predicted.ravel()))),
}


_LONGEST = 150  # characters of a class's or target's name in that of a metric: MLflow takes 250 for all of it


def flat_metrics(report: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return a report's numbers under MLflow names: `test/accuracy` and others, `test_f1_macro`, `test_class_<name>_f1`,
    `test_target_<name>_rmse`, in which a name of the data has `_` for what MLflow takes in none.

    MLflow's page of a run has a section for each `<prefix>/`, in the order of the alphabet, and those without one come last: so
    only few metrics stand before the curves of `train/` and `val/`.
    """
    first = {"loss", *(name for name, metric in METRICS.items() if metric.headline)}
    flat = {f"{prefix}{'/' if k in first else '_'}{k}": float(v) for k, v in report.items() if isinstance(v, float)}
    classes, targets = (_allowed(report.get(key, {})) for key in ("classes", "targets"))
    for key in ("precision", "recall", "f1-score"):
        name = key.removesuffix("-score")
        if "macro" in report:
            flat[f"{prefix}_{name}_macro"] = float(report["macro"][key])
        flat |= {f"{prefix}_class_{classes[c]}_{name}": float(values[key]) for c, values in report.get("classes", {}).items()}
    for target, values in report.get("targets", {}).items():
        flat |= {f"{prefix}_target_{targets[target]}_{name}": value for name, value in values.items()}
    return flat


def _allowed(names: Iterable[str]) -> dict[str, str]:
    """Return names of classes or targets as MLflow takes them in a metric's name, no two of them the same."""
    found: dict[str, str] = {}
    for name in names:
        short = allowed = re.sub(r"[^\w.\- ]+", "_", name)[:_LONGEST]
        while allowed in found.values():
            allowed = f"{short}_{len(found)}" if allowed == short else allowed + "_"
        found[name] = allowed
    return found
