"""Takes docs/service.png, the screenshot in docs/service.md: the page of a service on three runs, one with a problem.

pip install -e '.[docs]' -c constraints.txt && apt-get install chromium
make demo && python docs/service_page.py [RUN, by default runs/demo]

The three are copies of one finished run: as it is, with a flipped byte in its newest checkpoint, and with another RoPE
theta in the config of its export.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

from checkpoint.manifest import checkpoint_directory, list_steps, read_manifest
from checkpoint.run_record import read_run, write_run

PICTURE = Path(__file__).with_name("service.png")
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT_S = 300


def make_runs(original: Path, folder: Path) -> None:
    """`smollm2-a`, whole; `smollm2-b`, a flipped byte; `smollm2-c`, a wrong theta in an export that was proven."""
    for number, name in enumerate(("smollm2-a", "smollm2-b", "smollm2-c")):
        left_out = ("service", "logs", *(() if name == "smollm2-c" else ("exports",)))
        run = shutil.copytree(original, folder / name, ignore=shutil.ignore_patterns(*left_out, ".*", "mlflow.db"))
        write_run(run, read_run(run).model_copy(update={"run_key": f"{number}" * 32}))
    checkpoint = checkpoint_directory(folder / "smollm2-b", list_steps(folder / "smollm2-b")[-1])
    path = checkpoint / read_manifest(checkpoint).files[-1].path
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    for config in (folder / "smollm2-c" / "exports").glob("step-*/config.json"):
        config.write_text(config.read_text().replace("10000.0", "100000.0"))


def start_service(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The process, and the address of its page."""
    command = [sys.executable, "-m", "checkpoint", "serve", str(folder), "poll_seconds=1", "http.port=0"]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert service.stderr is not None
    for line in service.stderr:
        if line.startswith("status page: "):
            return service, line.split()[-1]
    raise SystemExit("the service did not start")


def wait_until_idle(url: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        with urllib.request.urlopen(f"{url}/api/status", timeout=60) as answer:
            status = json.load(answer)
        if status["looked_s"] and not status["queue"] and all(run["is_shipped"] for run in status["runs"]):
            return
        time.sleep(1)
    raise SystemExit(f"the service was not done within {TIMEOUT_S} s")


def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("chromium is missing; on Debian: apt-get install chromium")
    original = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_runs(original, folder)
        service, url = start_service(folder)
        try:
            wait_until_idle(url)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
                page = browser.new_page(viewport={"width": 1120, "height": 1240})
                page.goto(url)
                page.screenshot(path=PICTURE)
                browser.close()
        finally:
            service.terminate()
            service.wait()


if __name__ == "__main__":
    main()
