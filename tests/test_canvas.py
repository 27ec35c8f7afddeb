"""What the canvas sends to the browser. How it behaves there: test_explain_browser.py."""

import base64
import json

import numpy as np
import pytest

from brainmri.explain.colour import COLOUR_MAPS, colour_table, overlay
from brainmri.ui.canvas import _HERE, CanvasError, Panel, _sent, _shrunk, canvas, encode, quantise


def decode(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:4], "little")
    assert (4 + length) % 8 == 0
    return json.loads(data[4 : 4 + length]), data[4 + length :]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_arrays_arrive_bit_for_bit(dtype):
    image = (np.arange(3 * 5 * 7).reshape(3, 5, 7) * 2).astype(dtype)
    mask = image > 50
    header, blob = decode(encode([Panel(image, "Series", mask=mask, spacing_mm=(1.0, 2.0))], key="k"))
    panel = header["panels"][0]
    assert panel["shape"] == [3, 5, 7]
    assert panel["image"] % 8 == 0
    np.testing.assert_array_equal(np.frombuffer(blob, dtype, image.size, panel["image"]).reshape(image.shape), image)
    np.testing.assert_array_equal(np.frombuffer(blob, "u1", image.size, panel["mask"]).reshape(image.shape), mask)


def test_shared_images_are_sent_once():
    image = np.zeros((300, 300), np.uint8)
    one = len(encode([Panel(image)], key="k"))
    five = len(encode([Panel(image)] * 5, key="k"))
    assert five - one < 5000


def test_quantise_keeps_what_is_positive_visible_and_zero_transparent():
    np.testing.assert_array_equal(quantise(np.array([0, 1e-9, 0.5, 1, np.nan])), [0, 1, 128, 255, 0])


@pytest.mark.parametrize(
    ("panels", "words"),
    [
        ([], "at least one panel"),
        ([Panel(np.zeros((4, 4), np.int64))], "int64"),
        ([Panel(np.zeros((4, 4), np.uint8), saliency=np.zeros((8, 8)))], r"saliency is \(8, 8\)"),
    ],
)
def test_wrong_arrays_are_refused_with_what_came(panels, words):
    with pytest.raises(CanvasError, match=words):
        encode(panels, key="k")


def test_unknown_style_is_refused():
    with pytest.raises(CanvasError, match="sparkle"):
        canvas([Panel(np.zeros((4, 4), np.uint8))], key="k", style="sparkle")


@pytest.fixture
def show(chromium):
    """`show(panels, anew=False, **header) -> page`: the canvas as the browser draws it, without Streamlit around it."""
    page = chromium.new_page()
    page.set_default_timeout(20_000)
    module = base64.b64encode((_HERE / "canvas.js").read_bytes()).decode()
    page.evaluate(
        """async (module) => {
          const draw = (await import(`data:text/javascript;base64,${module}`)).default;
          let parentElement, leave;
          window.show = (data, anew) => {
            if (anew || !parentElement) {
              leave?.();
              parentElement?.remove();
              parentElement = document.createElement("div");
              parentElement.innerHTML = '<div class="canvas-root"></div>';
              document.body.append(parentElement);
            }
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            leave = draw({ data: bytes, parentElement, setStateValue: () => {} });
          };
        }""",
        module,
    )

    def show_(panels, *, anew=False, report_slice=False, slice_index=0, **header):
        settings = {"opacity": 0.5, "threshold": 0.2, "colour_map": "viridis", "style": "fill", "slice": slice_index}
        rest = {"settings": settings, "report_slice": report_slice, "max_height": 400}
        data = encode(panels, key="k", **rest, **header)
        page.evaluate("([data, anew]) => window.show(data, anew)", [base64.b64encode(data).decode(), anew])
        return page

    yield show_
    page.close()


def _map(seed: int, top: int = 200, n: int | None = None) -> Panel:
    image = np.random.default_rng(seed).integers(0, top, (40, 30) if n is None else (n, 40, 30)).astype(np.uint16)
    return Panel(image, saliency=image / top)


def _zoomed(page) -> bool:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator("canvas.view").first.evaluate("v => v.style.touchAction") == "none"


def test_zoom_and_window_stay_with_their_picture_and_leave_with_it(show):
    page = show([_map(0)], identity="a")
    page.locator("[data-name=opacity]").fill("0.9")
    page.locator("[data-name=centre]").fill("33")
    page.locator("canvas.view").focus()
    page.keyboard.press("+")
    assert _zoomed(page)
    show([_map(1, top=300)], identity="a")  # the next slice of a large series: other values
    assert _zoomed(page)
    assert page.locator("[data-name=centre]").input_value() == "33"
    show([_map(1, top=300)] * 2, identity="a")  # one map more
    assert _zoomed(page)
    show([_map(1, top=300)], identity="b")  # another picture, of the same shape and range
    assert not _zoomed(page)
    assert page.locator("[data-name=centre]").input_value() != "33"
    assert page.locator("[data-name=opacity]").input_value() == "0.9"


def test_a_stack_that_comes_back_shows_the_slice_that_the_page_speaks_of(show):
    stack = [_map(0, n=6)]
    page = show(stack, identity="a", report_slice=True, slice_index=1)
    page.locator("[data-name=slice]").fill("3")
    show(stack, identity="a", report_slice=True, slice_index=1)  # a run that began before the reader moved on
    assert page.locator("[data-name=slice]").input_value() == "3"
    show(stack, anew=True, identity="a", report_slice=True, slice_index=5)
    assert page.locator("[data-name=slice]").input_value() == "5"


def _lightness(srgb: np.ndarray) -> np.ndarray:
    """CIE L* of linearised sRGB."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


# Machado, Oliveira & Fernandes, IEEE TVCG 2009, severity 1.0, applied to linear RGB.
MACHADO = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _pixels(page, selector: str) -> np.ndarray:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    values = page.locator(selector).first.evaluate(
        """c => [c.width, ...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]"""
    )
    return np.array(values[1:]).reshape(-1, values[0], 4)


def test_what_the_threshold_hides_is_hatched_in_a_grey_for_both_themes(show):
    bar = _pixels(show([_map(0)]), ".bar canvas")
    hidden = bar[:, : int(0.2 * 255)]
    solid = hidden[hidden[..., 3] == 255]
    assert len(solid) > 100
    assert (np.abs(solid[:, :3].astype(int) - (138, 148, 154)) <= 2).all()
    assert (bar[:, 60:, 3] == 255).all()


def test_a_frame_is_drawn_where_it_lies_in_the_image(show):
    image = np.zeros((40, 30), np.uint8)
    teal = [tuple(p) for p in _pixels(show([Panel(image)], anew=True), ".view").reshape(-1, 4) if p[1] > 90]
    assert not teal
    view = _pixels(show([Panel(image, frame=(10, -5, 100, 20))], anew=True), ".view")  # past the left and the bottom
    rows, columns = np.nonzero(view[..., 1] > 90)
    height = len(view)
    assert rows.min() / height == pytest.approx(10 / 40, abs=0.02)
    assert rows.max() / height == pytest.approx(1, abs=0.02)
    assert columns.max() - columns.min() == pytest.approx(15 / 30 * height * 30 / 40, rel=0.05)


RING = """v => {
  const c = v.getContext("2d"), { data, width, height } = c.getImageData(0, 0, v.width, v.height);
  let n = 0, x = 0, y = 0;
  for (let i = 0; i < width * height; i++) {
    if (data[4 * i] < 240 || data[4 * i + 1] < 240 || data[4 * i + 2] < 240) continue;
    n += 1; x += i % width; y += Math.floor(i / width);
  }
  return n ? [y / n / height, x / n / width] : null;
}"""


def _ring(page) -> list[float] | None:
    """Where the white ring is, as fractions of the picture; None where there is none."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator("canvas.view").first.evaluate(RING)


def test_the_ring_is_drawn_where_the_peak_is_said_to_be(show):
    image = np.zeros((40, 30), np.uint8)
    saliency = np.full((40, 30), 0.999)  # in 8 bits every pixel ties with the peak
    saliency[30, 20] = 1
    brain = np.zeros((40, 30), bool)
    brain[10:, 15:] = True
    page = show([Panel(image, saliency=saliency, brain=brain, peak=(30, 20))], anew=True, identity="peak")
    assert _ring(page) == pytest.approx([30.5 / 40, 20.5 / 30], abs=0.02)
    page.locator("[data-name=brainOnly]").check()
    assert _ring(page) == pytest.approx([10.5 / 40, 15.5 / 30], abs=0.02)
    page = show([Panel(image, saliency=np.zeros((40, 30)))], anew=True, identity="none")
    assert _ring(page) is None


def test_large_pictures_are_shrunk_and_read_in_their_own_pixels(show):
    image = np.zeros((4400, 3000), np.uint8)
    image[2200:] = 200
    saliency = np.zeros((4400, 3000), np.float32)
    saliency[3000:4000, 1500:2500] = 0.5
    panel = Panel(image, saliency=saliency, mask=saliency > 0, brain=saliency > 0, peak=(3500, 2000),
                  frame=(2200, 0, 2200, 3000))  # fmt: skip
    data = encode([panel, Panel(image)], key="k")
    assert len(data) < 4 * 2000 * 1400
    header, blob = decode(data)
    described = header["panels"][0]
    assert (described["shape"], described["size"]) == ([1, 2000, 1364], [4400, 3000])
    pixels = np.frombuffer(blob, "u1", 2000 * 1364, described["image"]).reshape(2000, 1364)
    assert (pixels[:1000] == 0).all()
    assert (pixels[1000:] == 200).all()
    page = show([panel], anew=True, identity="large")
    assert _ring(page) is not None
    view = page.locator("canvas.view").first
    box = view.bounding_box()
    view.hover(position={"x": box["width"] / 2, "y": 0.8 * box["height"]})
    text = page.locator(".probe").first.inner_text()
    row, column = (int(part.split()[-1]) for part in text.split(" · ")[0].split(","))
    assert abs(row - 0.8 * 4400) < 40
    assert abs(column - 1500) < 40
    assert "image 200" in text
    assert "map 0.50" in text
    assert all(side <= 2000 for side in _sent((7000, 40)))
    stack = (np.arange(2 * 4000 * 20).reshape(2, 4000, 20) % 1000).astype(np.int16)
    assert _shrunk(stack, np.int16).shape == (2, 2000, 10)


def test_a_tap_and_a_key_read_values(show):
    page = show([_map(0)], anew=True, identity="read")
    readout = page.locator(".probe").first
    view = page.locator("canvas.view").first
    view.focus()
    assert readout.inner_text() == ""
    page.keyboard.press("+")
    _zoomed(page)
    assert readout.inner_text().startswith("row 20, column 15 · image ")
    page.keyboard.press("ArrowRight")
    _zoomed(page)
    assert readout.inner_text().startswith("row 20, column 16 · ")
    touch = """(v, moves) => {
      const box = v.getBoundingClientRect();
      const send = (type, [x, y]) => v.dispatchEvent(new PointerEvent(type, {
        pointerId: 7, pointerType: "touch", isPrimary: true, bubbles: true,
        clientX: box.left + x * box.width, clientY: box.top + y * box.height,
      }));
      v.setPointerCapture = () => {};
      send("pointerdown", moves[0]);
      for (const move of moves.slice(1)) send("pointermove", move);
      send("pointerup", moves[moves.length - 1]);
      send("pointerleave", moves[moves.length - 1]);
    }"""
    page.keyboard.press("0")
    view.evaluate(touch, [[0.5, 0.25]])
    _zoomed(page)
    tapped = readout.inner_text()
    assert tapped.startswith("row 10, column 15 · image ")
    view.evaluate(touch, [[0.5, 0.75], [0.2, 0.6]])  # a drag moves the picture and reads nothing anew
    _zoomed(page)
    assert readout.inner_text() == tapped


@pytest.mark.parametrize("vision", MACHADO)
@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_colour_maps_rise_in_lightness_for_every_kind_of_colour_vision(name, vision):
    srgb = colour_table(name) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(MACHADO[vision]).T, 0, 1)
    seen = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lightness = _lightness(seen)
    assert (np.diff(lightness[::8]) > 0).all()
    assert lightness[-1] - lightness[0] > 50


def test_overlay_leaves_the_image_alone_where_there_is_no_evidence():
    pixels = np.full((4, 4), 100, np.uint8)
    saliency = np.zeros((4, 4), np.float32)
    saliency[0, 0] = 1
    picture = overlay(pixels, saliency, threshold=0)
    assert (picture[1:] == 100).all()
    assert (picture[0, 0] != 100).any()
