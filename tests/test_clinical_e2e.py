"""The whole walk in a real browser: zip, slider, heatmap, findings, sign, PDF, verify; one flipped byte fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import PASSWORD
from dicom_maker import stack, zipped

ROOT = Path(__file__).resolve().parent.parent


def slider_share(slider) -> float:
    """Where the handle stands, from 0 at the left end to 1."""
    return slider.evaluate("s => (s.value - s.min) / (s.max - s.min)") * 0.96 + 0.02


def click_chart(page, slice_number: int, of: int) -> None:
    """Click the chart over a slice; its plot spans half a slice to either side."""
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.scroll_into_view_if_needed()
    area = chart.locator("canvas, svg").first.bounding_box()
    left, right = area["x"] + 74, area["x"] + area["width"] - 2  # the axis at the left
    page.mouse.click(left + (right - left) * (slice_number - 0.5) / of, area["y"] + area["height"] * 0.55)


def test_from_zip_to_verified_report(server, chromium, make_user, tmp_path):
    from playwright.sync_api import expect

    from brainmri.ui import state

    make_user("radiologist")
    state.database().close()
    archive = tmp_path / "series.zip"
    archive.write_bytes(zipped({**stack(6), "notes.txt": b"not an image"}))
    expect.set_options(timeout=60_000)
    with chromium.new_context(viewport={"width": 1400, "height": 1000}) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{server.url}/series")
        page.get_by_label("User name").first.fill("radiologist")
        page.get_by_label("Password").first.fill(PASSWORD)
        page.get_by_role("button", name="Sign in").last.click()
        page.locator("input[type=file]").first.set_input_files(str(archive))
        expect(page.get_by_text("Series answer")).to_be_visible()
        expect(page.get_by_text("Set aside (1)")).to_be_visible()
        slider = page.locator("input[type=range]").first
        box = slider.bounding_box()
        page.mouse.move(box["x"] + box["width"] * slider_share(slider), box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()
        expect(page.get_by_text("Slice 6 of 6")).to_be_visible()
        click_chart(page, slice_number=2, of=6)
        expect(page.get_by_text("Slice 2 of 6")).to_be_visible()
        slider = page.locator("input[type=range]").first
        expect(slider).to_have_value("1")  # a jump draws the viewer anew: a key pressed before that goes to the old one
        slider.press("ArrowRight")
        expect(page.get_by_text("Slice 3 of 6")).to_be_visible()
        click_chart(page, slice_number=2, of=6)  # the same place again, after the slider has moved on
        expect(page.get_by_text("Slice 2 of 6")).to_be_visible()
        expect(slider).to_have_value("1")
        slider.press("ArrowRight")
        expect(page.get_by_text("Slice 3 of 6")).to_be_visible()
        page.get_by_label("Heatmap").first.click()
        page.get_by_role("option", name="Grad-CAM").first.click()
        expect(page.get_by_text("It outlines no lesion")).to_be_visible()
        page.get_by_role("button", name="Keep this series").click()
        page.get_by_role("button", name="Report on slice 3").click()
        page.get_by_label("Findings").fill("No focal lesion. Ελένη, Ольга, 王小明.")
        page.get_by_label("Impression").fill("Normal.")
        page.get_by_label("Your password, to sign").fill(PASSWORD)
        page.get_by_role("button", name="Sign and issue").click()
        expect(page.get_by_text("issued, signed")).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("button", name="PDF").first.click()
        pdf = tmp_path / "report.pdf"
        download.value.save_as(pdf)
        page.get_by_role("tab", name="Verify").click()
        upload = page.locator("input[type=file]")
        upload.last.set_input_files(str(pdf))
        expect(page.get_by_text("Genuine: report on case 3")).to_be_visible()
        flipped = bytearray(pdf.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        forged = tmp_path / "forged.pdf"
        forged.write_bytes(flipped)
        page.get_by_role("button", name="Remove report.pdf").click()
        expect(page.get_by_text("Genuine: report on case 3")).to_be_hidden()  # or the page drops what comes next
        upload.last.set_input_files(str(forged))
        expect(page.get_by_text("Not genuine")).to_be_visible()
        if folder := os.environ.get("BRAINMRI_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/verify.png")
    command = [sys.executable, "-m", "brainmri", "report", "verify"]
    good = subprocess.run([*command, str(pdf)], cwd=ROOT, capture_output=True, text=True)
    assert good.returncode == 0
    assert "signed by Radiologist" in good.stdout
    assert subprocess.run([*command, str(forged)], cwd=ROOT, capture_output=True).returncode == 1
