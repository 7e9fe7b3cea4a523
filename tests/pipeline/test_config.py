from __future__ import annotations

import dataclasses
import random

import pytest

from models import MODELS
from pipeline import checks
from pipeline.config import RunConfig, UserError, from_json, resolve, resume, to_json
from pipeline.data.catalog import DATASETS

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
        ({"model": "cn"}, ["model=cn", "Did you mean cnn", "polynomial, mlp, moons, lenet, cnn"]),
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
        ({"dropout": "1"}, ["dropout=1", "below 1"]),
        ({"model": "mlp", "augment_shift": "2"}, ["augment_shift=2 has no effect on dataset=breast_cancer", "no images"]),
        ({"model": "moons", "augment_affine": "0.1"}, ["augment_affine=0.1 has no effect on dataset=moons"]),
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
        ({"model": "cnn", "hidden": "9"}, ["hidden=9 has no effect on model=cnn"]),
        ({"model": "cnn", "noise": "0.1"}, ["noise=0.1 has no effect on dataset=digits"]),
        ({"momentum": "0.9"}, ["momentum=0.9 has no effect on optimizer=adamw", "use --optimizer sgd or rmsprop"]),
        ({"nesterov": "true"}, ["nesterov=true has no effect on optimizer=adamw", "--optimizer sgd --momentum 0.9"]),
        ({"model": "mlp", "label_smoothing": "0.1"}, ["label_smoothing=0.1 has no effect on loss=bce"]),
        ({"holdout": "false", "early_stopping": "3"}, ["early_stopping=3 has no effect without validation samples", "true"]),
        ({"holdout": "false", "monitor": "accuracy"}, ["monitor=accuracy has no effect without validation samples"]),
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
    assert resolve({"model": "moons", "recipe": "reference"}).seed == 0


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
    changed = resume({"nproc": "2", "model": "mlp", "cache_dir": "/elsewhere"}, stored)
    assert changed.nproc == 2 and changed.lr == stored.lr
    with pytest.raises(UserError, match=r"data_dir=/elsewhere has no effect on dataset=breast_cancer\. Leave --data_dir out"):
        resume({"data_dir": "/elsewhere"}, stored)
    with pytest.raises(UserError, match=r"lr=0\.5 differs from the run's"):
        resume({"lr": "0.5"}, stored)


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve({}).lr = 1  # type: ignore[misc]


def test_generated_configurations_end_in_a_configuration_or_a_sentence() -> None:
    """2000 random flag sets, right and wrong: never another exception."""
    source = random.Random(0)
    words = ["", "0", "-1", "1", "2.5", "1e-3", "nan", "-inf", "true", "auto", "x=1", "fc2=1e-3", "\u2603", "a" * 5000]
    words += [*MODELS, *DATASETS, "sgd", "reference", "mse", "one_cycle", "fp16", "cuda"]
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
    assert {d.task for d in DATASETS.values()} <= set(checks.LOSSES)
