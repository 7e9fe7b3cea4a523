"""The rules between fields: which data, loss and settings fit which model, each with the sentence that tells it is broken."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from models import ModelSpec
from pipeline import data
from pipeline.config import lossy_formats
from pipeline.data.spec import DataSpec, Source
from pipeline.losses import has_weights, is_own, named_weights
from pipeline.recipe import held_out, num_epochs
from pipeline.task import task

if TYPE_CHECKING:
    from pipeline.config import RunConfig


def violations(
    c: RunConfig, model: ModelSpec, source: Source, given: Collection[str], world_size: int | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the fields concerned and the message for every rule between fields that `c` breaks."""
    spec = source.spec.resized(c.image_size)
    if spec.task not in model.tasks:
        yield (
            ("dataset",),
            f"model={c.model} does {' or '.join(model.tasks)}, dataset={c.dataset} is {spec.task}. "
            f"Use --dataset {_fitting(model)}, or another --model.",
        )
    elif not _shapes_fit(model, source.spec):
        yield (
            ("dataset",),
            f"model={c.model} takes samples of shape {_shape(model.input_shape)}, dataset={c.dataset} has "
            f"{_shape(source.spec.sample_shape)}. Use --dataset {_fitting(model)}, or another --model.",
        )
    elif spec.is_image and model.input_shape and model.input_shape[-1] not in (None, spec.sample_shape[-1]):
        yield (
            ("image_size",),
            f"image_size={c.image_size}: model={c.model} takes images of {model.image_size} x {model.image_size} pixels. Leave "
            "--image_size out, or use another --model.",
        )
    elif c.loss not in task(spec.task).losses and not is_own(c.loss):
        yield (
            ("dataset", "loss"),
            f"loss={c.loss} does not fit {spec.task} data. Use --loss {' or '.join(task(spec.task).losses)}.",
        )
    if c.preprocess == "scale" and not spec.is_image:
        yield (
            ("dataset", "preprocess"),
            f"preprocess=scale needs images, dataset={c.dataset} has {_shape(spec.sample_shape)} "
            "without a fixed range. Use --preprocess standardize.",
        )
    if message := _too_little_cache(c, source):
        yield ("dataset", "local_cache_gb", "shuffle_window"), message
    if c.weights and c.pretrained:
        yield ("weights", "pretrained"), f"weights={c.weights} and pretrained=true cannot both be the start. Leave one out."
    if c.init != "random" and (c.weights or c.pretrained):
        given_weights = "weights" if c.weights else "pretrained"
        yield (
            ("init", given_weights),
            f"init={c.init} would write over the first convolution of --{given_weights}. Leave one of the two out.",
        )
    if not model.is_library:
        for name, value in (("pretrained", c.pretrained), ("preprocess", c.preprocess == "pretrained")):
            if value:
                yield (
                    (name,),
                    f"{name}={str(getattr(c, name)).lower()} is for networks of torchvision and timm, and model={c.model} is "
                    f"none. Leave --{name} out.",
                )
    if sum(held_out(vars(c), source)) >= source.num_train:
        yield (
            ("val_split", "test_split"),
            f"val_split={c.val_split} and test_split={c.test_split} leave no sample to train on. Give less than 1 in all.",
        )
    for name, (without, others) in without_effect(c, source).items():
        value = getattr(c, name)
        if name in given and value and value not in ("random", "auto", "none"):  # an explicit 0 or false says what is so
            text = str(value).lower() if isinstance(value, bool) else value
            yield (name, *others), f"{name}={text} has no effect {without}. Leave --{name} out{_instead(name)}."
    if message := _wrong_class_weights(c, spec):
        yield ("dataset", "loss", "class_weights"), message
    if not c.epochs and not c.max_steps:
        yield ("epochs", "max_steps"), "epochs=0 leaves it to --max_steps when to end, which is 0 too. Give one of the two."
    if c.monitor not in ("loss", task(spec.task).metric):
        yield ("dataset", "monitor"), f"monitor={c.monitor} does not fit {spec.task} data ({c.dataset}). Use --monitor loss."
    if c.scheduler == "one_cycle" and not c.warmup_ratio:
        yield (
            ("scheduler", "warmup_ratio"),
            "scheduler=one_cycle rises and falls, and warmup_ratio=0 leaves nothing of the rise. Use --warmup_ratio 0.3, or "
            "--scheduler cosine.",
        )
    if c.scheduler == "step" and 0 < num_epochs(vars(c), source) <= c.step_size:
        yield (
            ("scheduler", "step_size", "epochs", "max_steps"),
            f"step_size={c.step_size} never cuts the learning rate, as the training ends after {num_epochs(vars(c), source)} "
            "epochs. Use a smaller --step_size, more --epochs, or --scheduler constant.",
        )
    if not re.fullmatch(r"epoch|[1-9][0-9]{0,8}m?", c.checkpoint_every):
        yield (
            ("checkpoint_every",),
            f"checkpoint_every={c.checkpoint_every} is neither `epoch`, nor steps, nor minutes. Give, for one, 500 or 10m.",
        )
    for name in ("layer_lr", "layer_weight_decay"):
        yield from (((name,), message) for message in _layer_problems(name, getattr(c, name), model))
    ranks = world_size or (c.nproc if isinstance(c.nproc, int) else 1)
    if c.batch_size < ranks:
        yield (
            ("batch_size", "nproc"),
            f"batch_size={c.batch_size} is smaller than the {ranks} ranks. "
            f"Use --batch_size {ranks} or more, or fewer processes (--nproc).",
        )
    elif c.batch_size < ranks * c.grad_accum_steps:
        yield (
            ("batch_size", "nproc", "grad_accum_steps"),
            f"batch_size={c.batch_size} is smaller than {ranks} ranks x "
            f"grad_accum_steps={c.grad_accum_steps}. Use --batch_size {ranks * c.grad_accum_steps} or more.",
        )
    if c.precision == "fp16" and c.device == "cpu":
        yield (
            ("precision", "device"),
            "precision=fp16 needs a GPU, device=cpu was given. Use --precision bf16 or fp32.",
        )
    if c.cuda_graph == "true":
        for is_so, name, why in ((c.compile, "compile", "with compile=true"), (ranks > 1, "nproc", f"on {ranks} ranks"),
                                 (c.device == "cpu", "device", "on device=cpu")):  # fmt: skip
            if is_so:
                yield ("cuda_graph", name), f"cuda_graph=true has no effect {why}. Leave --cuda_graph out."
    if c.max_restarts and not c.output_dir:
        yield (
            ("max_restarts",),
            f"max_restarts={c.max_restarts} was given without a run folder, where restarted workers find the checkpoint. "
            "Add --output_dir FOLDER.",
        )
    if c.resume != "false" and not c.output_dir:
        yield ("resume",), f"resume={c.resume} was given without a run folder. Add --output_dir FOLDER."


def _too_little_cache(c: RunConfig, source: Source) -> str:
    """Return what is wrong where the shards that an order needs at a time are more than may lie here, or nothing."""
    if not c.local_cache_gb or source.shards is None:
        return ""
    entries = source.shards.index["splits"]["train"]["x"]
    largest, total = max(e["bytes"] for e in entries), sum(e["bytes"] for e in entries)
    window = c.shuffle_window or source.num_train
    needed = min(total, window / source.num_train * total + 4 * largest)  # a window's, and those at its ends
    if needed <= c.local_cache_gb * 1e9:
        return ""
    fits = int((c.local_cache_gb * 1e9 - 4 * largest) / total * source.num_train)
    advice = f"Give --shuffle_window {fits} or less" if fits > 0 else "Write smaller shards"
    return (
        f"local_cache_gb={c.local_cache_gb:g} is less than the {needed / 1e9:.3g} GB of shards that shuffle_window="
        f"{c.shuffle_window} needs at a time. {advice}, or more --local_cache_gb."
    )


def without_effect(c: RunConfig, source: Source) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the fields that have no effect on a training: why, and because of which other fields."""
    idle: dict[str, tuple[str, tuple[str, ...]]] = {}
    num_val, num_test = held_out(vars(c), source)

    def is_idle(when: bool, why: str, because: str, *names: str) -> None:
        idle.update({name: (why, (because,)) for name in names if when})

    is_idle(source.is_own or not source.files, f"on dataset={c.dataset}", "dataset", "data_dir")
    is_idle(source.has_test_set, f"on dataset={c.dataset}, which has a test set", "dataset", "test_split")
    is_idle(source.has_val_set, f"on dataset={c.dataset}, which has a validation set", "dataset", "val_split")
    no_table = f"on dataset={c.dataset}, which is no table"
    is_idle(not source.spec.columns, no_table, "dataset", "ignore_columns", "group_column", "split_column")
    is_idle(not source.has_target, no_table, "dataset", "target")
    is_idle(not source.is_own, f"on dataset={c.dataset}, whose task is known", "dataset", "task")
    is_idle(not source.spec.any_size, f"on dataset={c.dataset}, which has no image files", "dataset", "skip_bad")
    no_images = f"on dataset={c.dataset}, which has no images"
    augmenting = ("augment_shift", "augment_affine", "augment_crop", "augment_flip", "augment_color", "cutmix")
    is_idle(not source.spec.is_image, no_images, "dataset", *augmenting, "init", "image_size")
    no_classes = f"on dataset={c.dataset}, which has no classes or labels"
    is_idle(not task(source.spec.task).has_decisions, no_classes, "dataset", "mixup", "cutmix", "calibrate")
    is_random = source.is_random or num_val > 0 or num_test > 0
    is_idle(not is_random, f"on dataset={c.dataset}, which is not split at random", "val_split", "split_seed")
    is_idle(c.optimizer not in ("sgd", "rmsprop"), f"on optimizer={c.optimizer}", "optimizer", "momentum")
    is_idle(c.optimizer != "sgd", f"on optimizer={c.optimizer}", "optimizer", "nesterov")
    is_idle(c.optimizer == "sgd" and not c.momentum, "without momentum", "momentum", "nesterov")
    is_idle(c.loss != "cross_entropy", f"on loss={c.loss}", "loss", "label_smoothing")
    is_idle(not has_weights(c.loss), f"on loss={c.loss}", "loss", "class_weights")
    is_idle(c.scheduler != "step", f"on scheduler={c.scheduler}", "scheduler", "step_size", "gamma")
    has_no_val = not num_val and not source.has_val_set
    is_idle(has_no_val, "without validation samples (val_split=0)", "val_split", "early_stopping", "monitor", "calibrate")
    is_idle(not c.epochs, "while max_steps decides", "max_steps", "epochs")
    is_idle(not c.max_steps, "while epochs decide", "epochs", "max_steps")
    is_idle(source.shards is None, f"on dataset={c.dataset}, which is no folder of shards", "dataset", "shuffle_window")
    is_fetched = source.shards is not None and "://" in source.shards.address
    is_idle(not is_fetched, f"on dataset={c.dataset}, which is not fetched", "dataset", "local_cache_gb")
    exact = not lossy_formats(c.formats)
    is_idle(exact, f"on formats={c.formats}, which are exact", "formats", "max_metric_drop", "min_speedup")
    return idle


_USE = {"momentum": "use --optimizer sgd or rmsprop", "nesterov": "use --optimizer sgd --momentum 0.9",
        "label_smoothing": "use --loss cross_entropy", "class_weights": "use --loss cross_entropy, bce or focal",
        "step_size": "use --scheduler step", "gamma": "use --scheduler step",
        "early_stopping": "use --val_split 0.1", "monitor": "use --val_split 0.1", "calibrate": "use --val_split 0.1",
        "max_metric_drop": "use --formats onnx,onnx-int8", "min_speedup": "use --formats onnx,onnx-int8"}  # fmt: skip


def _instead(name: str) -> str:
    return f", or {_USE[name]}" if name in _USE else ""


def _wrong_class_weights(c: RunConfig, spec: DataSpec) -> str:
    """Return what is wrong with weights of named classes, or nothing."""
    if c.class_weights in ("none", "balanced") or not has_weights(c.loss):
        return ""
    classes = spec.classes or spec.targets
    try:
        named = named_weights(c.class_weights)
    except ValueError as error:
        return f"class_weights={c.class_weights} {error}"
    unknown = [name for name in named if name not in classes]
    if unknown or not named:
        shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        what = f"names {', '.join(unknown[:5])}" if unknown else "names no class"
        return f"class_weights={c.class_weights} {what}. The classes of {c.dataset} are: {shown}."
    return ""


def _layer_problems(name: str, text: str, model: ModelSpec) -> Iterator[str]:
    for part in filter(None, text.split(",")):
        layer, _, number = part.partition("=")
        if model.layers and layer not in model.layers:
            yield f"{name}={text} names the layer {layer!r}, which is not there. Its layers are: {', '.join(model.layers)}."
        try:
            good = 0 <= float(number) <= 1e38  # what fits into 32 bits
        except ValueError:
            good = False
        if not good:
            example = f"--{name} {(model.layers or ('fc',))[-1]}=1e-4"
            yield f"{name}={text} gives {number!r} for {layer}. Give a number from 0 to 1e38, as in {example}."


def layer_of(parameter: str) -> str:
    """Return the layer to which a parameter of a model belongs, by its name."""
    return parameter.removeprefix("network.").partition(".")[0]


def layer_values(text: str) -> dict[str, float]:
    """Return {layer: value} of a checked `layer=value,layer=value` text."""
    return {layer: float(number) for layer, _, number in (p.partition("=") for p in text.split(",") if p)}


def _shapes_fit(model: ModelSpec, spec: DataSpec) -> bool:
    """Images of any size fit an image model with as many channels, since `prepare` resizes them."""
    if model.input_shape is None:
        return True
    return len(model.input_shape) == len(spec.sample_shape) and model.input_shape[0] in (None, spec.sample_shape[0])


def _fitting(model: ModelSpec) -> str:
    return " or ".join(data.matching(lambda spec: spec.task in model.tasks and _shapes_fit(model, spec)))


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return (
        "any"
        if shape is None
        else "(" + ", ".join("any" if s is None else str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
    )
