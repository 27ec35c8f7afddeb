"""Heatmaps in real Chromium: upload, four methods, move the opacity, export; and no script run while sliders move."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import need_real_part
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
METHODS = ["Grad-CAM", "Grad-CAM++", "HiResCAM", "LayerCAM"]


@pytest.fixture(scope="module")
def address(tmp_path_factory, tiny_models):
    folder = tmp_path_factory.mktemp("app")
    (folder / "config.yaml").write_text(f"model: {{id: tiny, directory: '{tiny_models}'}}\n", "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(ROOT / "Home.py"), "--server.port", str(port),
         "--server.headless", "true", "--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"],
        cwd=ROOT,
        env={**os.environ, "BRAINMRI_CONFIG": str(folder / "config.yaml"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        need_real_part("Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    opened = browser.new_page(viewport={"width": 1400, "height": 1600}, accept_downloads=True)
    opened.set_default_timeout(60_000)
    opened.sent = []
    opened.on("websocket", lambda socket: socket.on("framesent", lambda frame: opened.sent.append(frame)))
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.goto(f"{address}/heatmaps")
    opened.get_by_role("button", name="Try as a guest").click()
    opened.get_by_role("heading", name="Heatmaps").wait_for()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def scan(slices) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(slices[4]).save(buffer, "PNG")
    return buffer.getvalue()


def settle(page) -> None:
    """Wait until the script has stopped running and nothing is sent any more."""
    page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')")
    count = -1
    while count != len(page.sent):
        count = len(page.sent)
        page.wait_for_timeout(700)


def upload(page, scan: bytes) -> None:
    file = {"name": "scan.png", "mimeType": "image/png", "buffer": scan}
    page.locator("input[type=file]").first.set_input_files(file)
    page.locator("canvas.view").nth(2).wait_for()


def pixels(page, panel: int) -> np.ndarray:
    """What a panel shows, 160 x 160: columns differ by a fraction of a screen pixel in width."""
    picture = Image.open(io.BytesIO(page.locator("canvas.view").nth(panel).screenshot())).convert("RGB")
    return np.asarray(picture.resize((160, 160)), int)


def test_upload_four_methods_move_opacity_export(page, scan, tmp_path):
    upload(page, scan)
    methods = page.get_by_test_id("stMultiSelect").filter(has_text="Methods").get_by_role("combobox")
    for name in ("Grad-CAM++", "LayerCAM"):
        methods.click()
        page.get_by_role("option", name=name, exact=True).click()
    methods.press("Escape")
    page.locator("canvas.view").nth(4).wait_for()
    settle(page)
    titles = page.locator(".panel h4").all_inner_texts()
    assert titles[0] == "Image"
    assert sorted(t.split(" · ")[0] for t in titles[1:]) == sorted(METHODS)

    before, image = pixels(page, 1), pixels(page, 0)
    sent = len(page.sent)
    for value in ("0.6", "0.8", "0.95"):
        page.locator("[data-name=opacity]").fill(value)
    page.wait_for_timeout(200)
    after = pixels(page, 1)
    assert np.abs(after - before).sum() > 0
    assert np.abs(after - image).sum() > np.abs(before - image).sum()
    page.locator("[data-name=threshold]").fill("1")
    page.wait_for_timeout(200)
    hidden = pixels(page, 1)
    assert np.abs(hidden - image).sum() < np.abs(after - image).sum()
    page.locator("[data-name=threshold]").fill("0.3")
    page.locator("[data-name=colourMap]").select_option("viridis")
    page.locator("[data-name=style]").select_option("contour")
    page.locator("[data-name=brainOnly]").check()
    page.locator("[data-name=width]").fill("120")
    page.locator("[data-name=centre]").fill("90")
    view = page.locator("canvas.view").nth(1)
    view.hover(position={"x": 60, "y": 60})
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    readout = page.locator(".probe").all_inner_texts()
    assert "row" in readout[0]
    assert "image" in readout[0]
    assert all("map 0." in text or "map 1." in text for text in readout[1:])
    assert len(page.sent) == sent, "moving a slider made the script run again"
    assert not page.errors

    expected = {"PNG": (b"\x89PNG", 20_000), "NPZ (arrays)": (b"PK", 2_000), "One-page figure (PDF)": (b"%PDF", 10_000)}
    for label, (magic, size) in expected.items():
        with page.expect_download() as download:
            page.get_by_test_id("stDownloadButton").get_by_role("button", name=label).click()
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(magic)
        assert len(content) > size
        if label.startswith("NPZ"):
            with np.load(io.BytesIO(content)) as arrays:
                assert arrays["saliency_map"].shape[0] == 4
                assert arrays["saliency_map"].max() <= 1
    with page.expect_download() as download:
        page.locator("[data-name=save]").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_readers_settings_survive_a_script_run(page, scan):
    page.locator("input[type=file]").first.set_input_files(
        {"name": "scan.png", "mimeType": "image/png", "buffer": scan}
    )
    page.locator("canvas.view").nth(2).wait_for()
    settle(page)
    page.locator("[data-name=opacity]").fill("0.85")
    sent = len(page.sent)
    classes = page.get_by_test_id("stMultiSelect").filter(has_text="Classes").get_by_role("combobox")
    classes.click()
    page.get_by_role("option").first.click()
    classes.press("Escape")
    page.locator("canvas.view").nth(4).wait_for()
    settle(page)
    assert len(page.sent) > sent  # choosing a class is a run: the counter above counts what it should
    assert page.locator("[data-name=opacity]").input_value() == "0.85"
    page.set_viewport_size({"width": 400, "height": 900})
    page.wait_for_timeout(600)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
