"""Training: the loop, its checkpoints and the choice of the best weights.

All ranks walk through the same global batches. Losses stay on the device and are summed over the ranks once for every
`log_every` steps, so a step waits for nothing; that is also where a loss that is not finite is noticed.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.pca_init import set_pca_filters
from models.wrapper import Model
from pipeline import distributed, manifest, norms, signals
from pipeline import run as run_folder
from pipeline.checkpoint import Writer, best_of, snapshot
from pipeline.cuda_graph import Replayed
from pipeline.data.loader import Batch, Batches, Split, fits_on
from pipeline.data.mix import mixed_loss
from pipeline.distributed import Ranks
from pipeline.ema import Average
from pipeline.errors import Diverged, Failure
from pipeline.evaluate import measure
from pipeline.losses import MeanLoss, class_weights, loss_divisor
from pipeline.norms import Norms
from pipeline.optimizers import build_optimizer, lr_factor, set_lr, warmup_steps
from pipeline.precision import autocast
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.signals import Interrupted
from pipeline.tracking.tracker import NullTracker

_PATCH_IMAGES = 512  # training images whose patches `init=pca` looks at


class Validated(NamedTuple):
    """What validation found after an epoch, the same on every rank."""

    epoch: int
    metrics: Mapping[str, float]
    is_best: bool  # its weights are the best so far, and kept
    is_last: bool


Watch = Callable[[Validated], bool]  # called on every rank after each epoch: True ends the training there, on all of them alike


@dataclass
class State:
    """How far a training has come. All of it is in every checkpoint."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer steps done
    samples_seen: int = 0  # samples of the current epoch already used, over all ranks
    best_epoch: int = 0
    best: tuple[float, ...] = (-math.inf,)  # what `monitor` names, larger is better
    window: MeanLoss = field(default_factory=MeanLoss)  # since the last point of the curve
    epoch_loss: MeanLoss = field(default_factory=MeanLoss)  # of the current epoch


class Training:
    """One rank's side of a training run: the model and all that changes with it."""

    def __init__(
        self, run: Run, ranks: Ranks, tracker: NullTracker, train: Split, val: Split,
        *, initial: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        c = run.config
        self.run, self.config, self.ranks, self.tracker, self.task = run, c, ranks, tracker, run.task
        torch.manual_seed(c.seed)
        self.model: Model = run.build_model()
        if initial:
            self.model.load_state_dict(initial)
        self.model.to(ranks.device)
        self.model.network = norms.synchronized(self.model.network, ranks)
        if run.data.is_image:
            self.model.to(memory_format=torch.channels_last)
        self.batches = Batches(
            train, batch_size=c.batch_size, grad_accum_steps=c.grad_accum_steps, seed=c.seed, rank=ranks.rank,
            world_size=ranks.world_size, device=ranks.device, num_workers=c.num_workers,
            shift=c.augment_shift, affine=c.augment_affine, crop=c.augment_crop, flip=c.augment_flip, color=c.augment_color,
            mixup=c.mixup, cutmix=c.cutmix, window=c.shuffle_window,
        )  # fmt: skip
        self.val = val.to(ranks.device) if fits_on(ranks.device, val) else val
        weights = class_weights(c.class_weights, self.task, run.data.classes or run.data.targets, train.y)
        means: dict[str, Any] = {
            "label_smoothing": c.label_smoothing,
            "weights": None if weights is None else weights.to(ranks.device),
        }
        self.loss_sum, self.val_loss_sum = (  # smoothed labels and weights are means of training, not measures
            self.task.loss_sum(run.loss, args=c.loss_args, network=self.model.network, unit=self.model.target_unit, **each)
            for each in (means, {})
        )
        self.total_steps = min(n for n in (c.epochs * len(self.batches), c.max_steps) if n)
        self.num_epochs = math.ceil(self.total_steps / len(self.batches))  # the last one may be cut short
        self.patient_until = math.ceil(warmup_steps(c, self.total_steps) / len(self.batches))  # epochs with too small a step
        if c.init == "pca":
            images = self.model.standardized(train.first(_PATCH_IMAGES).to(ranks.device).x)
            set_pca_filters(next(m for m in self.model.modules() if isinstance(m, nn.Conv2d)), images)
        self.optimizer = build_optimizer(self.model, c)
        self.all_parameters = list(self.model.parameters())
        self.parameters = [parameter for parameter in self.all_parameters if parameter.requires_grad]
        norms.set_training(self.model)
        self.norms = Norms(self.model, self.model.network)
        self.average = Average(self.model, c.ema_decay) if c.ema_decay else None
        self.scaler = torch.amp.GradScaler(enabled=c.precision == "fp16")
        compiled: nn.Module = torch.compile(self.model) if c.compile else self.model  # type: ignore[assignment]
        self.ddp_model = compiled
        if ranks.world_size > 1:
            self.ddp_model = distributed.data_parallel(compiled, ranks.device)
        on_one_gpu = ranks.device.type == "cuda" and ranks.world_size == 1
        captures = on_one_gpu and not c.compile and c.cuda_graph != "false"
        self.passes = Replayed(self._passes, self.parameters) if captures else self._passes
        self.best_weights: dict[str, Tensor] = {}
        self.pending_losses: list[Tensor] = []  # this rank's losses that nobody has looked at; empty at every checkpoint
        self.num_correct = torch.zeros((), device=ranks.device, dtype=torch.float64)  # this rank's, in the current epoch
        self.state = State()
        self.saved_at = time.monotonic()
        self.writer = Writer(tracker.checkpoint_written)
        torch.manual_seed(c.seed + 1_000_003 * (ranks.rank + 1))  # dropout: another stream on each rank

    def has_matrices(self) -> bool:
        """Tell whether muon's optimizer has a matrix to make orthogonal steps for."""
        return any(group.get("orthogonal") for group in self.optimizer.param_groups)

    def fit(self, progress: Progress, watch: Watch = lambda found: False) -> None:
        """Train to the last epoch, or until validation has not improved for `early_stopping` epochs, or until `watch` says so.

        A signal to any rank stops all at the end of a `log_every` window, with a checkpoint there; raises Interrupted.
        """
        with signals.defer_signals(), self.writer:
            while self.state.epoch < self.num_epochs and not self._out_of_patience():
                row = self._epoch(progress)
                row |= self._validate()
                if row:
                    self._log(row)
                progress.epoch(epoch := self.state.epoch, row)
                ended = epoch == self.num_epochs or self._out_of_patience()
                stopped = watch(Validated(epoch, row, self.state.best_epoch == epoch, ended))
                if ended or stopped or self.config.checkpoint_every == "epoch":
                    self.save_checkpoint()
                if stopped:
                    break
            if len(self.val) and not self.state.best_epoch:
                raise self._diverged("the validation loss was not finite after any epoch")
            if self._out_of_patience():
                progress.note(f"stopped: no better validation result for {self.config.early_stopping} epochs")

    def _out_of_patience(self) -> bool:
        patience = self.config.early_stopping
        return patience > 0 and self.state.epoch - max(self.state.best_epoch, self.patient_until) >= patience

    def _epoch(self, progress: Progress) -> dict[str, float]:
        """Run the optimizer steps of one epoch; return its mean loss, accuracy (or rmse) and speed.

        Nothing of an epoch with fewer steps than `log_every` is looked at, unless a window ends with it, or each epoch
        ends with a checkpoint or the question of early stopping.
        """
        c, state, batches = self.config, self.state, self.batches
        if not self.model.training:
            norms.set_training(self.ddp_model)
        first = -(-state.samples_seen // c.batch_size)  # the last batch of an epoch may be a small one
        end = min(len(batches), self.total_steps - state.epoch * len(batches))
        skip_metrics = end < c.log_every and 0 < state.epoch < self.num_epochs - 1 and not c.early_stopping
        skip_metrics = skip_metrics and c.checkpoint_every != "epoch"
        skip_metrics = skip_metrics and not self._window_ends(state.step + end - first)
        start = time.perf_counter()
        for step, parts in enumerate(batches.epoch(state.epoch, first_step=first, end=end), start=first):
            factor = lr_factor(state.step, c, total_steps=self.total_steps, steps_per_epoch=len(batches))
            lr = set_lr(self.optimizer, factor)
            self.pending_losses.append(self._step(parts, batches.num_in_step(step)))
            state.step += 1
            if self.average:
                self.average.update(state.step)
            state.samples_seen += batches.num_in_step(step)
            if self._window_ends(state.step) or (step + 1 == end and not skip_metrics):
                self._log_window(lr, progress)
        row = {}
        if not skip_metrics:
            seconds = time.perf_counter() - start
            total = distributed.all_reduce_sum(self.num_correct).item()
            count = min(batches.num_samples, end * c.batch_size)
            used = max(0, count - first * c.batch_size)
            row = {
                "train/epoch_loss": state.epoch_loss.over_samples(c.loss),
                f"train/{self.task.metric}": self.task.metric_value(total, count), "train/samples_per_second": used / seconds,
            }  # fmt: skip
        self.num_correct.zero_()
        if self.ranks.world_size > 1:
            self.norms.average()
        state.epoch, state.samples_seen, state.epoch_loss = state.epoch + 1, 0, MeanLoss()
        return row

    def _window_ends(self, step: int) -> bool:
        return step % self.config.log_every == 0 or self._checkpoint_due(step)

    def _checkpoint_due(self, step: int) -> bool:
        every = self.config.checkpoint_every
        return every.isdigit() and step % int(every) == 0

    def _log_window(self, lr: Mapping[str, float], progress: Progress) -> None:
        """Add up the losses since the last look, and log those of a full window; save a checkpoint or stop, where asked to.

        Every point of the curve stands for `log_every` steps, also across the end of an epoch. What is left over at the end
        of the training has no point: it is in the last epoch's mean.
        """
        stop, late, broken = self._reduce_window()
        window = self.state.window
        progress.step(self.state.step, window.over_steps(self.config.loss))
        if self.state.step % self.config.log_every == 0:
            self._log({"samples": window.samples, "train/loss": window.over_steps(self.config.loss), **lr})
            self.state.window = MeanLoss()
        if stop or late or broken or self._checkpoint_due(self.state.step):
            self.save_checkpoint()
        if broken:
            raise Failure(f"strict_tracking=true, and MLflow does not take the metrics: {self.tracker.problem}")
        if stop:
            raise Interrupted(signals.pending_signal() or signal.SIGTERM)

    def _step(self, parts: Sequence[Batch], count: int) -> Tensor:
        """Do one optimizer step of `count` samples; return this rank's loss, as its share of the global loss."""
        scale, world_size = 1 / loss_divisor(self.config.loss, count), self.ranks.world_size
        self.norms.num_everywhere = world_size * (count // world_size // self.config.grad_accum_steps)
        # DDP averages the gradients over the ranks, and the global loss is their sum
        seed = self.scaler.scale(torch.full((), world_size * scale, device=self.ranks.device))
        loss = self.passes(parts, scale, seed)
        self._update()
        return loss

    def _passes(self, parts: Sequence[Batch], scale: float, seed: Tensor) -> Tensor:
        """Compute the gradients of the summed loss times `seed` and count the right answers; return that loss times `scale`."""
        for parameter in self.parameters:
            parameter.grad = None
        losses = []
        for k, (x, y, *mixed) in enumerate(parts):
            if self.norms.training:
                self.norms.for_part(len(x))
            with self._synchronized(k == len(parts) - 1):
                with autocast(self.config.precision, self.ranks.device):
                    scores, _ = self.ddp_model(x)
                scores = scores.float()
                loss = mixed_loss(self.loss_sum, scores, y, *mixed) if mixed else self.loss_sum(scores, y)
                loss.backward(seed)
            losses.append(loss.detach() * scale)
            self.num_correct += self.task.metric_sum(scores.detach(), y)
        return sum(losses[1:], losses[0])

    def _update(self) -> None:
        """Have the optimizer use the gradients."""
        if self.config.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _synchronized(self, last: bool) -> Any:
        """Exchange gradients only in the last part of a step."""
        if isinstance(self.ddp_model, DistributedDataParallel) and not last:
            return self.ddp_model.no_sync()
        return nullcontext()

    def _reduce_window(self) -> tuple[bool, bool, bool]:
        """Add the global losses that are unseen to the sums, and return for all ranks: stop? save? is tracking broken?

        Any rank may have been asked to stop; rank 0's clock says when minutes are over, and it alone tracks. Raises Failure on
        every rank if a loss is not finite.
        """
        every, main = self.config.checkpoint_every, self.ranks.is_main
        late = main and every.endswith("m") and time.monotonic() - self.saved_at >= 60 * int(every[:-1])
        flags = torch.tensor(
            [float(signals.pending_signal() > 0), float(late), float(bool(self.tracker.problem))],
            device=self.ranks.device, dtype=torch.float64,
        )  # fmt: skip
        losses = torch.stack(self.pending_losses).double()
        self.pending_losses.clear()
        *seen, stop, save, broken = distributed.all_reduce_sum(torch.cat([losses, flags])).tolist()
        first_of_epoch = self.state.epoch * len(self.batches)
        for step, loss in enumerate(seen, start=self.state.step - len(seen)):
            epoch, within = divmod(step, len(self.batches))
            if not math.isfinite(loss):
                raise self._diverged(f"loss={loss} in step {step + 1} (epoch {epoch + 1})")
            count = self.batches.num_in_step(within)
            self.state.window.add(loss, count)
            if step >= first_of_epoch:
                self.state.epoch_loss.add(loss, count)
        return stop > 0, save > 0, broken > 0

    def _diverged(self, what: str) -> Diverged:
        """Return the failure to raise, on every rank alike, for what is not finite."""
        c = self.config
        advice = f"Lower --lr (now {c.lr:g}), limit the gradient (--max_grad_norm 1)"
        if c.precision != "fp32":
            advice += ", or use --precision fp32"
        kept = f" The best weights so far, of epoch {self.state.best_epoch}, are kept." if self.best_weights else ""
        return Diverged(f"{what}: the training diverged. {advice}.{kept}")

    def _validate(self) -> dict[str, float]:
        """Measure the validation split, if there is one, and keep the weights if they are the best so far.

        With a moving average these are the average, by its own results.
        """
        state = self.state
        if not len(self.val):
            return {}
        row: dict[str, float] = {}
        kept = {"val": self.model} | ({"val/ema": self.average.current()} if self.average else {})
        for name, model in kept.items():
            metrics = measure(model, self.val, self.val_loss_sum, self.ranks, config=self.config, task=self.task)
            row |= {f"{name}/{k}": v for k, v in metrics.items()}  # the last one's are what chooses
        result = (-metrics["loss"],) if self.config.monitor == "loss" else (metrics["accuracy"], -metrics["loss"])
        if all(map(math.isfinite, result)) and result > state.best:
            state.best, state.best_epoch = result, state.epoch
            self.best_weights = {k: v.clone() for k, v in model.state_dict().items()}
        return row

    def _log(self, metrics: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        epoch = self.state.epoch + self.state.samples_seen / self.batches.num_samples
        self.tracker.log({"step": self.state.step, "epoch": round(epoch, 6), "time": now} | metrics)

    def keep_best(self) -> None:
        """Write the best weights so far, if validation has found any."""
        if self.ranks.is_main and self.best_weights:
            self._save_weights(manifest.WEIGHTS, self.best_weights)

    def _save_weights(self, name: str, state: Mapping[str, Tensor]) -> None:
        run_folder.save_weights(self.run.folder / name, state, run_id=self.run.mlflow_run_id)

    def save_checkpoint(self) -> None:
        """Have everything that a resumed run needs written in the background.

        What is written is a copy, made here: training goes on meanwhile. Only one is written at a time. Weights that are not
        finite, of an update that no later loss has shown to be bad, are not saved: raises Failure on every rank.
        """
        if not torch.stack(torch._foreach_norm([*self.all_parameters], math.inf)).isfinite().all():
            raise self._diverged(f"weights are not finite after step {self.state.step}")
        per_rank = distributed.gather(
            {"num_correct": self.num_correct.cpu(), "system": self.tracker.drain_rows(), "buffers": self.norms.own()}
            | self._generators()
        )
        self.tracker.receive_rows([row for entry in per_rank for row in entry.pop("system")])
        if self.ranks.is_main:
            buffers = {f"network.{name}": value for name, value in norms.mean([e["buffers"] for e in per_rank]).items()}
            content = {
                "state": asdict(self.state), "model": self.model.state_dict() | buffers, "best_weights": self.best_weights,
                "ema": self.average.current().state_dict() | buffers if self.average else {},
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "ranks": per_rank,
                "mlflow_run_id": self.run.mlflow_run_id,
            }  # fmt: skip
            self.writer.start(self.run.folder, self.state.step, snapshot(content))
        self.saved_at = time.monotonic()

    def _generators(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.ranks.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.ranks.device)
        return states

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take up where `save_checkpoint` was called. With another number of ranks, dropout draws other numbers."""
        values = dict(checkpoint["state"])
        for name in ("window", "epoch_loss"):
            values[name] = MeanLoss(**values[name])
        self.state = State(**values)
        self.model.load_state_dict(checkpoint["model"])
        self.best_weights = {k: v.to(self.ranks.device) for k, v in checkpoint["best_weights"].items()}
        if self.average:
            self.average.model.load_state_dict(checkpoint["ema"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        if self.ranks.is_main:  # the files beside the checkpoint may be of a later step, or on another host's disk
            self._save_weights(manifest.LAST_WEIGHTS, checkpoint["model"])
            self._save_weights(manifest.WEIGHTS, best_of(checkpoint))
        per_rank, rank = checkpoint["ranks"], self.ranks.rank
        if len(per_rank) == self.ranks.world_size:
            self.num_correct.copy_(per_rank[rank]["num_correct"])
            self.norms.restore(per_rank[rank]["buffers"])
            torch.set_rng_state(per_rank[rank]["cpu"])
            if "cuda" in per_rank[rank] and self.ranks.device.type == "cuda":
                torch.cuda.set_rng_state(per_rank[rank]["cuda"], self.ranks.device)
        elif rank == 0:
            self.num_correct.copy_(torch.stack([entry["num_correct"] for entry in per_rank]).sum())
