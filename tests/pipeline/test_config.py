from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest

from models import MODELS
from pipeline.config import RENAMED, PlotConfig, RunConfig, from_json, to_json
from pipeline.data import find, matching
from pipeline.errors import UserError
from pipeline.flags import read_flags
from pipeline.resolve import describe, resolve, resumed
from pipeline.task import task

FIELDS = [f.name for f in dataclasses.fields(RunConfig)]


def _messages(**texts: str) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        resolve(texts)
    return caught.value.messages


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_meaning(name: str) -> None:
    (field,) = (f for f in dataclasses.fields(RunConfig) if f.name == name)
    assert len(field.metadata["description"]) > 10


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        ({"model": "cn"}, ["model=cn", "Did you mean cnn", "polynomial, mlp, two_layer, lenet, cnn"]),
        ({"dataset": "minst"}, ["dataset=minst", "Did you mean mnist"]),
        ({"optimizer": "adamx"}, ["optimizer=adamx", "sgd, adam, adamw, rmsprop"]),
        ({"device": "tpu"}, ["device=tpu", "auto, cpu, cuda"]),
        ({"lr": "0"}, ["lr=0", "above 0"]),
        ({"lr": "-1"}, ["lr=-1", "above 0"]),
        ({"lr": "nan"}, ["lr=nan", "not a finite number"]),
        ({"lr": "inf"}, ["lr=inf", "not a finite number"]),
        ({"lr": "fast"}, ["lr=fast", "not a number"]),
        ({"epochs": "0"}, ["epochs=0 leaves it to --max_steps", "Give one of the two"]),
        ({"epochs": "2.5"}, ["epochs=2.5", "not a whole number"]),
        ({"val_split": "1"}, ["val_split=1", "below 1"]),
        ({"val_split": "0.6", "test_split": "0.5"}, ["val_split=0.6 and test_split=0.5 leave no sample to train on"]),
        ({"model_args": "hidden"}, ["model_args=hidden", "without a value"]),
        ({"model_args": "{"}, ["model_args={", "no JSON object"]),
        ({"model_args": "a-b=1"}, ["'a-b', which is no name"]),
        ({"image_size": "30"}, ["image_size=30: model=cnn takes images of 28 x 28"]),
        ({"model": "mlp", "image_size": "9"}, ["image_size=9 has no effect on dataset=breast_cancer"]),
        ({"dataset": "mnist", "test_split": "0.1"}, ["test_split=0.1 has no effect on dataset=mnist, which has a test set"]),
        ({"model": "mlp", "augment_shift": "2"}, ["augment_shift=2 has no effect on dataset=breast_cancer", "no images"]),
        ({"model": "two_layer", "augment_affine": "0.1"}, ["augment_affine=0.1 has no effect on dataset=moons"]),
        ({"model": "mlp", "init": "pca"}, ["init=pca has no effect on dataset=breast_cancer"]),
        ({"model": "mlp", "recipe": "fast"}, ["recipe=fast is not there for model=mlp", "default, reference"]),
        ({"compile": "yes"}, ["compile=yes", "true or", "false"]),
        ({"nproc": "many"}, ["nproc=many", "not a whole number"]),
        ({"nproc": "0"}, ["nproc=0", "at least 1"]),
        ({"batch_size": "3", "nproc": "4"}, ["batch_size=3 is smaller than the 4 ranks", "--nproc"]),
        ({"batch_size": "7", "nproc": "2", "grad_accum_steps": "4"}, ["batch_size=7", "--batch_size 8"]),
        ({"model": "mlp", "dataset": "digits"}, ["(1, 8, 8)", "breast_cancer or moons"]),
        ({"model": "polynomial", "dataset": "moons"}, ["regression", "binary", "--dataset sine"]),
        ({"model": "lenet", "loss": "bce"}, ["loss=bce", "multiclass", "cross_entropy or nll or mse"]),
        ({"model": "mlp", "preprocess": "scale"}, ["preprocess=scale", "--preprocess standardize"]),
        ({"model": "cnn", "data_args": "noise=0.1"}, ["data_args: digits has no argument noise", "none"]),
        ({"model": "two_layer", "data_args": "noise=loud"}, ["data_args: noise=loud of moons is not a number"]),
        ({"recipe": "seed"}, ["recipe=seed is not known", "Did you mean reference"]),
        ({"config": "nowhere.toml"}, ["config=nowhere.toml cannot be used (No such file"]),
        ({"momentum": "0.9"}, ["momentum=0.9 has no effect on optimizer=adamw", "use --optimizer sgd or rmsprop"]),
        ({"nesterov": "true"}, ["nesterov=true has no effect on optimizer=adamw", "--optimizer sgd --momentum 0.9"]),
        ({"model": "mlp", "label_smoothing": "0.1"}, ["label_smoothing=0.1 has no effect on loss=bce"]),
        ({"val_split": "0", "early_stopping": "3"}, ["early_stopping=3 has no effect without validation samples", "0.1"]),
        ({"val_split": "0", "monitor": "accuracy"}, ["monitor=accuracy has no effect without validation samples"]),
        ({"gamma": "0.5"}, ["gamma=0.5 has no effect on scheduler=one_cycle", "use --scheduler step"]),
        ({"step_size": "3"}, ["step_size=3 has no effect on scheduler=one_cycle"]),
        ({"scheduler": "step", "epochs": "1"}, ["step_size=1 never cuts the learning rate", "more --epochs"]),
        ({"scheduler": "step", "step_size": "10"}, ["step_size=10 never cuts", "ends after 10 epochs"]),
        ({"scheduler": "one_cycle", "warmup_ratio": "0"}, ["warmup_ratio=0 leaves nothing of the rise", "--scheduler cosine"]),
        ({"data_dir": "photos"}, ["data_dir=photos has no effect on dataset=digits"]),
        ({"model": "mlp", "recipe": "reference", "split_seed": "3"}, ["split_seed=3 has no effect", "not split at random"]),
        ({"layer_lr": "fc9=0.1"}, ["'fc9'", "conv1, conv2, fc1, fc2"]),
        ({"layer_weight_decay": "fc2=x"}, ["'x' for fc2"]),
        ({"precision": "fp16", "device": "cpu"}, ["precision=fp16 needs a GPU"]),
        ({"max_restarts": "2"}, ["max_restarts=2", "--output_dir"]),
        ({"checkpoint_every": "0"}, ["checkpoint_every=0", "500 or 10m"]),
        ({"resume": "true"}, ["resume=true", "--output_dir"]),
        ({"data_dir": ""}, ["data_dir= is empty"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(texts: dict[str, str], parts: list[str]) -> None:
    (message,) = _messages(**texts)
    assert all(part in message for part in parts), message
    assert message.endswith(".") and "\n" not in message


def test_all_mistakes_are_told_at_once() -> None:
    messages = _messages(lr="-1", epochs="none", dataset="minst", batch_size="1", nproc="2", resume="true")
    assert [m.partition("=")[0] for m in messages] == ["dataset", "epochs", "lr", "batch_size", "resume"]


def test_a_bad_field_brings_no_second_message_about_its_default() -> None:
    assert len(_messages(model="mlp", dataset="digit")) == 1


def test_flags_override_the_recipe_and_the_recipe_the_defaults() -> None:
    assert resolve({"model": "cnn", "recipe": "reference"}).lr == 0.01
    assert resolve({"model": "cnn", "recipe": "reference", "lr": "0.5"}).lr == 0.5
    assert resolve({"model": "two_layer", "recipe": "reference"}).seed == 0


def test_a_recipe_may_differ_by_data_set() -> None:
    small, real = resolve({"model": "cnn"}), resolve({"model": "cnn", "dataset": "mnist"})
    assert small.dataset == "digits" and real.epochs != small.epochs


@pytest.mark.parametrize("model", MODELS)
def test_a_configuration_survives_json(model: str) -> None:
    chosen = resolve({"model": model, "nproc": "2", "lr": "3e-7", "compile": "true"})
    assert from_json(to_json(chosen)) == chosen


def test_json_of_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="unknown fields: momentom"):
        from_json(to_json(resolve({})) | {"momentom": 1})


def test_a_resumed_run_keeps_its_configuration_but_for_where_it_runs() -> None:
    stored = resolve({"model": "mlp"})
    changed = resumed({"nproc": "2", "model": "mlp", "cache_dir": "/elsewhere"}, stored)
    assert changed.nproc == 2 and changed.lr == stored.lr
    with pytest.raises(UserError, match=r"data_dir=/elsewhere has no effect on dataset=breast_cancer\. Leave --data_dir out"):
        resumed({"data_dir": "/elsewhere"}, stored)
    with pytest.raises(UserError, match=r"lr=0\.5 differs from the run's"):
        resumed({"lr": "0.5"}, stored)


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve({}).lr = 1  # type: ignore[misc]


def test_generated_configurations_end_in_a_configuration_or_a_sentence() -> None:
    """2000 random flag sets, right and wrong: never another exception."""
    source = random.Random(0)
    words = ["", "0", "-1", "1", "2.5", "1e-3", "nan", "-inf", "true", "auto", "x=1", "fc2=1e-3", "\u2603", "a" * 5000]
    words += [*MODELS, *matching(), "sgd", "reference", "mse", "one_cycle", "fp16", "cuda"]
    good = 0
    for _ in range(2000):
        texts = {name: source.choice(words) for name in source.sample(FIELDS, source.randint(0, 4))}
        try:
            assert isinstance(resolve(texts), RunConfig)
            good += 1
        except UserError as error:
            assert error.messages and all(m and "\n" not in m for m in error.messages)
    assert 100 < good < 1900


def test_losses_are_offered_for_every_task() -> None:
    assert all(task(d.task).losses for d in (find(name).spec for name in matching()))


def test_a_file_stands_beneath_the_flags_and_above_the_recipe(tmp_path: Path) -> None:
    for name, text in (("c.toml", 'lr = 0.25\noptimizer = "sgd"\nmodel_args = {dropout = 0.5}\n'),
                       ("c.json", '{"lr": 0.25, "optimizer": "sgd", "model_args": {"dropout": 0.5}}')):  # fmt: skip
        (tmp_path / name).write_text(text)
        found = resolve({"config": str(tmp_path / name), "epochs": "3"})
        assert (found.lr, found.optimizer, found.momentum, found.epochs) == (0.25, "sgd", 0.9, 3)
        assert found.model_args == {"dropout": 0.5}
        assert resolve({"config": str(tmp_path / name), "lr": "0.5"}).lr == 0.5


@pytest.mark.parametrize("recipe", ["default", "fast"])
def test_a_runs_own_config_repeats_it_and_an_override_takes_along_what_belongs_to_it(recipe: str, tmp_path: Path) -> None:
    whole = resolve({"recipe": recipe, "seed": "7", "output_dir": "runs/x"} | (
        {"dataset": "mnist"} if recipe == "fast" else {}))  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"mlflow_run_id": "x", "config": to_json(whole)}))
    again = resolve({"config": str(tmp_path / "config.json")})
    assert again == dataclasses.replace(whole, output_dir="")
    varied = resolve({"config": str(tmp_path / "config.json"), "optimizer": "sgd", "epochs": "2"})
    assert varied.seed == 7 and varied.max_steps == 0 and varied.lr == 0.03 and varied.momentum == 0.9
    said = describe({"config": str(tmp_path / "config.json"), "optimizer": "sgd"})
    assert f"as in {tmp_path / 'config.json'}; given: optimizer=sgd (was " in said and "reset with it: " in said
    assert describe({"config": str(tmp_path / "config.json")}).endswith("nothing changed")
    with pytest.raises(UserError, match="cannot both be the start"):
        resolve({"config": str(tmp_path / "config.json"), "recipe": "reference"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr = ", "cannot be used"), ("[1, 2]", "cannot be used"), ('{"lrr": 1}', "it sets lrr, which is not a field"),
        ('{"config": {"lr": -1}}', "lr=-1 is out of range"), ("[" * 100_000, "cannot be used"), ("\udcff", "cannot be used"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=r"^config=") as error:
        resolve({"config": str(tmp_path / "c.json")})
    assert said in str(error.value)


@pytest.mark.parametrize("name", RENAMED)
def test_an_older_name_of_a_flag_is_refused_with_the_new_one(name: str) -> None:
    cls = PlotConfig if name == "picture" else RunConfig
    with pytest.raises(UserError, match=f"--{name} is given otherwise now: {RENAMED[name].partition('=')[0].split()[0]}"):
        read_flags([f"--{name}", "1"], cls)
    new = RENAMED[name].removeprefix("--").partition(" ")[0]
    assert new in {field.name for field in dataclasses.fields(cls)}


def test_one_command_line_with_a_file_starts_a_run_and_resumes_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mlflow_run_id": "x", "config": to_json(resolve({"seed": "7"}))}))
    flags = {"config": str(tmp_path / "config.json"), "lr": "0.5", "output_dir": str(tmp_path / "run"), "resume": "auto"}
    stored = dataclasses.replace(resolve(flags), precision="fp32")  # what auto became
    assert resumed(flags, stored) == dataclasses.replace(stored, resume="true")
    with pytest.raises(UserError, match=r"seed=7 differs from the run's 8.*leave --config out"):
        resumed(flags, dataclasses.replace(stored, seed=8))


def test_a_whole_configuration_is_of_its_own_network(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mlflow_run_id": "x", "config": to_json(resolve({"model": "mlp"}))}))
    with pytest.raises(UserError, match=r"model=cnn: the whole configuration .* is one of model=mlp"):
        resolve({"config": str(tmp_path / "config.json"), "model": "cnn"})


@pytest.mark.parametrize("field", ["model", "dataset"])
def test_a_configuration_of_what_is_not_here_is_told(field: str, tmp_path: Path) -> None:
    values = to_json(resolve({})) | {field: "photos"}
    (tmp_path / "config.json").write_text(json.dumps({"mlflow_run_id": "x", "config": values}))
    with pytest.raises(
        UserError, match=r"cannot be used .is not known" if field == "model" else r"^dataset=photos is not known"
    ):
        resolve({"config": str(tmp_path / "config.json")})


@pytest.mark.parametrize("path", ["", ".", "/dev"])
def test_an_empty_name_of_a_file_is_told(path: str) -> None:
    with pytest.raises(UserError, match=r"^config=[/.dev]* cannot be used"):
        resolve({"config": path})
