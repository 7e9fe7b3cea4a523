"""A team's MLflow as colleagues see it, in Chromium: table, charts, comparison, registry, and report.html in a run's files.

Each page is kept as a picture in the test's folder (`--basetemp`), to be looked at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.run import Run
from pipeline.tracking import registry, runs
from tests.conftest import ROOT
from tests.export.web import browser
from tests.team import USERS, Team, team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_PATIENCE = 180_000  # ms


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[tuple[Team, Any, list[Run]]]:
    """Two colleagues' runs, the second promoted over the first, and a browser that one of them has logged in with."""
    folder = tmp_path_factory.mktemp("page")
    browser.needed()
    with team(folder) as servers:
        patch = pytest.MonkeyPatch()
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(ROOT / "pipeline" / "__main__.py")])  # as `python -m pipeline` has it
        for user, epochs in (("ada", "2"), ("grace", "12")):
            for name, value in servers.variables(user).items():
                patch.setenv(name, value)
            flags = ["--model", "two_layer", "--epochs", epochs, "--formats", "onnx", "--promote", "true"]
            assert main(["run", *flags, "--output_dir", f"{user}-{epochs}", "--cache_dir", str(cache_dir)]) == 0
        found = [Run.open(folder / name) for name in ("ada-2", "grace-12")]
        patch.undo()
        runs.configure()
        with browser.chromium() as chromium:
            context = chromium.new_context(
                http_credentials={"username": "ada", "password": USERS["ada"]}, viewport={"width": 1600, "height": 1000}
            )
            page = context.new_page()
            page.set_default_timeout(_PATIENCE)
            page.goto(servers.uri)
            page.get_by_role("button", name="Close", exact=True).first.click()  # an assistant, which opens once
            yield servers, page, found


def _open(pages: tuple[Team, Any, list[Run]], path: str) -> Any:
    servers, page, _ = pages
    page.goto("about:blank")  # or only what follows the # would change, and the page before would still be there
    page.goto(f"{servers.uri}/#/{path}")
    return page


def _experiment(servers: Team, run: Run) -> str:
    ((number,),) = servers.rows(f"SELECT experiment_id FROM runs WHERE run_uuid = '{run.mlflow_run_id}'")
    return str(number)


def test_the_table_names_each_run_and_where_it_came_from(pages: Any, tmp_path: Path) -> None:
    servers, _, found = pages
    page = _open(pages, f"experiments/{_experiment(servers, found[0])}/runs")
    for run in found:
        page.get_by_text(run.folder.name, exact=True).first.wait_for()
    assert page.get_by_text("trainyard", exact=True).count() == len(found)
    page.screenshot(path=tmp_path / "table.png")


def test_the_charts_have_a_line_for_each_run(pages: Any, tmp_path: Path) -> None:
    servers, _, found = pages
    page = _open(pages, f"experiments/{_experiment(servers, found[0])}/runs?compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").first.fill("val/accuracy")
    try:
        page.locator(".js-plotly-plot .scatterlayer .trace").nth(len(found) - 1).wait_for(state="attached")
    finally:
        page.screenshot(path=tmp_path / "charts.png")


def test_two_runs_are_compared(pages: Any, tmp_path: Path) -> None:
    servers, _, found = pages
    ids = json.dumps([run.mlflow_run_id for run in found])
    page = _open(pages, f"compare-runs?runs={ids}&experiments={json.dumps([_experiment(servers, found[0])])}")
    for run in found:
        page.get_by_text(run.folder.name, exact=True).first.wait_for()
    page.screenshot(path=tmp_path / "compare.png", full_page=True)


def test_a_run_shows_what_it_was(pages: Any, tmp_path: Path) -> None:
    servers, _, found = pages
    page = _open(pages, f"experiments/{_experiment(servers, found[1])}/runs/{found[1].mlflow_run_id}")
    page.get_by_text("test/accuracy", exact=True).first.wait_for()
    page.screenshot(path=tmp_path / "run.png", full_page=True)


def test_the_registry_has_both_versions_and_the_champion(pages: Any, tmp_path: Path) -> None:
    _, _, found = pages
    name = registry.model_name(found[0])
    page = _open(pages, f"models/{name}")
    for text in ("Version 1", "Version 2", "champion", "grace@"):  # the last: who promoted it
        page.get_by_text(text).first.wait_for()
    page.screenshot(path=tmp_path / "model.png")
    page = _open(pages, f"models/{name}/versions/2")
    page.get_by_text(name).first.wait_for()
    page.get_by_text("champion").first.wait_for()
    page.screenshot(path=tmp_path / "version.png", full_page=True)


def test_report_html_is_shown_among_a_runs_files(pages: Any, tmp_path: Path) -> None:
    servers, _, found = pages
    run = found[1]
    page = _open(pages, f"experiments/{_experiment(servers, run)}/runs/{run.mlflow_run_id}/artifacts/report.html")
    report = page.frame_locator("iframe").first
    report.locator("h1").wait_for()
    assert "two_layer" in report.locator("body").inner_text()
    assert report.locator("img, svg").count() > 0
    page.screenshot(path=tmp_path / "report.png")
