"""What scikit-learn makes of the same table: a boosted forest and a linear model, by which a network has to be measured.

Both learn from the encoded training samples and are judged on the test samples that the network is judged on.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.loader import evaluation_split, open_split
from pipeline.output import say
from pipeline.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MOST = 200_000  # training samples; more take minutes and change little


def baselines(run: Run, folder: Path) -> dict[str, float]:
    """Return the task's metric of each baseline on the test split, as `baseline/<name>/<metric>`, for the data in `folder`.

    None where no test split was held out. What cannot be fitted, as where a label is always the same, is told and left out.
    """
    import torch

    if evaluation_split(folder) != "test":
        return {}
    train, held = open_split(folder, "train"), open_split(folder, "test")
    if len(train) > _MOST:
        say(f"they learn from the first {_MOST:,} of {len(train):,} training samples")
    x, y = train.x[:_MOST].numpy(), train.y[:_MOST].numpy()
    mean, std = (torch.tensor(values, dtype=torch.float32).numpy() for values in (run.data.mean, run.data.std))
    std[std == 0] = 1
    found = {}
    for name, model in _models(run, y).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it did not converge: what it found is what is reported
                predicted = model.fit((x - mean) / std, y).predict((held.x.numpy() - mean) / std)
        except ValueError as error:
            say(f"baseline {name} cannot be fitted: {str(error).splitlines()[0]}")
            continue
        found[f"baseline/{name}/{run.task.metric}"] = _metric(run, held.y.numpy(), predicted.reshape(held.y.shape))
    return found


def _models(run: Run, y: Array) -> dict[str, Any]:
    from sklearn import ensemble, linear_model, multioutput

    seed = {"random_state": run.config.seed}
    if not run.task.has_decisions:
        forest: Any = ensemble.HistGradientBoostingRegressor(**seed)
        if y.shape[1] > 1:
            forest = multioutput.MultiOutputRegressor(forest)
            return {"hist_gradient_boosting": forest, "ridge": linear_model.Ridge()}
        return {"hist_gradient_boosting": _Raveled(forest), "ridge": linear_model.Ridge()}
    forest, linear = ensemble.HistGradientBoostingClassifier(**seed), linear_model.LogisticRegression(max_iter=200)
    if y.ndim == 2:
        forest, linear = multioutput.MultiOutputClassifier(forest), multioutput.MultiOutputClassifier(linear)
    return {"hist_gradient_boosting": forest, "logistic_regression": linear}


class _Raveled:
    """A regressor of one target that is given as a column."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, x: Array, y: Array) -> Any:
        return self.model.fit(x, y[:, 0])


def _metric(run: Run, true: Array, predicted: Array) -> float:
    if run.task.has_decisions:
        return float((true == predicted).mean())
    return float(((true.astype("float64") - predicted) ** 2).mean() ** 0.5)
