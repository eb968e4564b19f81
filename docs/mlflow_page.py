"""Takes docs/mlflow.png, the screenshot in the README, of the demo's newest run on a real MLflow server.

pip install -e '.[docs]' -c constraints.txt && apt-get install chromium
make demo && python docs/mlflow_page.py [RUNS_DIR, by default runs/demo]
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import sync_playwright

START_TIMEOUT_S = 60
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
# What a first visitor would have to click away.
SETTINGS = {"mlflow.workflowType_v1": '"machine_learning"', "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(store: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(START_TIMEOUT_S * 2):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return server
        except OSError:
            time.sleep(0.5)
    server.terminate()
    raise SystemExit(f"mlflow server did not answer on port {port} within {START_TIMEOUT_S} s")


def main() -> None:
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo").resolve()
    store = f"sqlite:///{runs / 'mlflow.db'}"
    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0].info
    port = free_port()
    server = start_server(store, port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            for key, value in SETTINGS.items():
                page.add_init_script(f"localStorage.setItem({key!r}, {value!r})")
            page.goto(f"http://127.0.0.1:{port}/#/experiments/{run.experiment_id}/runs/{run.run_id}/model-metrics")
            page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
            page.wait_for_timeout(3000)  # the plots ease in
            page.screenshot(path=Path(__file__).with_name("mlflow.png"))
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
