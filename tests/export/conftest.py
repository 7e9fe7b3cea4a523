"""Small run folders as training leaves them, one for each model (and each gradient of the cubic), exported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.artifacts import export_run
from export.formats import FORMATS
from models import MODELS
from pipeline import manifest
from pipeline import run as run_folder
from pipeline.data.prepare import prepare, read_spec
from pipeline.resolve import resolve
from pipeline.run import Run

GRADIENTS = ("manual", "autograd", "linear")
VARIANTS = [*(m for m in MODELS if m != "polynomial"), *(f"polynomial-{gradient}" for gradient in GRADIENTS)]
EXACT = [name for name, each in FORMATS.items() if each.build]  # what a run is exported to unless asked otherwise
ONE_EACH = list({variant.partition("-")[0]: variant for variant in VARIANTS}.values())


@dataclass(frozen=True)
class Trained:
    """A run folder and the prepared data it stands on."""

    run: Run
    data: Path


MakeRun = Callable[[str, Path], Trained]


@pytest.fixture(scope="session")
def make_run(cache_dir: Path) -> MakeRun:
    """Return a function that makes the run folder of a variant; its weights are as they were drawn."""

    def make(variant: str, folder: Path) -> Trained:
        model, _, gradient = variant.partition("-")
        flags = {"model": model, "cache_dir": str(cache_dir)} | ({"model_args": f"gradient={gradient}"} if gradient else {})
        config = resolve(flags)
        data = prepare(config)
        run = Run.create(folder, config=config, mlflow_run_id="0123456789abcdef" * 2, git_commit="a" * 40, data=read_spec(data))
        run_folder.save_weights(folder / manifest.WEIGHTS, run.build_model().state_dict(), run_id=run.mlflow_run_id)
        return Trained(run, data)

    return make


@pytest.fixture(scope="session")
def exports(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return a function that gives the exported run of a variant, made when first asked for. Not to be changed."""
    made: dict[str, Trained] = {}

    def get(variant: str) -> Trained:
        if variant not in made:
            trained = make_run(variant, tmp_path_factory.mktemp("runs") / variant)
            export_run(trained.run)
            made[variant] = trained
        return made[variant]

    return get


@pytest.fixture(params=VARIANTS)
def exported(request: pytest.FixtureRequest, exports: Callable[[str], Trained]) -> Trained:
    return exports(request.param)
