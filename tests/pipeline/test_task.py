"""Losses, metrics and decisions of every kind of task, held against torch's and scikit-learn's own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from models.two_layer import TwoLayer
from pipeline.data import find, matching
from pipeline.losses import LOSSES, MeanLoss, loss_divisor
from pipeline.metrics import METRICS, flat_metrics
from pipeline.task import TASKS, task
from tests.conftest import ROOT

N = 12
KINDS = {"multiclass": ("multiclass", 4), "multilabel": ("multilabel", 3), "binary": ("binary", 1),
         "regression": ("regression", 1), "two targets": ("regression", 2)}  # {kind: (task, K)}  # fmt: skip
EACH_LOSS = [(kind, name) for kind, (task_name, _) in KINDS.items() for name in task(task_name).losses]
reports = pytest.mark.filterwarnings("error")  # scikit-learn warns about what is not defined, and we do not report it
CLASSIFYING = [kind for kind, (task_name, _) in KINDS.items() if task(task_name).has_decisions]


def _scores_and_target(kind: str, num: int = N) -> tuple[Tensor, Tensor]:
    name, width = KINDS[kind]
    torch.manual_seed(0)
    scores = torch.randn(num, width)
    targets = {
        "multiclass": lambda: torch.randint(0, width, (num,)),
        "multilabel": lambda: torch.randint(0, 2, (num, width)).float(),
        "binary": lambda: torch.randint(0, 2, (num,)),
        "regression": lambda: torch.randn(num, width),
    }
    return scores, targets[name]()


def _of(kind: str) -> Any:
    return task(KINDS[kind][0])


def _torchs(kind: str, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return torch's own mean loss, or for sse the sum."""
    width = KINDS[kind][1]
    wide: Callable[[Tensor], Tensor] = {
        "multiclass": lambda y: F.one_hot(y, width).float(), "binary": lambda y: y[:, None].float()
    }.get(kind, lambda y: y)  # fmt: skip
    squashed: Callable[[Tensor], Tensor] = torch.sigmoid if kind in ("binary", "multilabel") else lambda scores: scores
    return {
        "cross_entropy": F.cross_entropy,
        "nll": lambda scores, y: F.nll_loss(scores.log_softmax(1), y),
        "bce": lambda scores, y: F.binary_cross_entropy(torch.sigmoid(scores), wide(y)),
        "mse": lambda scores, y: F.mse_loss(squashed(scores), wide(y)),
        "sse": lambda scores, y: (squashed(scores) - wide(y)).square().sum(),
        "huber": F.huber_loss,
        "focal": lambda scores, y: (
            _focal(scores, y)
            if kind == "multiclass"
            else sigmoid_focal_loss(scores, wide(y), alpha=-1, gamma=2, reduction="mean")
        ),
    }[name]


def _focal(scores: Tensor, y: Tensor) -> Tensor:
    """Return the mean focal loss of gamma=2 as its paper writes it."""
    right = scores.softmax(1).gather(1, y[:, None])[:, 0]
    return (-((1 - right) ** 2) * right.log()).mean()


@pytest.mark.parametrize(("kind", "name"), EACH_LOSS)
def test_a_loss_over_its_divisor_is_torchs_own(kind: str, name: str) -> None:
    scores, y = _scores_and_target(kind)
    ours = _of(kind).loss_sum(name)(scores, y) / loss_divisor(name, N)
    torch.testing.assert_close(ours, _torchs(kind, name)(scores, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "name"), EACH_LOSS)
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_whole_also_of_an_empty_part(kind: str, name: str) -> None:
    scores, y = _scores_and_target(kind)
    x, weights = torch.randn(N, 5), torch.randn(5, scores.shape[1], requires_grad=True)
    loss = _of(kind).loss_sum(name)
    seen = []
    for cuts in ([(0, N)], [(0, 5), (5, 5), (5, N)]):
        losses = [loss(x[a:b] @ weights, y[a:b]) / loss_divisor(name, N) for a, b in cuts]
        seen.append((sum(losses), *torch.autograd.grad(sum(losses), weights)))
    torch.testing.assert_close(*seen)
    own = _torchs(kind, name)(x @ weights, y)
    torch.testing.assert_close(seen[0][1], *torch.autograd.grad(own, weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_metric_of_parts_adds_up_and_is_the_reports(kind: str) -> None:
    scores, y = _scores_and_target(kind)
    total = sum(_of(kind).metric_sum(scores[a:b], y[a:b]).item() for a, b in ((0, 5), (5, 5), (5, N)))
    names = [f"name {k}" for k in range(max(2, scores.shape[1]))]
    report = _of(kind).report(scores, y, **({"classes": names} if _of(kind).has_decisions else {}))
    assert _of(kind).metric_value(total, N) == pytest.approx(report[_of(kind).metric], rel=1e-6)


def test_label_smoothing_is_torchs() -> None:
    scores, y = _scores_and_target("multiclass")
    ours = task("multiclass").loss_sum("cross_entropy", label_smoothing=0.1)(scores, y) / N
    torch.testing.assert_close(ours, F.cross_entropy(scores, y, label_smoothing=0.1))


def test_a_networks_hand_written_loss_is_used_and_agrees_with_torch() -> None:
    network = TwoLayer(input_shape=(2,), num_outputs=1, hidden=3)
    scores, y = _scores_and_target("binary")
    ours = task("binary").loss_sum("bce", network=network)(scores.requires_grad_(), y)
    torch.testing.assert_close(ours, task("binary").loss_sum("bce")(scores, y))
    assert "BinaryCrossEntropy" in type(ours.grad_fn.next_functions[0][0]).__name__  # type: ignore[union-attr]


def test_mean_losses_weigh_samples_and_sums_are_summed() -> None:
    losses = MeanLoss()
    losses.add(2.0, 3)
    losses.add(5.0, 1)
    assert (losses.over_samples("mse"), losses.over_steps("mse")) == (11 / 4, 11 / 4)
    assert (losses.over_samples("sse"), losses.over_steps("sse")) == (7, 3.5)


@pytest.mark.parametrize("kind", CLASSIFYING)
def test_probabilities_are_softmax_or_sigmoid_and_their_largest_is_the_decision(kind: str) -> None:
    scores, _ = _scores_and_target(kind, 200)
    probabilities, decided = _of(kind).probabilities(scores), _of(kind).decide(scores)
    assert decided.dtype == torch.int64
    if kind == "multilabel":
        torch.testing.assert_close(probabilities, torch.sigmoid(scores))
        assert torch.equal(decided, (probabilities > 0.5).long())
        return
    both = torch.cat([torch.zeros_like(scores), scores], dim=1) if kind == "binary" else scores  # a binary score is a log odds
    torch.testing.assert_close(probabilities, torch.softmax(both, dim=1))
    assert torch.equal(decided, probabilities.argmax(1))


def test_a_score_of_zero_is_a_no() -> None:
    scores = torch.tensor([[-0.1], [0.0], [0.1]])
    assert task("binary").decide(scores).tolist() == [0, 0, 1]
    assert task("multilabel").decide(scores.T).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_exported_outputs_have_their_names_and_are_traced_as_they_are_computed(kind: str) -> None:
    class Exported(nn.Module):
        def forward(self, scores: Tensor, features: Tensor) -> tuple[Tensor, ...]:
            return _of(kind).export_outputs(scores, features)

    (scores, _), features = _scores_and_target(kind), torch.randn(N, 5)
    outputs = dict(zip(_of(kind).outputs, _of(kind).export_outputs(scores, features), strict=True))
    assert next(iter(outputs.values())) is scores
    if _of(kind).has_decisions:
        assert torch.equal(outputs["probabilities"], _of(kind).probabilities(scores)) and outputs["features"] is features
    program = torch.export.export(Exported(), (scores, features), dynamic_shapes=({0: torch.export.Dim("batch")},) * 2)
    for traced in (program.module(), torch.jit.trace(Exported(), (scores, features))):
        for theirs, ours in zip(traced(scores[:5], features[:5]), outputs.values(), strict=True):
            torch.testing.assert_close(theirs, ours[:5])


@reports
@pytest.mark.parametrize("kind", CLASSIFYING)
def test_the_report_of_a_classifier_is_scikit_learns(kind: str) -> None:
    scores, y = _scores_and_target(kind, 60)
    classes = [f"class {k}" for k in range(max(2, scores.shape[1]))]
    report = _of(kind).report(scores, y, classes=classes)
    true, decided = y.numpy(), _of(kind).decide(scores).numpy()
    right = np.asarray(true == decided)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(true, decided, zero_division=0.0)
    assert report["num_samples"] == 60 and report["accuracy"] == pytest.approx(right.mean())
    assert list(report["classes"]) == classes
    for k, of_class in enumerate(report["classes"].values()):
        found = {"precision": precision[k], "recall": recall[k], "f1-score": f1[k], "support": support[k]}
        assert of_class == pytest.approx(found)
    macro = report["macro"]
    assert (macro["precision"], macro["recall"], macro["f1-score"]) == pytest.approx(
        (precision.mean(), recall.mean(), f1.mean())
    )
    if kind == "multiclass":
        assert "roc_auc" not in report and "average_precision" not in report and "top5_accuracy" not in report
    else:
        assert report["average_precision"] == pytest.approx(metrics.average_precision_score(true, scores.numpy()))
        assert report["roc_auc"] == pytest.approx(metrics.roc_auc_score(true, scores.numpy()))
    if kind != "multilabel":
        assert report["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(true, decided))
    if kind == "multilabel":
        assert "confusion_matrix" not in report and report["accuracy"] == pytest.approx(1 - metrics.hamming_loss(true, decided))
    else:
        assert report["confusion_matrix"] == metrics.confusion_matrix(true, decided).tolist()


@reports
def test_a_report_is_complete_also_for_a_class_that_never_occurs() -> None:
    scores = torch.eye(3)[[0, 1, 1, 0]] * 4
    report = task("multiclass").report(scores, torch.tensor([0, 1, 0, 0]), classes="abc")
    assert list(report) == ["accuracy", "num_samples", "macro", "classes", "confusion_matrix", "balanced_accuracy"]
    assert report["accuracy"] == 0.75 and report["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert report["classes"]["a"]["precision"] == 1 and report["classes"]["a"]["recall"] == pytest.approx(2 / 3)
    flat = flat_metrics(report | {"loss": 0.5}, "test")
    assert flat["test_class_a_precision"] == 1 and len([f for f in flat if f.startswith("test_class_")]) == 9
    assert [name for name in flat if "/" in name] == ["test/accuracy", "test/loss"]
    assert {"test_precision_macro", "test_recall_macro", "test_f1_macro"} <= set(flat)


@reports
def test_names_of_classes_and_targets_become_names_that_mlflow_takes_each_its_own() -> None:
    from mlflow.utils.validation import _validate_metric_name

    classes = ["Adelie (Pygoscelis)", "a,b", "a/b", "a:b", "a_b", "a_b_2", "../x", "größe %", "x" * 400, "x" * 401, "\n", "♥"]
    scores = torch.eye(len(classes)) * 4
    report = task("multiclass").report(scores, torch.arange(len(classes)), classes=classes)
    flat = flat_metrics(report, "test")
    assert [*report["classes"]] == classes, "test.json keeps them as they are"
    assert len([name for name in flat if name.startswith("test_class_")]) == 3 * len(classes)
    assert {"test_class_Adelie _Pygoscelis__f1", "test_class_a_b_f1", "test_class_größe __f1"} <= set(flat)
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    report = task("regression").report(values, values + 1, classes=["price (EUR)", "price [EUR]"])
    flat |= flat_metrics(report, "test")
    assert len([name for name in flat if name.startswith("test_target_price _EUR_")]) == 2 * len(
        report["targets"]["price (EUR)"]
    )
    for name in flat:
        _validate_metric_name(name)


@reports
def test_the_five_best_are_counted_where_there_are_more_than_five_classes() -> None:
    torch.manual_seed(1)
    scores, y = torch.randn(200, 7), torch.randint(0, 6, (200,))
    report = task("multiclass").report(scores, y, classes="abcdefg")
    among = (scores.topk(5).indices == y[:, None]).any(1).double().mean().item()
    assert report["top5_accuracy"] == pytest.approx(among) and 0.6 < among < 0.8
    assert report["balanced_accuracy"] == pytest.approx(np.mean([report["classes"][c]["recall"] for c in "abcdef"]))
    assert "top5_accuracy" not in task("multiclass").report(scores[:, :5], y.clamp(max=4), classes="abcde")
    assert flat_metrics(report, "test")["test_top5_accuracy"] == report["top5_accuracy"]


@reports
def test_roc_auc_is_reported_where_both_kinds_occur() -> None:
    scores, target = torch.tensor([[0.1], [0.9], [0.4], [0.8]]), torch.tensor([0, 1, 1, 0])
    assert task("binary").report(scores, target, classes=("no", "yes"))["roc_auc"] == 0.75
    assert "roc_auc" not in task("binary").report(scores, torch.zeros(4, dtype=torch.long), classes=("no", "yes"))
    two = torch.stack([target, torch.zeros(4)], dim=1).float()  # the second label never occurs
    assert task("multilabel").report(scores.expand(4, 2), two, classes=("a", "b"))["roc_auc"] == 0.75
    assert "roc_auc" not in task("multilabel").report(scores.expand(4, 2), two * 0, classes=("a", "b"))


@reports
def test_the_report_of_a_regression() -> None:
    report = task("regression").report(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]]))
    assert list(report) == ["rmse", "r2", "max_error", "sse", "num_samples", "mae"]
    expected = {"rmse": 3**-0.5, "r2": 0.5, "max_error": 1.0, "sse": 1.0, "num_samples": 3, "mae": 1 / 3}
    assert report == pytest.approx(expected)
    flat = flat_metrics(report, "test")
    assert list(flat) == ["test/rmse", "test/r2", "test_max_error", "test_sse", "test_mae"]


@reports
def test_the_report_of_several_targets_is_over_all_values_and_of_each() -> None:
    scores, y = _scores_and_target("two targets", 60)
    report = task("regression").report(scores, y, targets=("height", "width"))
    assert report["rmse"] == pytest.approx(metrics.mean_squared_error(y.numpy(), scores.numpy()) ** 0.5)
    assert report["r2"] == pytest.approx(metrics.r2_score(y.numpy(), scores.numpy()))
    assert report["sse"] == pytest.approx((scores - y).square().sum().item()) and report["num_samples"] == 60
    for k, name in enumerate(("height", "width")):
        one = task("regression").report(scores[:, k : k + 1], y[:, k : k + 1])
        assert report["targets"][name] == pytest.approx({"rmse": one["rmse"], "r2": one["r2"]})
    assert flat_metrics(report, "test")["test_target_width_rmse"] == report["targets"]["width"]["rmse"]
    assert list(task("regression").report(scores, y)["targets"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [("multiclass", [0, 3], ""), ("multiclass", [0, 4], "labels from 0 to 4 for the 4 classes 0 to 3"),
     ("binary", [-1, 1], "labels from -1 to 1"), ("multilabel", [[0, 1, 0, 1]], ""),
     ("multilabel", [[0, 1, 0, 2]], "other than 0"),
     ("multilabel", [[0, 1]], "targets (1, 2), not (N, 4)"), ("multilabel", [0, 1], "targets (2,)"),
     ("regression", [[-7.5]], "")],
)  # fmt: skip
def test_targets_that_fit_no_class_are_named(name: str, target: Any, words: str) -> None:
    found = task(name).wrong_targets(np.array(target), 4)
    assert words in found and bool(words) == bool(found)


def test_every_task_has_losses_outputs_and_metrics_and_none_is_named_that_is_not_there() -> None:
    for name, each in TASKS.items():
        assert each.name == name and task(name) is each and each.losses and each.metric in METRICS
        assert name in METRICS[each.metric].tasks
    for entry in (*LOSSES.values(), *METRICS.values()):
        assert set(entry.tasks) <= set(TASKS)
    assert {find(name).spec.task for name in matching()} <= set(TASKS)
    with pytest.raises(ValueError, match="task=ranking is not known"):
        task("ranking")


@pytest.mark.parametrize(("name", "num"), [("multiclass", 7), ("multilabel", 7), ("binary", 1), ("regression", 2)])
def test_a_network_has_as_many_outputs_as_its_task_needs(name: str, num: int) -> None:
    assert task(name).num_outputs(num_classes=7, num_targets=2) == num


def test_the_tasks_are_known_without_torch() -> None:
    code = "import sys, pipeline.task as t; t.task('binary').losses; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "numpy", "sklearn"} & set(done.stdout.split())


def test_no_other_file_asks_which_task_it_is() -> None:
    """What differs between them stands in task.py: elsewhere nothing is compared with the name of one."""
    asked = re.compile(r"""\btask (==|!=) |(==|!=|in) \(?["'](""" + "|".join(TASKS) + r""")["']""")
    files = [path for part in ("pipeline", "export", "models") for path in (ROOT / part).rglob("*.py")]
    found = [
        f"{path.name}: {line.strip()}"
        for path in files if path.name != "task.py"
        for line in path.read_text().splitlines() if asked.search(line)
    ]  # fmt: skip
    assert not found and len(files) > 100


def test_a_gain_is_a_difference_of_accuracies_and_a_share_of_an_error() -> None:
    assert TASKS["binary"].gain(0.75, over=0.5) == 0.25 and TASKS["multilabel"].gain(0.5, over=0.75) == -0.25
    assert TASKS["regression"].gain(3.0, over=4.0) == 0.25 and TASKS["regression"].gain(5.0, over=4.0) == -0.25
    assert TASKS["regression"].gain(0.0, over=0.0) == 0.0 and TASKS["regression"].gain(1.0, over=0.0) < 0
    assert not TASKS["regression"].gain(float("nan"), over=1.0) > 0
