"""The main walk in a real browser, over a real server: sign up, sign in, upload, result, History, sign out, back."""

from __future__ import annotations

import re
import time

from conftest import PASSWORD

from brainmri import synthetic

TIMEOUT_MS = 60_000


def wait_for_cookie(page, *, present: bool):
    """Until the browser has kept or dropped the sign-in cookie and the page has come to rest."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while any(c["name"] == "brainmri" and c["value"] for c in page.context.cookies()) != present:
        assert time.monotonic() < deadline, f"the sign-in cookie is {'missing' if present else 'still there'}"
        time.sleep(0.2)
    page.wait_for_timeout(2000)


def test_from_sign_up_to_the_back_button(server, chromium, tmp_path):
    from playwright.sync_api import expect

    expect.set_options(timeout=TIMEOUT_MS)
    foreign: list[str] = []
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    local = (server.url, "data:", "blob:")
    page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith(local) else None)

    page.goto(f"{server.url}/predict")
    page.get_by_role("tab", name="Sign up").click()
    page.get_by_label("First name").fill("Ada")
    page.get_by_label("User name").last.fill("ada")
    page.get_by_label("Password", exact=True).last.fill(PASSWORD)
    page.get_by_label("Repeat password").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("heading", name="Predict")).to_be_visible()
    wait_for_cookie(page, present=True)
    page.get_by_role("button", name="Sign out").click()
    wait_for_cookie(page, present=False)

    page.get_by_label("User name").first.fill("ada")
    page.get_by_label("Password", exact=True).first.fill(PASSWORD)
    page.get_by_role("button", name="Sign in").last.click()
    expect(page.get_by_role("heading", name="Predict")).to_be_visible()
    wait_for_cookie(page, present=True)

    image = tmp_path / "my-scan.png"
    image.write_bytes(synthetic.sample("meningioma").content)
    page.locator("input[type=file]").first.set_input_files(str(image))
    expect(page.get_by_text("What the network saw", exact=True)).to_be_visible()
    expect(page.get_by_text("my-scan.png", exact=True).last).to_be_visible()
    expect(page.get_by_text(re.compile(r"Probability \d"))).to_be_visible()
    page.get_by_role("link", name="Case 1 in History").click()
    expect(page.get_by_role("heading", name="Case 1")).to_be_visible()
    probability = page.get_by_text(re.compile(r"Probability \d")).inner_text()

    # After a restart the browser is still signed in and the case is there, with the same answer.
    server.stop()
    server.start()
    page.goto(f"{server.url}/history")
    expect(page.get_by_text("1 case, newest first")).to_be_visible()
    page.goto(f"{server.url}/history?case=1")
    expect(page.get_by_text(re.compile(r"Probability \d"))).to_have_text(probability)
    expect(page.get_by_text("my-scan.png").first).to_be_visible()

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in").last).to_be_visible()
    for leave in (page.go_back, page.go_back, lambda: page.goto(f"{server.url}/history?case=1")):
        leave()
        expect(page.get_by_role("button", name="Sign in").last).to_be_visible()
        page.wait_for_timeout(1000)
        shown = page.locator("body").inner_text()
        assert "my-scan" not in shown
        assert "Probability" not in shown
        assert "Case 1" not in shown
    assert not foreign, f"the page asked other servers for {foreign}"
    context.close()
