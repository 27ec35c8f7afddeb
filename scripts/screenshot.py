"""Make docs/images/predict.png: the Predict page on a synthetic sample, as a real browser shows it.

    python scripts/screenshot.py [--sample glioma] [--output docs/images/predict.png] [--dark] [--width 1400]

Runs its own server on an empty database in a temporary folder, with the models of ``config.yaml``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright

from brainmri.config import load_settings
from brainmri.types import CLASS_NAMES

ROOT = Path(__file__).resolve().parent.parent
BUTTONS = dict(zip(CLASS_NAMES, ("Glioma", "Meningioma", "No tumour", "Pituitary"), strict=True))


def main() -> None:
    """Parse, serve, press the sample, save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", choices=CLASS_NAMES, default="glioma")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/predict.png")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=980)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server, url = serve(Path(folder))
        try:
            take(url, options)
        finally:
            server.terminate()
            server.wait(20)
    print(options.output)


def serve(folder: Path) -> tuple[subprocess.Popen, str]:
    """Start the dashboard; returns its process and address once it answers."""
    model = load_settings().model
    config = {"model": {"id": model.id, "directory": str(model.directory), "engine": model.engine}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "Home.py", "--server.port", str(port)]
    environment = os.environ | {"BRAINMRI_CONFIG": str(folder / "config.yaml")}
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=2).close()
            return process, url
        except OSError:
            if process.poll() is not None:
                sys.exit((folder / "server.log").read_text("utf-8", "replace"))
            time.sleep(0.25)
    process.terminate()
    sys.exit("the server did not answer within a minute")


def take(url: str, options: argparse.Namespace) -> None:
    """Enter as a guest, press the sample, save what is seen."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height},
            color_scheme="dark" if options.dark else "light",
        )
        page.set_default_timeout(90_000)
        page.goto(f"{url}/predict")
        page.get_by_role("button", name="Try as a guest").click()
        page.get_by_role("button", name=BUTTONS[options.sample], exact=True).click()
        page.get_by_text("What the network saw", exact=True).wait_for()
        page.mouse.move(5, 5)  # no tooltip in the picture
        page.wait_for_timeout(2500)
        page.screenshot(path=options.output)
        browser.close()


if __name__ == "__main__":
    main()
