"""The words of --space: what they mean, and the sentence for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.search import plan as plans
from pipeline.search.space import Dimension, flags_of, parse, recipe_point, resolve_first
from tests.conftest import ROOT

SPACE = ["lr=1e-4..1e-1:log", "optimizer=adamw,muon"]


def test_a_range_is_of_the_kind_that_its_field_is() -> None:
    space = {each.name: each for each in parse(["lr=1e-4..1e-1:log batch_size=16..64", "optimizer=adamw,muon"])}
    assert space["lr"] == Dimension("lr", 1e-4, 1e-1, is_log=True)
    assert space["batch_size"] == Dimension("batch_size", 16, 64, is_whole=True)
    assert space["optimizer"] == Dimension("optimizer", choices=("adamw", "muon"))
    assert parse(SPACE) == parse(SPACE[::-1]), "the order of the words is no difference"
    assert parse(["head_lr=1e-3..1e-1"])[0].high == 0.1, "auto or a number"


def test_an_argument_of_a_network_is_whole_where_both_ends_are() -> None:
    hidden, dropout = parse(["model_args.hidden=8..64:log", "model_args.dropout=0..0.5"])[::-1]
    assert hidden.is_whole and hidden.is_log and not dropout.is_whole
    values = {"model_args.hidden": "16", "model_args.dropout": "0.1", "lr": "0.1"}
    assert flags_of({"model_args": "depth=2", "model": "x"}, values) == {
        "model": "x", "lr": "0.1", "model_args": '{"depth": 2, "hidden": 16, "dropout": 0.1}'
    }  # fmt: skip


@pytest.mark.parametrize(("value", "text"), [(0.0031622776, "0.003162"), (0.1, "0.1"), (1.00004e-4, "0.0001")])
def test_a_number_is_written_as_a_person_would_and_stays_in_its_range(value: float, text: str) -> None:
    assert Dimension("lr", 1e-4, 1e-1).written(value) == text


def test_a_rounded_number_that_left_its_range_is_not_rounded() -> None:
    assert Dimension("lr", 0.00012345, 1).written(0.00012345) == "0.00012345"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr", "has no values."),
        ("lr=", "has no values."),
        ("learning_rate=1,2", "names learning_rate, which cannot be searched"),
        ("lr=0.1", "is no list of at least two different values."),
        ("optimizer=adamw,adamw", "is no list of at least two different values."),
        ("optimizer=adamw,", "is no list of at least two different values."),
        ("optimizer=adamw,adm", "cannot be searched: optimizer=adm is not known. Did you mean adam?"),
        ("optimizer=adamw..sgd", "is a range, and optimizer is no number."),
        ("nesterov=0..1", "is a range, and nesterov is no number."),
        ("batch_size=16..64.5", "is no range of whole numbers."),
        ("lr=a..b", "is no range of numbers."),
        ("lr=1e-1..1e-4", "is no range: its first number has to be below its second."),
        ("lr=nan..1", "is no range: its first number has to be below its second."),
        ("weight_decay=0..0.1:log", "cannot be logarithmic, as it does not begin above 0."),
        ("lr=1e-4..1e-1:ln", "ends in :ln, which is not known."),
        ("lr=-1..1", "cannot be searched: lr=-1 is out of range."),
        ("label_smoothing=0..1", "cannot be searched: label_smoothing=1 is out of range."),
        ("epochs=1..9", "cannot be searched: epochs is the budget"),
        ("seed=1..9", "cannot be searched: seed is what the study is of."),
        ("image_size=8,16", "cannot be searched: image_size changes the data"),
        ("device=cpu,cuda", "cannot be searched: device says where"),
        ("formats=onnx,pt2", "cannot be searched: formats changes no training."),
        ("model_args=1,2", "names model_args, which cannot be searched: a single argument is searched"),
        ("data_args.noise=0..1", "is no argument. Write one of model_args.NAME or loss_args.NAME."),
        ("trials=1,2", "names trials, which cannot be searched"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_word_gets_a_sentence(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse([word])
    (message,) = error.value.messages
    assert message.startswith(f"space={word} {said}") and message.endswith((".", "?"))


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse(["lr=1..0", "optimizer=adamw,sgd", "lr=1e-4..1", "lr=1..2"])
    assert len(error.value.messages) == 2 and "has lr twice" in error.value.messages[1]


def test_a_space_whose_corner_is_no_training_is_refused() -> None:
    fixed = {"model": "mlp", "dataset": "moons"}
    assert resolve_first(fixed, parse(SPACE[:1])).lr == 1e-4
    with pytest.raises(UserError, match=r"^space: at momentum=0.9 optimizer=adamw: momentum=0.9 has no effect"):
        resolve_first(fixed, parse(["optimizer=sgd,adamw", "momentum=0,0.9"]))
    with pytest.raises(UserError, match=r"^batch_size=2 is smaller than the 4 ranks"):
        resolve_first(fixed, parse(["batch_size=2..64"]), world_size=4)


@pytest.mark.parametrize(
    ("fixed", "words", "found"),
    [
        ({"model": "mlp"}, "lr=1e-4..1e-1:log optimizer=adam,muon", {"lr": "0.01", "optimizer": "adam"}),
        ({"model": "mlp"}, "lr=1e-4..1e-1:log model_args.hidden=8..64", {"lr": "0.01", "model_args.hidden": "25"}),
        ({"model": "mlp"}, "lr=1e-4..1e-1:log loss=bce,focal", {"lr": "0.01", "loss": "bce"}),
        ({"model": "mlp", "optimizer": "muon"}, "lr=1e-4..1e-1:log", {"lr": "0.02"}),
        ({"model": "mlp"}, "lr=1e-4..1e-1:log optimizer=adamw,muon", "optimizer=adam"),
        ({"model": "mlp"}, "lr=1e-4..5e-3:log", "lr=0.01"),
        ({"model": "mlp", "lr": "0.0123456"}, "batch_size=16..64", {"batch_size": "32"}),
        ({"model": "mlp"}, "model_args.dropout=0,0.5", ""),
        ({"model": "cnn", "dataset": "mnist"}, "augment_shift=0,1 init=random,pca", {"augment_shift": "1", "init": "pca"}),
    ],
)  # fmt: skip
def test_the_training_without_a_search_is_a_point_of_the_space_or_what_lacks_is_named(
    fixed: dict[str, str], words: str, found: dict[str, str] | str
) -> None:
    expected = (found, "") if isinstance(found, dict) else ({}, found)
    assert recipe_point(fixed, parse([words])) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "space: nothing was given. Add --space"),
        ("--space lr=1e-4..1 --lr 0.1", "lr=0.1 was given, and --space has lr too. Leave one of the two out."),
        ("--space model_args.hidden=2,3 --model_args hidden=4", "model_args.hidden was given, and --space has it too."),
        ("--space lr=1e-4..1 --resume auto", "resume=auto has no effect on `search`"),
        ("--space lr=1e-4..1 --promote true", "promote=true has no effect on `search`"),
        ("--space lr=1e-4..1 --upload_checkpoints true", "upload_checkpoints=true has no effect on `search`"),
        ("--space lr=1e-4..1 --metric test/accuracy", "metric=test/accuracy is of the test set, which stays untouched"),
        ("--space lr=1e-4..1 --metric val/rmse", "metric=val/rmse is not what validation measures on dataset=moons."),
        ("--space lr=1e-4..1 --study a/b", "study=a/b cannot be a name."),
        ("--space lr=1e-4..1 --val_split 0", "val_split=0.0: no validation samples are held out of dataset=moons"),
        ("--space lr=1e-4..1 --trials 0", "trials=0 is out of range."),
        ("--space lr=1e-4..1 --pruner best", "pruner=best is not known."),
        ("--space lr=1e-4..1 --pruner hyperband --epochs 1", "pruner=hyperband has no effect on trials of one epoch."),
        ("--space loss=bce,focal --metric val/loss", "metric=val/loss cannot compare trials of another loss"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_flags_gets_a_sentence_and_leaves_nothing(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--model", "mlp", "--dataset", "moons", *words.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_command_line_that_is_right_names_its_study_and_its_place() -> None:
    from pipeline.config import SearchConfig
    from pipeline.values import convert

    flags = {"model": "mlp", "dataset": "moons", "space": '["lr=1e-4..1"]', "storage": "postgresql://me:secret@host/db"}
    config = SearchConfig(**convert(SearchConfig, flags)[0])
    plan = plans.make_plan(config, flags, ["--storage", flags["storage"]])
    assert (plan.study, plan.folder, plan.metric) == ("mlp-moons", Path("runs/search-mlp-moons"), "val/accuracy")
    assert "secret" not in plan.again and plan.again.endswith("search --storage postgresql://***@host/db")
    assert plan.fixed == {"model": "mlp", "dataset": "moons"}


def test_without_optuna_a_search_says_what_to_install_and_all_else_works() -> None:
    script = (
        "import sys; sys.modules['optuna'] = None; from importlib import util; util.find_spec = "
        "lambda name, *_: None if name == 'optuna' else 0; from pipeline.cli import main; "
        "assert main(['search', '--help']) == 0; "
        "sys.exit(main(['search', '--model', 'mlp', '--dataset', 'moons', '--space', 'lr=1e-4..1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2 and done.stderr == (
        "search needs optuna, which is not installed. Install it: pip install 'trainyard[search]', or uv sync --extra search.\n"
    )
