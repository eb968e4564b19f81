"""What the page, the API and the metrics tell of runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from checkpoint.manifest import checkpoint_directory, read_manifest
from checkpoint.run_record import read_run, write_run
from checkpoint.web.curve import CurvePoints, draw

TOKEN = "0123456789abcdef0123456789abcdef"
OpenPage = Callable[..., Any]
NASTY = "<script>alert('x')</script>\"&"


@pytest.fixture
def damaged_run(make_run: Callable[..., Path]) -> Path:
    """Two checkpoints of which the newer one is damaged."""
    run = make_run("float32")
    checkpoint = checkpoint_directory(run, 4)
    path = checkpoint / read_manifest(checkpoint).files[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return run


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    """Of a metric, by the values of its labels in the order of their names."""
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_problems_come_first_and_every_part_is_there(damaged_run: Path, open_page: OpenPage) -> None:
    text = open_page().get("/").text
    assert text.index("contents changed") < text.index("<h2>Runs</h2>")
    assert '<a href="/runs/run-float32">' in text
    assert '<svg class="curve"' in text
    for words in (">damaged<", ">proven<", ">quarantined<", "disk, "):
        assert words in text


def test_a_run_has_a_page_of_its_own(damaged_run: Path, open_page: OpenPage) -> None:
    page = open_page()
    text = page.get("/runs/run-float32").text
    assert "export step-00000004" in text
    assert '<option value="4">step 4</option>' in text
    assert page.get("/runs/other").status == 404


def test_the_form_is_shown_only_where_a_token_makes_it_work(damaged_run: Path, open_page: OpenPage) -> None:
    assert "<form" not in open_page(token=None).get("/runs/run-float32").text


def test_the_api_tells_what_the_page_shows(damaged_run: Path, open_page: OpenPage) -> None:
    page = open_page()
    (run,) = page.get("/api/status").json()["runs"]
    assert run == page.get("/api/runs/run-float32").json()
    newest, older = run["checkpoints"]
    assert (newest["step"], newest["verification"], newest["export"]) == (4, "damaged", "none")
    assert (older["step"], older["verification"], older["export"]) == (2, "whole", "proven")
    paths = page.get("/api/openapi.json").json()["paths"]
    assert {"/api/status", "/api/runs/{name}", "/api/actions"} <= paths.keys()


def test_the_metrics_are_prometheus_and_name_what_is_quarantined(damaged_run: Path, open_page: OpenPage) -> None:
    text = open_page().get("/metrics").text
    ((reason, run, what),) = samples(text, "smollm2_quarantined_info")
    assert (run, what) == ("run-float32", "export step-00000004")
    assert "contents changed" in reason
    assert samples(text, "smollm2_exports")["run-float32", "proven"] == 1
    assert samples(text, "smollm2_jobs_total")["damage", "export"] == 1
    assert samples(text, "smollm2_newest_step") == {("run-float32",): 4}


def test_export_now_tries_again_what_was_given_up(damaged_run: Path, open_page: OpenPage, pristine_runs: Path) -> None:
    page = open_page()
    shutil.copytree(
        checkpoint_directory(pristine_runs / "run-float32", 4) / "zero",
        checkpoint_directory(damaged_run, 4) / "zero",
        dirs_exist_ok=True,
    )
    answer = page.act({"action": "export", "run": "run-float32", "step": 4}, token=TOKEN)
    assert answer.json() == {"message": "export of step 4 of run-float32 is in the queue"}
    page.service.run_until_done()
    (run,) = page.get("/api/status").json()["runs"]
    assert (run["checkpoints"][0]["export"], [one["what"] for one in run["troubles"]]) == ("proven", ["ship"])


def test_verify_and_pin_by_hand(damaged_run: Path, open_page: OpenPage) -> None:
    page = open_page()
    for action in ("verify", "pin"):
        assert page.act({"action": action, "run": "run-float32", "step": 2}, token=TOKEN).status == 202
    page.service.run_until_done()
    (run,) = page.get("/api/status").json()["runs"]
    assert (run["checkpoints"][1]["verification"], run["checkpoints"][1]["is_pinned"]) == ("whole", True)
    assert page.act({"action": "unpin", "run": "run-float32", "step": 2}, token=TOKEN).status == 202
    assert page.act({"action": "unpin", "run": "run-float32", "step": 2}, token=TOKEN).status == 409
    assert page.act({"action": "pin", "run": "run-float32", "step": 3}, token=TOKEN).status == 404


def test_what_is_exported_already_is_not_queued(damaged_run: Path, open_page: OpenPage) -> None:
    answer = open_page().act({"action": "export", "run": "run-float32", "step": 2}, token=TOKEN)
    assert (answer.status, answer.json()) == (
        409,
        {"detail": "step 2 of run-float32 is exported already; remove its export first"},
    )


def test_a_step_that_no_file_could_be_named_after_is_malformed(
    new_run: Callable[..., Path], open_page: OpenPage
) -> None:
    new_run("small")
    answer = open_page().act({"action": "unpin", "run": "small", "step": 10**300}, token=TOKEN)
    assert answer.status == 422


def test_a_disk_that_takes_no_pin_is_said(
    damaged_run: Path, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system", "/somewhere")

    monkeypatch.setattr("checkpoint.web.actions.pin", fail)
    answer = page.act({"action": "pin", "run": "run-float32", "step": 2}, token=TOKEN)
    assert (answer.status, answer.json()) == (503, {"detail": "Read-only file system"})


def test_names_and_reasons_are_text_and_never_markup(new_run: Callable[..., Path], open_page: OpenPage) -> None:
    name = NASTY.replace("/", "-")
    run = new_run(name)
    write_run(run, read_run(run).model_copy(update={"name": NASTY}))
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001" / "manifest.json").write_text(f'{{"format_version": {NASTY!r}')
    page = open_page()
    for path in ("/", f"/runs/{run_path(name)}", f"/runs/{run_path(name)}?said=%3Cscript%3E"):
        answer = page.get(path)
        assert answer.status == 200
        assert "<script" not in answer.text
        assert "&lt;script&gt;" in answer.text
    assert samples(page.get("/metrics").text, "smollm2_checkpoints") == {(name,): 1}


def run_path(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def test_the_page_makes_no_request_to_another_host(damaged_run: Path, open_page: OpenPage) -> None:
    page = open_page()
    for path in ("/", "/runs/run-float32"):
        text = page.get(path).text
        assert "http://" not in text.replace("http://127.0.0.1:9", "")
        assert "https://" not in text


def test_ready_when_it_has_looked_lately(new_run: Callable[..., Path], open_page: OpenPage) -> None:
    new_run()
    page = open_page(poll_seconds=0.01)
    page.service.status = page.service.status.model_copy(update={"looked_s": 0.0})
    assert (page.get("/healthz").status, page.get("/readyz").status) == (200, 503)
    page.service.run_until_done()
    page.service.config = page.service.config.model_copy(update={"poll_seconds": 30.0})
    assert page.get("/readyz").status == 200


def test_a_curve_of_a_flat_loss_and_of_one_point_can_be_drawn() -> None:
    assert draw(CurvePoints()) == ""
    assert "points=" in draw(CurvePoints(train=((5, 2.0),)))
    assert "nan" not in draw(CurvePoints(train=((1, 2.0), (2, 2.0)), validation=((1, 2.0),)))


def test_the_curve_falls_from_left_to_right_as_the_loss_does() -> None:
    svg = draw(CurvePoints(train=((0, 4.0), (50, 3.0), (100, 2.0))))
    path = svg.split('class="train" points="')[1].split('"')[0]
    pairs = [tuple(map(float, pair.split(","))) for pair in path.split()]
    assert [x for x, _ in pairs] == [44.0, 342.0, 640.0]
    assert pairs[0][1] < pairs[1][1] < pairs[2][1]
