from __future__ import annotations

import pytest
import torch

from pipeline import metrics


def test_accuracy_counts_right_answers() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [5.0, 0.0, 1.0]])
    right = metrics.merit_sum("multiclass", scores, torch.tensor([0, 1, 0]))
    assert right.item() == 2 and metrics.merit("multiclass", 2, 3) == pytest.approx(2 / 3)


def test_a_binary_score_above_zero_is_class_one() -> None:
    scores = torch.tensor([[-0.1], [0.0], [0.1]])
    assert metrics.predicted_labels("binary", scores).tolist() == [0, 0, 1]
    torch.testing.assert_close(metrics.probabilities("binary", scores)[:, 1:], torch.sigmoid(scores))


def test_rmse_is_the_root_of_the_mean_square() -> None:
    total = metrics.merit_sum("regression", torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
    assert total.item() == 4 and metrics.merit("regression", 4.0, 2) == pytest.approx(2**0.5)


def test_probabilities_sum_to_one() -> None:
    for task, width in (("binary", 1), ("multiclass", 5)):
        torch.testing.assert_close(metrics.probabilities(task, torch.randn(7, width)).sum(1), torch.ones(7))


def test_the_classification_report_is_complete_also_for_a_class_that_never_occurs() -> None:
    scores = torch.eye(3)[[0, 1, 1, 0]] * 4
    report = metrics.classification_report(scores, torch.tensor([0, 1, 0, 0]), task="multiclass", classes="abc")
    assert report["accuracy"] == 0.75 and report["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert report["classes"]["a"]["precision"] == 1 and report["classes"]["a"]["recall"] == pytest.approx(2 / 3)
    figures = metrics.flat_figures(report, "test")
    assert figures["test_class_a_precision"] == 1 and len([f for f in figures if f.startswith("test_class_")]) == 9
    assert figures["test/accuracy"] == 0.75 and {"test_precision_macro", "test_recall_macro", "test_f1_macro"} <= set(figures)


def test_roc_auc_is_reported_for_binary_data_with_both_classes() -> None:
    scores, target = torch.tensor([[0.1], [0.9], [0.4], [0.8]]), torch.tensor([0, 1, 1, 0])
    report = metrics.classification_report(scores, target, task="binary", classes=("no", "yes"))
    assert report["roc_auc"] == 0.75
    report = metrics.classification_report(scores, torch.zeros(4, dtype=torch.long), task="binary", classes=("no", "yes"))
    assert "roc_auc" not in report


def test_the_regression_report() -> None:
    report = metrics.regression_report(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]]))
    assert report == pytest.approx({"rmse": 3**-0.5, "r2": 0.5, "max_error": 1.0, "sse": 1.0, "num_samples": 3})
