"""The PACS page: who may open it, what it says without a PACS, and the way from a search into the Series viewer."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path

import pytest
from conftest import PASSWORD, AppServer, free_port
from dicom_maker import dicom, stack

from brainmri.ui import state

PAGE = "clinical/pacs.py"


def configure(server) -> None:
    """Name a server in the configuration that pages read, before they do."""
    path = Path(os.environ["BRAINMRI_CONFIG"])
    named = f"{{name: {server.name}, ae_title: {server.ae_title}, host: {server.host}, port: {server.port}}}"
    path.write_text(path.read_text("utf-8") + f"pacs: {{servers: [{named}]}}\n", "utf-8")


@pytest.mark.parametrize("role", ["reader", "admin"])
def test_it_is_for_radiologists(open_page, role):
    page = open_page(PAGE, role)
    assert not page.text_input
    assert page.exception  # the router shows such a reader a page that says so


def test_without_a_pacs_it_says_how_to_name_one(open_page):
    page = open_page(PAGE, "radiologist")
    assert not page.exception
    assert "pacs.servers" in page.info[0].value


def test_from_a_search_to_the_series(orthanc, chromium, app_settings, make_user, tmp_path):
    from playwright.sync_api import expect

    for content in (*stack(3).values(), dicom(StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1", PatientID="OTHER")):
        request = urllib.request.Request(f"{orthanc[1]}/instances", data=content, method="POST")
        urllib.request.urlopen(request, timeout=30).close()
    configure(orthanc[0])
    make_user("radiologist")
    state.database().close()
    running = AppServer(tmp_path / "server.log")
    try:
        with chromium.new_context(viewport={"width": 1400, "height": 1000}) as context:
            page = context.new_page()
            page.set_default_timeout(60_000)
            expect.set_options(timeout=60_000)
            page.goto(f"{running.url}/pacs")
            page.get_by_label("User name").first.fill("radiologist")
            page.get_by_label("Password").first.fill(PASSWORD)
            page.get_by_role("button", name="Sign in").last.click()
            page.get_by_role("textbox", name="Patient ID").fill("nobody")
            page.get_by_role("button", name="Search").click()
            expect(page.get_by_text("No study with MR matches")).to_be_visible()
            page.get_by_role("textbox", name="Patient ID").fill("HOSPITAL*")
            page.get_by_role("button", name="Search").click()
            expect(page.get_by_text("1 study; choose a row")).to_be_visible()
            choose_first_line(page, 0)
            expect(page.get_by_text("1 series; choose a row")).to_be_visible()
            choose_first_line(page, 1)
            page.get_by_role("button", name="Open in the Series viewer").click()
            expect(page.get_by_text("Fetched from Archive, de-identified.")).to_be_visible()
            expect(page.get_by_text("Series answer")).to_be_visible()
            expect(page.get_by_text(re.compile("Slice [123] of 3"))).to_be_visible()
            assert "Johanna" not in page.content()
            page.get_by_role("button", name="Close").click()
            expect(page.get_by_text("Give a zip, a folder or the files")).to_be_visible()
    finally:
        running.stop()


def choose_first_line(page, table: int) -> None:
    """Tick the first line of a table, which Streamlit draws on a canvas: below the head, at the left."""
    box = page.get_by_test_id("stDataFrame").nth(table).locator("canvas").first.bounding_box()
    page.mouse.click(box["x"] + 15, box["y"] + 35 + 17)


def test_what_was_fetched_is_shown_to_who_fetched_it(open_page, make_user, app_settings):
    from brainmri.dicom import read_files
    from brainmri.ui import series

    reading = read_files(stack(3).items(), "series", app_settings)
    anna, ben = make_user("radiologist", "anna"), make_user("radiologist", "ben")
    opened = series._Opened((anna.id, "Archive", 1), reading, origin="Archive", fetched=True)
    page = open_page("clinical/series.py", anna, session={"series.opened": opened})
    assert any("Fetched from" in m.value for m in page.markdown)
    page = open_page("clinical/series.py", ben, session={"series.opened": opened})
    assert not any("Fetched from" in m.value for m in page.markdown)
    assert "series.opened" not in page.session_state


def test_a_pacs_that_is_away_is_said_on_the_page(open_page, app_settings):
    from brainmri.config import PacsServer

    configure(PacsServer(name="Archive", ae_title="A", host="127.0.0.1", port=free_port()))
    page = open_page(PAGE, "radiologist")
    page.button[0].click().run()
    assert not page.exception
    assert "does not answer" in page.error[0].value
