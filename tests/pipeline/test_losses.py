"""Arguments and class weights of losses, and losses that are the user's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from models.two_layer import TwoLayer
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.losses import class_weights, named_weights
from pipeline.resolve import applicable, resolve, resumed
from pipeline.skeleton import refuse_impossible
from pipeline.task import task
from tests.trainings import curve, fit, losses

Make = Callable[..., RunConfig]
LABELS = torch.tensor([0, 0, 0, 1, 2, 2, 0, 0])
NAMES = ("a", "b", "c")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function from the source of `loss(scores, target)` to its name; stands in for models.plugin where it must."""
    if importlib.util.find_spec("models.plugin") is None:
        plugin: Any = ModuleType("models.plugin")
        plugin.load = _load
        monkeypatch.setitem(sys.modules, "models.plugin", plugin)

    def write(source: str) -> str:
        (tmp_path / "own.py").write_text(f"import torch\nimport torch.nn.functional as F\n\n{source}\n")
        return f"{tmp_path}/own.py:loss"

    return write


def _load(name: str) -> object:
    file, _, function = name.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"names {file}, which does not exist. Give the path of a .py file.")
    scope: dict[str, Any] = {}
    exec(Path(file).read_text(), scope)
    return scope[function]


def test_balanced_weights_are_scikit_learns_and_those_by_name_stand_beside_1() -> None:
    balanced = class_weights("balanced", task("multiclass"), NAMES, LABELS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    assert balanced is not None and balanced.tolist() == pytest.approx(expected.tolist())
    assert balanced[LABELS].mean().item() == pytest.approx(1)
    assert class_weights("none", task("multiclass"), NAMES, LABELS) is None
    named = class_weights('{"c": 4}', task("multiclass"), NAMES, LABELS)
    assert named is not None and named.tolist() == [1, 1, 4]
    absent = class_weights("balanced", task("binary"), ("no", "yes"), torch.zeros(5, dtype=torch.long))
    assert absent is not None and absent.tolist() == [0.5, 1]
    many = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1]])
    both = class_weights("balanced", task("multilabel"), ("x", "y"), many)
    assert both is not None and both.tolist() == [[pytest.approx(4 / 6), 2], [pytest.approx(4 / 6), 2]]
    label = class_weights("y=3", task("multilabel"), ("x", "y"), many)
    assert label is not None and label.tolist() == [[1, 1], [1, 3]]


@pytest.mark.parametrize("name", ["cross_entropy", "nll", "focal"])
def test_a_weighted_loss_is_divided_by_the_number_of_samples(name: str) -> None:
    scores, weights = torch.randn(8, 3), torch.tensor([0.5, 2.0, 3.0])
    plain = task("multiclass").loss_sum(name)
    ours = task("multiclass").loss_sum(name, weights=weights)(scores, LABELS)
    each = sum(weights[y] * plain(scores[i : i + 1], LABELS[i : i + 1]) for i, y in enumerate(LABELS))
    torch.testing.assert_close(ours, each)


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_weights_of_two_classes_and_of_labels(name: str) -> None:
    scores, y = torch.randn(8, 1), LABELS.clamp(max=1)
    ours = task("binary").loss_sum(name, weights=torch.tensor([0.5, 4.0]))(scores, y)
    plain = task("binary").loss_sum(name)
    torch.testing.assert_close(ours, 0.5 * plain(scores[y == 0], y[y == 0]) + 4 * plain(scores[y == 1], y[y == 1]))
    wide, many = torch.randn(8, 2), torch.stack([y, 1 - y], 1).float()
    table = torch.tensor([[1.0, 3.0], [2.0, 5.0]])
    one = [task("binary").loss_sum(name, weights=table[k])(wide[:, k : k + 1], many[:, k].long()) for k in range(2)]
    torch.testing.assert_close(task("multilabel").loss_sum(name, weights=table)(wide, many), sum(one) / 2)


def test_a_hand_written_loss_takes_weights_too() -> None:
    network, scores, y = TwoLayer(input_shape=(2,), num_outputs=1), torch.randn(8, 1), LABELS.clamp(max=1)
    weights = torch.tensor([0.5, 4.0])
    ours = task("binary").loss_sum("bce", network=network, weights=weights)(scores, y)
    torch.testing.assert_close(ours, task("binary").loss_sum("bce", weights=weights)(scores, y))


def test_arguments_of_a_loss_are_used() -> None:
    scores, y = torch.randn(9, 1), torch.randn(9, 1) * 3
    ours = task("regression").loss_sum("huber", args={"delta": 0.3})(scores, y)
    torch.testing.assert_close(ours, F.huber_loss(scores, y, delta=0.3, reduction="sum"))
    logits = torch.randn(8, 3)
    flat = task("multiclass").loss_sum("focal", args={"gamma": 0})(logits, LABELS)
    torch.testing.assert_close(flat, F.cross_entropy(logits, LABELS, reduction="sum"))


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_the_focal_loss_has_a_finite_slope_where_a_decision_is_certain(gamma: float) -> None:
    for kind, scores in (("multiclass", torch.tensor([[200.0, -200, 0]])), ("binary", torch.tensor([[-200.0]]))):
        scores.requires_grad_()
        task(kind).loss_sum("focal", args={"gamma": gamma})(scores, torch.tensor([0])).backward()
        assert scores.grad is not None and scores.grad.isfinite().all()


OWN = "def loss(scores, target, *, power: float = 1.0):\n    return F.cross_entropy(scores, target, reduction='none') ** power"


def test_an_own_loss_trains_as_the_built_in_one_it_repeats(
    own: Callable[[str], str], make_config: Make, tmp_path: Path
) -> None:
    flags = {"model": "cnn", "epochs": 1, "batch_size": 300, "grad_accum_steps": 3, "label_smoothing": 0, "log_every": 1}
    name = own(OWN)
    config = make_config(**flags | {"label_smoothing": 0}, loss=name, loss_args="power=1")
    refuse_impossible(config)
    theirs, ours = fit(make_config(**flags), tmp_path / "plain"), fit(config, tmp_path / "own")
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)
    assert [r["val/loss"] for r in curve(ours) if "val/loss" in r] == pytest.approx(
        [r["val/loss"] for r in curve(theirs) if "val/loss" in r], rel=1e-5
    )
    assert applicable(config)["loss_args.power"] == 1


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def loss(scores, target):\n    return F.cross_entropy(scores, target)", "gives () for 4 samples, not one loss"),
        ("def loss(scores, target):\n    return 1.0", "gives float for 4 samples"),
        ("def loss(scores, target):\n    raise KeyError('x')", "fails on scores (4, 10) and targets (4,) ('x'). Mend it."),
        ("def loss(scores, target):\n    return scores.detach().sum(1)", "fails on scores (4, 10)"),
        ("def loss(scores, target):\n    return scores.sum(1) * torch.nan", "gives losses that are not finite"),
    ],
)  # fmt: skip
def test_an_own_loss_is_tried_before_anything_is_created(source: str, said: str, own: Callable[[str], str]) -> None:
    with pytest.raises(UserError) as error:
        refuse_impossible(resolve({"loss": own(source)}))
    (message,) = error.value.messages
    assert message.startswith("loss=/") and said in message and message.endswith(".")


def test_a_file_or_an_argument_that_is_not_there_is_told(own: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^loss=/.*/nowhere.py:loss names /.*nowhere.py, which does not exist"):
        refuse_impossible(resolve({"loss": "nowhere.py:loss"}))
    with pytest.raises(UserError, match=r"^loss=/.*/~nobody-here/x.py:f names "):
        refuse_impossible(resolve({"loss": "~nobody-here/x.py:f"}))
    with pytest.raises(UserError, match=r"^loss_args: .*own.py:loss has no argument factor. It takes: power."):
        refuse_impossible(resolve({"loss": own(OWN), "loss_args": "factor=2"}))


def test_the_path_of_an_own_loss_is_kept_whole(own: Callable[[str], str], tmp_path: Path) -> None:
    name = own(OWN)
    stored = resolve({"loss": "own.py:loss"})  # from the folder that it lies in
    assert stored.loss == name and resumed({"loss": "own.py:loss"}, stored).loss == name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"loss": "focal", "loss_args": "gama=1"}, "loss_args: focal has no argument gama. It takes: gamma."),
        ({"loss": "focal", "loss_args": "gamma=-1"}, "loss_args: gamma=-1 of focal is out of range. Give a number from 0 "),
        ({"loss": "focal", "loss_args": "gamma=x"}, "loss_args: gamma=x of focal is not a number"),
        ({"loss": "focal", "loss_args": '{"gamma": 1e999}'}, "loss_args: gamma=inf of focal is out of range"),
        ({"loss_args": "gamma=1"}, "loss_args: cross_entropy has no argument gamma. It takes: none."),
        ({"loss": "huber"}, "loss=huber does not fit multiclass data"),
        ({"model": "polynomial", "class_weights": "balanced"}, "class_weights=balanced has no effect on loss=mse"),
        ({"class_weights": "a=1"}, "class_weights=a=1 names a. The classes of digits are: 0, 1, "),
        ({"class_weights": "0=-1"}, "class_weights=0=-1 gives -1.0 for 0. Give a number from 0 to 1e+06."),
        ({"class_weights": "0=nan"}, "class_weights=0=nan gives nan for 0"),
        ({"class_weights": "0"}, "class_weights=0 has '0' without a weight"),
        ({"class_weights": ","}, "class_weights=, names no class"),
        ({"class_weights": "{"}, "class_weights={ is no JSON object"),
        ({"class_weights": "0=0,1=0"}, "class_weights=0=0,1=0 gives every class that it names the weight 0"),
        ({"loss": "x:"}, "loss=x: "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(flags: dict[str, str], said: str, own: Callable[[str], str]) -> None:
    with pytest.raises(UserError) as error:
        refuse_impossible(resolve(flags))
    (message,) = error.value.messages
    assert message.startswith(said), message


def test_what_belongs_to_a_loss_goes_with_it(tmp_path: Path) -> None:
    whole = resolve({"loss": "focal", "loss_args": "gamma=3", "class_weights": "balanced"})
    assert whole.loss_args == {"gamma": 3} and whole.label_smoothing == 0 and whole.class_weights == "balanced"
    assert applicable(whole)["loss_args.gamma"] == 3
    from pipeline.config import to_json
    from pipeline.files import write_json

    write_json(tmp_path / "config.json", {"config": to_json(whole)})
    file = str(tmp_path / "config.json")
    assert resolve({"config": file, "loss_args": "gamma=1"}).loss_args == {"gamma": 1}
    other = resolve({"config": file, "loss": "mse"})
    assert other.loss_args == {} and other.class_weights == "none"


def test_weights_move_the_training_and_not_the_measure(make_config: Make, tmp_path: Path) -> None:
    """With all the weight on one class, it alone is decided for; the validation loss is what it is without weights."""
    others = ",".join(f"{k}=0" for k in range(1, 10))
    training = fit(make_config(model="cnn", epochs=1, batch_size=100, class_weights=f"0=1,{others}"), tmp_path / "run")
    with torch.no_grad():
        training.model.eval()
        scores, _ = training.model(training.val.x)
    assert (scores.argmax(1) == 0).float().mean() > 0.9
    (row,) = [r for r in curve(training) if "val/loss" in r]
    assert row["val/loss"] == pytest.approx(F.cross_entropy(scores, training.val.y).item(), rel=1e-5) and row["val/loss"] > 1


def test_names_of_classes_may_hold_anything_as_json() -> None:
    assert named_weights('{"a,b=c": 2, "d": 0.5}') == {"a,b=c": 2, "d": 0.5}
    assert named_weights("a=b=2, c = 1") == {"a=b": 2, "c": 1}


def test_the_signature_of_a_loss_is_scores_and_targets_as_the_data_has_them(own: Callable[[str], str]) -> None:
    name = own("def loss(scores, target):\n    return (scores[:, 0] - target.float()).abs()")
    loss = task("binary").loss_sum(name)
    scores, y = torch.randn(5, 1), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(loss(scores, y), (scores[:, 0] - y).abs().sum())
    assert loss(scores[:0], y[:0]) == 0
