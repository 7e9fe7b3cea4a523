"""Figures of merit: exact sums while training, scikit-learn's reports for a whole test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.generic]


def merit_name(task: str) -> str:
    """Return the name of the figure that tells how good a model is: accuracy, or rmse for regression."""
    return "rmse" if task == "regression" else "accuracy"


def merit_sum(task: str, scores: Tensor, target: Tensor) -> Tensor:
    """Return the number of right answers, or the sum of squared errors, of (B, K) raw scores or predictions; 0-d, on device."""
    if task == "regression":
        return ((scores - target) ** 2).sum()
    return (predicted_labels(task, scores) == target).sum()


def merit(task: str, total: float, count: int) -> float:
    """Turn a sum of `merit_sum` over `count` samples into the figure."""
    return (total / count) ** 0.5 if task == "regression" else total / count


def predicted_labels(task: str, scores: Tensor) -> Tensor:
    """Return the class (B,) int64 that raw scores (B, K) stand for; a binary score above 0 is class 1."""
    return (scores[:, 0] > 0).long() if task == "binary" else scores.argmax(1)


def probabilities(task: str, scores: Tensor) -> Tensor:
    """Return the probability of each class (B, C) for raw scores (B, K)."""
    if task == "binary":
        return torch.cat([torch.sigmoid(-scores), torch.sigmoid(scores)], dim=1)
    return scores.softmax(1)


def classification_report(scores: Tensor, target: Tensor, *, task: str, classes: Sequence[str]) -> dict[str, Any]:
    """Return accuracy, precision, recall and F1 per class and averaged, the confusion matrix, and ROC AUC if binary."""
    from sklearn import metrics

    true, predicted = target.numpy(), predicted_labels(task, scores).numpy()
    labels = list(range(len(classes)))
    report = metrics.classification_report(
        true, predicted, labels=labels, target_names=list(classes), output_dict=True, zero_division=0.0
    )
    result: dict[str, Any] = {
        "accuracy": float(metrics.accuracy_score(true, predicted)),
        "num_samples": len(true),
        "macro": report["macro avg"],
        "classes": {name: report[name] for name in classes},
        "confusion_matrix": metrics.confusion_matrix(true, predicted, labels=labels).tolist(),
    }
    if task == "binary" and len(np.unique(true)) == 2:
        result["roc_auc"] = float(metrics.roc_auc_score(true, scores[:, 0].numpy()))
    return result


def regression_report(prediction: Tensor, target: Tensor) -> dict[str, Any]:
    """Return RMSE, R^2, largest and summed squared error of predictions (N, 1)."""
    from sklearn import metrics

    true, predicted = target.numpy(), prediction.numpy()
    return {
        "rmse": float(metrics.root_mean_squared_error(true, predicted)),
        "r2": float(metrics.r2_score(true, predicted)),
        "max_error": float(np.abs(true - predicted).max()),
        "sse": float(((true.astype(np.float64) - predicted) ** 2).sum()),
        "num_samples": len(true),
    }


_FIRST = ("loss", "accuracy", "roc_auc", "rmse", "r2")


def flat_figures(report: dict[str, Any], prefix: str) -> dict[str, float]:
    """Return the report's numbers under MLflow names: `test/accuracy` and others, `test_f1_macro`, `test_class_<name>_f1`.

    MLflow's page of a run has a section for each `<prefix>/`, in the order of the alphabet, and those without one come last: so
    only few figures stand before the curves of `train/` and `val/`.
    """
    figures = {f"{prefix}{'/' if k in _FIRST else '_'}{k}": float(v) for k, v in report.items() if isinstance(v, float)}
    for key in ("precision", "recall", "f1-score"):
        name = key.removesuffix("-score")
        if "macro" in report:
            figures[f"{prefix}_{name}_macro"] = float(report["macro"][key])
        figures |= {f"{prefix}_class_{c}_{name}": float(values[key]) for c, values in report.get("classes", {}).items()}
    return figures
