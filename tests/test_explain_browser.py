"""Heatmaps in real Chromium with the shipped network: upload, four methods, move the opacity, export.

No script run while sliders move; nothing wider than a phone; one finger scrolls the page until zoomed in.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import AppServer
from PIL import Image

from brainmri import synthetic
from brainmri.config import load_settings

METHODS = ["Grad-CAM", "HiResCAM", "LayerCAM", "Occlusion"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    model = load_settings().model
    (folder / "config.yaml").write_text(f"model: {{id: {model.id}, directory: '{model.directory}'}}\n", "utf-8")
    running = AppServer(folder / "server.log", folder / "config.yaml")
    yield running.url
    running.stop()


@pytest.fixture
def page(chromium, address):
    opened = chromium.new_page(viewport={"width": 1400, "height": 1600}, accept_downloads=True)
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
def scan() -> bytes:
    """A sample with a true outline, as a file: the page knows it by its hash."""
    return synthetic.sample("meningioma").content


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
    for name in ("LayerCAM", "Occlusion"):
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
    page.locator("[data-name=outline]").uncheck()
    page.locator("[data-name=peak]").uncheck()
    page.wait_for_timeout(200)
    assert np.abs(pixels(page, 0) - image).sum() > 0, "the true outline goes away"
    small = page.locator("canvas.view").nth(1).bounding_box()["width"]
    tops = {round(box["y"]) for box in (v.bounding_box() for v in page.locator("canvas.view").all())}
    assert len(tops) == 1, "five pictures in one row"
    page.locator("[data-name=size]").select_option("large")
    page.wait_for_timeout(300)
    assert page.locator("canvas.view").nth(1).bounding_box()["width"] > 1.5 * small
    page.locator("[data-name=size]").select_option("fit")
    page.wait_for_timeout(300)
    page.locator("[data-name=colourMap]").select_option("viridis")
    page.locator("[data-name=style]").select_option("contour")
    page.locator("[data-name=brainOnly]").check()
    page.locator("[data-name=width]").fill("120")
    page.locator("[data-name=centre]").fill("90")
    view = page.locator("canvas.view").nth(1)
    assert view.evaluate("v => v.style.touchAction") == "pan-y"
    others = pixels(page, 0)
    view.hover(position={"x": 60, "y": 60})
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    assert view.evaluate("v => v.style.touchAction") == "none"
    assert np.abs(pixels(page, 0) - others).sum() > 0, "the image zooms with the map"
    view.focus()
    zoomed = pixels(page, 2)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert np.abs(pixels(page, 2) - zoomed).sum() > 0, "an arrow key moves every picture"
    view.hover(position={"x": 60, "y": 60})
    page.wait_for_timeout(200)
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
