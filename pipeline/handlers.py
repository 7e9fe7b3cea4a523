"""The table of commands: what each hands its flags to. Nothing heavy is imported before a flag's mistake is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pipeline import __version__, environment, output
from pipeline.config import (
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    PlotConfig,
    PredictConfig,
    PrepareConfig,
    RunConfig,
    SearchConfig,
    SyncConfig,
    VerifyConfig,
)
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.release import (
    BenchmarkConfig,
    CacheConfig,
    CompareConfig,
    PromoteConfig,
    ReportConfig,
    ServeConfig,
    TritonConfig,
    WebConfig,
    refuse_promotion,
)
from pipeline.resolve import describe, resolve
from pipeline.values import convert

_LOADING = "loading torch and MLflow ..."  # takes seconds, and a minute on a busy machine


@dataclass(frozen=True)
class Call:
    """One call of a command: its name, the words behind it, the flags that these are, and what the flags mean."""

    command: str
    words: Sequence[str]
    flags: Mapping[str, str]
    config: Any = None  # None for a training, whose flags need a recipe first


def _prepare(call: Call) -> int:
    _refuse_promotion(call)
    _refuse_reuse(call)
    if call.config.shards:
        return _write_shards(call)
    config = resolve(call.flags)
    from pipeline.data.prepare import prepare

    say(str(prepare(config)))
    return 0


def _write_shards(call: Call) -> int:
    """Write this process's part of the shards; torchrun's other processes, on whatever host, write theirs."""
    from pipeline.data.shards import size_of

    num_bytes = size_of(call.config.shards)
    flags = {name: text for name, text in call.flags.items() if name not in ("shards", "output_dir")}
    config = resolve(flags)
    if not call.config.output_dir:
        raise UserError("output_dir: nothing was given. Add --output_dir FOLDER, or --output_dir s3://BUCKET/FOLDER.")
    if "cache_dir" in call.flags:
        raise UserError(
            f"cache_dir={call.flags['cache_dir']} has no effect with --shards, which are written into --output_dir. Leave "
            "--cache_dir out."
        )
    worker = environment.worker()
    from pipeline.data.shards.places import Place
    from pipeline.data.shards.write import write

    write(config, Place(call.config.output_dir), num_bytes=num_bytes, rank=worker.rank, world_size=worker.world_size,
          patience=config.collective_timeout)  # fmt: skip
    return 0


def _train(call: Call) -> int:
    """Take the run that is there already, or train in this process or in workers; a mistake is told before any of it."""
    flags, export = call.flags, call.command == "run"
    _refuse_promotion(call)
    if flags.get("resume", "false") != "false":
        if problems := convert(RunConfig, flags)[1]:
            raise UserError(*problems.values())
        _refuse_reuse(call, "with --resume, which asks for that run and no other")
        _announce(f"{call.command} in {flags.get('output_dir')}, resume={flags['resume']}")
        return _train_now(call)
    is_worker = environment.is_worker()
    config = resolve(flags, world_size=environment.worker().world_size if is_worker else None)
    from pipeline import reuse

    may_take = reuse.applies(config, flags)
    if config.explain and is_worker:
        raise UserError("explain=true does nothing that ranks could share. Ask without torchrun.")
    if is_worker:
        _announce(describe(flags))
        return _train_now(call)
    say(describe(flags))
    if config.explain:
        from pipeline import explain

        explain.explain(config, export=export)
        return 0
    if may_take and not config.promote and "MLFLOW_RUN_ID" not in os.environ and (found := reuse.glance(config, export=export)):
        reuse.tell(found)
        return 0
    say(_LOADING)
    with ExitStack() as stack:
        return _train_now(call, stack if may_take else None)


def _train_now(call: Call, reusing: ExitStack | None = None) -> int:
    """Train, or do what is missing of a run that may be taken; the lock of this training is held by `reusing`."""
    from pipeline import commands, distributed, resume, reuse

    flags, export = call.flags, call.command == "run"
    if environment.is_worker():
        environment.refuse_decided(flags)
        return commands.train_on_this_rank(flags, export=export)
    config = resume.resolve_run(flags)
    device = resume.resolve_device(config)
    nproc = distributed.resolve_nproc(config.nproc, device)
    if config.batch_size < nproc * config.grad_accum_steps:
        raise UserError(
            f"batch_size={config.batch_size} is smaller than {nproc} ranks x grad_accum_steps="
            f"{config.grad_accum_steps}. Use a larger --batch_size, or fewer processes (--nproc)."
        )
    found = reuse.look(config, reusing, export=export) if reusing else None
    if found or (nproc == 1 and not config.max_restarts):
        return commands.train_on_this_rank(flags, export=export, config=config, found=found)
    from pipeline.data.prepare import prepare

    prepare(config)  # a mistake in the data is told before any worker starts
    words = [call.command, *call.words, "--device", device]  # workers need it before they can ask rank 0
    status = distributed.launch(["pipeline", *words], nproc, max_restarts=config.max_restarts)
    if status == 1:
        from pipeline.tracking import runs

        runs.close_after_failure()
    return status


def _refuse_reuse(call: Call, where: str = "") -> None:
    """Raise UserError for flags of `run` and `train` that say nothing here."""
    if given := [name for name in ("cache", "explain") if name in call.flags]:
        where = where or f"on `{call.command}`"
        raise UserError(f"{given[0]}={call.flags[given[0]]} has no effect {where}. Leave --{given[0]} out.")


def _search(call: Call) -> int:
    _refuse_reuse(call)
    from pipeline.search import command

    return command.search(call.config, call.flags, words=call.words, announce=_announce)


def _announce(text: str) -> None:
    """Say what a command is about, before the slow imports. What our launcher has said, its workers only note in the log."""
    if environment.worker().rank == 0:
        (output.log if environment.is_launched() else say)(f"{text}\n{_LOADING}")


def _evaluate(call: Call) -> int:
    _announce_run(call)
    from pipeline import commands, distributed
    from pipeline.tracking.fetch import find_run

    config = call.config
    device = distributed.resolve_device(config.device)
    if not environment.is_worker() and (nproc := distributed.resolve_nproc(config.nproc, device)) > 1:
        find_run(config.run, stage="evaluate", trust_code=config.trust_code)
        return distributed.launch(["pipeline", call.command, *call.words], nproc)
    with distributed.process_group(device) as ranks:
        found = distributed.run_on_main(
            lambda: find_run(config.run, stage="evaluate", trust_code=config.trust_code), on=ranks.is_main
        )
        run = distributed.broadcast(found)
        commands.evaluate(config, run, ranks)
    return 0


def _export(call: Call) -> int:
    _announce_run(call)
    from pipeline import commands
    from pipeline.tracking.fetch import find_run

    commands.export(call.config, find_run(call.config.run, stage="export", trust_code=call.config.trust_code))
    return 0


def _verify(call: Call) -> int:
    _announce_run(call)
    from pipeline import commands
    from pipeline.tracking.fetch import find_run

    commands.verify(call.config, find_run(call.config.run, stage="verify", trust_code=call.config.trust_code))
    return 0


def _benchmark(call: Call) -> int:
    _announce_run(call)
    from pipeline import benchmark
    from pipeline.tracking.fetch import find_run

    benchmark.benchmark(call.config, find_run(call.config.run, stage="benchmark", trust_code=call.config.trust_code))
    return 0


def _report(call: Call) -> int:
    _announce_run(call)
    from pipeline import reporting
    from pipeline.tracking.fetch import find_run

    reporting.report(call.config, find_run(call.config.run, stage="report", trust_code=True))  # none of it is run
    return 0


def _compare(call: Call) -> int:
    from pipeline.pages import comparison

    return comparison.main(call.config)


def _sync(call: Call) -> int:
    _announce_run(call)
    from pipeline.tracking import tracker

    say(f"{call.config.run}: {tracker.sync(call.config.run)} metrics sent")
    return 0


def _plot(call: Call) -> int:
    say(f"drawing {call.config.plot} ...")
    from pipeline.plots import standalone

    say(str(standalone.write(call.config.plot, call.config.output)))
    return 0


def _predict(call: Call) -> int:
    given = {"onnx": "FILE", "input": "FILE or FOLDER"}
    if missing := [f"{n}: nothing was given. Add --{n} {what}." for n, what in given.items() if not getattr(call.config, n)]:
        raise UserError(*missing)
    from export.serve import predict

    return predict.predict(call.config, given=call.flags)


def _promote(call: Call) -> int:
    if problems := [*refuse_promotion(call.config, call.flags)]:
        raise UserError(*problems)
    _need_registry()
    from pipeline.tracking import promotion
    from pipeline.tracking.fetch import find_run

    if call.config.rollback:
        promotion.rollback(call.config)
    else:
        say(f"promote of {call.config.run}")
        promotion.promote(find_run(call.config.run, trust_code=True), call.config)  # none of its code is run
    return 0


def _refuse_promotion(call: Call) -> None:
    """Raise UserError for promote=true where nothing is exported, or where there is no registry."""
    if call.flags.get("promote") != "true":
        return
    if call.command != "run":
        raise UserError(
            f"promote=true has no effect on `{call.command}`, which exports nothing. Use `run`, or leave --promote out."
        )
    _need_registry()


def _need_registry() -> None:
    """Raise UserError where MLflow's address says that there is no registry."""
    from pipeline.tracking import connection

    if problem := connection.refuse_registry():
        raise UserError(problem)


def _serve(call: Call) -> int:
    if not call.config.onnx:
        raise UserError("onnx: nothing was given. Add --onnx FILE, or --onnx models:/NAME@ALIAS.")
    from export.serve import server

    def fetch(address: str) -> server.Found:
        from pipeline.tracking import served

        return server.Found(*served.fetch(address))

    return server.serve(call.config, fetch=fetch, server=__version__)


def _triton(call: Call) -> int:
    if not call.config.repository:
        raise UserError("repository: nothing was given. Add --repository FOLDER, which a Triton server reads its models from.")
    _announce_run(call, slow=False)
    from export import triton
    from pipeline.tracking.fetch import find_run

    say(triton.add(call.config, find_run(call.config.run, trust_code=call.config.trust_code)))
    return 0


def _web(call: Call) -> int:
    given = {"run": "FOLDER or MLFLOW_RUN_ID", "output": "FOLDER"}
    if missing := [f"{n}: nothing was given. Add --{n} {what}." for n, what in given.items() if not getattr(call.config, n)]:
        raise UserError(*missing)
    from export.web import build
    from pipeline.tracking.fetch import find_run

    # no code of the run is executed, so none has to be trusted
    return build.web(call.config, find_run=lambda: find_run(call.config.run, trust_code=True), given=call.flags)


def _cache(call: Call) -> int:
    from pipeline import cache

    return cache.main(call.config, call.flags)


def _inspect(call: Call) -> int:
    if not call.config.dataset:
        raise UserError("dataset: nothing was given. Add --dataset NAME, FOLDER, FILE or file.py:function.")
    from pipeline.inspection import command

    command.inspect(call.config, call.flags)
    return 0


def _announce_run(call: Call, *, slow: bool = True) -> None:
    if not call.config.run:
        raise UserError("run: nothing was given. Add --run FOLDER or --run MLFLOW_RUN_ID.")
    what = f"{call.command} of {call.config.run}"
    if slow:
        _announce(what)
    else:
        say(what)


COMMANDS: Mapping[str, tuple[type, str, Callable[[Call], int]]] = {
    "run": (RunConfig, "prepare, train, evaluate, export, verify and report, in one MLflow run (MLproject's `main`)", _train),
    "inspect": (InspectConfig, "say what a data set is, what is wrong with it, and which command trains it", _inspect),
    "prepare": (PrepareConfig, "convert the data set to tensors on disk, or to shards for more than a disk holds", _prepare),
    "train": (RunConfig, "prepare what is missing, train and evaluate", _train),
    "search": (SearchConfig, "try values of a training's flags, train the best anew, export and prove it", _search),
    "evaluate": (EvaluateConfig, "evaluate a run's best weights on its test split", _evaluate),
    "export": (ExportConfig, "write a run's model as ONNX, TorchScript, .pt2, int8, fp16 and safetensors", _export),
    "verify": (VerifyConfig, "prove that a run's artifacts predict as its model does", _verify),
    "benchmark": (BenchmarkConfig, "measure how fast a run's model is in each runtime, in turns", _benchmark),
    "report": (ReportConfig, "write all that is known of a run on one page, report.html", _report),
    "compare": (CompareConfig, "say which of several runs is better, and whether by more than noise", _compare),
    "promote": (PromoteConfig, "give a run's proven ONNX file an alias in MLflow's registry, if it is better", _promote),
    "predict": (PredictConfig, "ask an exported ONNX file about images, tables or arrays; needs no torch", _predict),
    "serve": (ServeConfig, "answer over HTTP from an exported ONNX file; needs no torch", _serve),
    "triton": (TritonConfig, "add a run's proven ONNX file to a Triton server's model repository", _triton),
    "web": (WebConfig, "make a web page that answers in the browser, from a run's proven ONNX file", _web),
    "sync": (SyncConfig, "send MLflow what it did not take while a run was going on", _sync),
    "cache": (CacheConfig, "list prepared data and the runs that are known again, or make room: cache gc --max_gb N", _cache),
    "plot": (PlotConfig, "draw a picture that needs no run", _plot),
}
