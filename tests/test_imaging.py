"""Decoding what users bring: the sensible correctly, the rest refused in one line, in bounded memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from brainmri.errors import BrainMRIError, InvalidImageError
from brainmri.imaging import (
    COLOUR_LIMIT,
    MIN_SIDE,
    blank_notes,
    decode_image,
    is_blank,
    picture_reason,
    preprocess,
    stretch_to_uint8,
)
from brainmri.synthetic import samples
from brainmri.types import CropTransform

PICTURE = np.add.outer(np.arange(40), np.arange(0, 120, 2)).astype(np.uint8)  # 40 x 60, no symmetry


def encode(image, file_format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, file_format, **options)
    return buffer.getvalue()


# --- decoded correctly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_grey_comes_back_exactly(file_format):
    decoded = decode_image(encode(PICTURE, file_format), "a")
    np.testing.assert_array_equal(decoded.pixels, PICTURE)
    assert decoded.source_format == file_format
    assert not decoded.pixels.flags.writeable


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_grey_comes_back_nearly(file_format):
    decoded = decode_image(encode(PICTURE, file_format, quality=95), "a").pixels
    assert np.abs(decoded.astype(int) - PICTURE).max() <= 6


def test_name_says_nothing_about_the_content():
    decoded = decode_image(encode(PICTURE, "PNG"), "wrong.jpg")
    assert decoded.source_format == "PNG"
    np.testing.assert_array_equal(decoded.pixels, PICTURE)


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\scans\\passwd", "/abs/passwd"])
def test_only_the_last_part_of_a_path_is_kept(name):
    assert decode_image(encode(PICTURE), name).name == "passwd"


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (100, 4095), (1000, 1255)])
def test_16_bit_is_stretched_linearly(low, high):
    wide = np.linspace(low, high, PICTURE.size).reshape(PICTURE.shape).astype(np.uint16)
    decoded = decode_image(encode(wide), "a")
    expected = np.rint((wide.astype(float) - wide.min()) * 255 / (wide.max() - wide.min()))
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert "16-bit data" in decoded.notes[0]


def test_32_bit_says_so():
    decoded = decode_image(encode(Image.fromarray(PICTURE.astype(np.int32) * 1000 - 5000), "TIFF"), "a")
    assert np.abs(decoded.pixels - np.rint(PICTURE / PICTURE.max() * 255)).max() <= 1
    assert decoded.notes == ("32-bit data stretched to 0-255",)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_zero_is_white_comes_the_right_way_up(dtype):
    top = 255 if dtype == np.uint8 else 65535
    values = (top - PICTURE.astype(np.float64) * (top // 255)).astype(dtype)
    content = bytearray(encode(Image.fromarray(values), "TIFF"))
    (first,) = struct.unpack_from("<I", content, 4)
    for entry in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", content, first)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] == 262:  # PhotometricInterpretation
            struct.pack_into("<H", content, entry + 8, 0)
    decoded = decode_image(bytes(content), "a").pixels
    expected = PICTURE if dtype == np.uint8 else PICTURE * (255 / PICTURE.max())
    assert np.abs(decoded - expected).max() <= 1


def test_float_tiff_is_stretched_and_bad_values_do_not_matter():
    values = np.linspace(-1, 1, PICTURE.size, dtype=np.float32).reshape(PICTURE.shape)
    values[3, 3] = np.nan
    decoded = decode_image(encode(Image.fromarray(values), "TIFF"), "a").pixels
    assert decoded.min() == 0
    assert decoded.max() == 255


def test_a_line_is_refused():
    with pytest.raises(InvalidImageError, match="400 x 16 pixels, one side is over 20 times the other"):
        decode_image(encode(np.zeros((16, 400), np.uint8)), "a")
    assert decode_image(encode(np.zeros((20, 400), np.uint8)), "a").pixels.shape == (20, 400)


def test_a_long_picture_whose_square_would_fill_the_memory_is_refused():
    content = encode(np.zeros((100, 2000), np.uint8))
    assert decode_image(content, "a", max_pixels=2_000_000).pixels.shape == (100, 2000)
    with pytest.raises(InvalidImageError, match=r"2000 x 100 pixels, the limit for the longer side is 1,999"):
        decode_image(content, "a", max_pixels=1_999_000)


def test_cielab_is_refused_by_its_name():
    flat = Image.new("L", (60, 40), 128)
    content = encode(Image.merge("LAB", [Image.fromarray(PICTURE), flat, flat]), "TIFF")
    with pytest.raises(InvalidImageError, match="a: colours in CIELAB are not read; save it in grey or RGB"):
        decode_image(content, "a")


def test_cmyk_becomes_its_luminance():
    colour = Image.merge("RGB", [Image.fromarray(PICTURE)] * 3)
    decoded = decode_image(encode(colour.convert("CMYK"), "TIFF"), "a").pixels
    assert np.abs(decoded.astype(int) - PICTURE).max() <= 2
    jpeg = decode_image(encode(colour.convert("CMYK"), "JPEG", quality=95), "a").pixels
    assert np.abs(jpeg.astype(int) - PICTURE).max() <= 8


def test_palette_is_looked_up():
    image = Image.fromarray(255 - PICTURE, "L").convert("P")
    image.putpalette([255 - i // 3 for i in range(768)])
    decoded = decode_image(encode(image), "a").pixels
    np.testing.assert_array_equal(decoded, PICTURE)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_lies_on_black(mode):
    image = Image.fromarray(np.full((40, 60), 200, np.uint8)).convert(mode)
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    image.putalpha(Image.fromarray(alpha))
    decoded = decode_image(encode(image), "a").pixels
    assert (decoded[:, :30] == 0).all()
    assert (decoded[:, 30:] == 200).all()


def test_transparent_palette_colour_lies_on_black():
    image = Image.fromarray(np.where(np.arange(60) < 30, 0, 1).astype(np.uint8)[None].repeat(40, 0), "P")
    image.putpalette([255, 255, 255, 90, 90, 90])
    decoded = decode_image(encode(image, transparency=0), "a").pixels
    assert (decoded[:, :30] == 0).all()
    assert (decoded[:, 30:] == 90).all()


def painted(share: float, size: int = 200) -> Image.Image:
    """A grey picture whose lower rows are orange."""
    pixels = np.repeat(np.random.default_rng(0).integers(0, 256, (size, size, 1), np.uint8), 3, axis=2)
    pixels[size - round(share * size) :] = (230, 120, 20)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
@pytest.mark.parametrize(("mode", "file_format"), [("RGB", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("RGB", "JPEG")])
def test_coloured_pixels_are_counted(share, mode, file_format):
    decoded = decode_image(encode(painted(share).convert(mode), file_format), "a")
    if mode == "P":  # few palette entries are left for the greys, and they take on a tint
        assert decoded.colour_share >= share
    else:
        assert decoded.colour_share == pytest.approx(share, abs=0.02)
        assert (picture_reason(decoded.notes) is None) == (share <= COLOUR_LIMIT)


def test_a_picture_in_colour_says_so():
    decoded = decode_image(encode(painted(0.3)), "a")
    assert decoded.notes == ("the picture is in colour (30% of its pixels)",)
    assert picture_reason(decoded.notes) == "The picture is in colour (30% of its pixels), and brain MRI is grey"
    np.testing.assert_array_equal(decoded.pixels, np.asarray(painted(0.3).convert("L")))


def test_what_is_transparent_has_no_colour():
    image = painted(1.0).convert("RGBA")
    image.putalpha(Image.fromarray(np.zeros((200, 200), np.uint8)))
    assert decode_image(encode(image), "a").colour_share == 0


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGB", "RGBA", "I;16"])
def test_grey_has_no_colour_whatever_the_file_calls_it(mode):
    grey = Image.fromarray(PICTURE)
    if mode == "I;16":
        image = Image.fromarray(PICTURE.astype(np.uint16) * 200)
    elif mode == "P":
        image = Image.fromarray(PICTURE).convert("P")
        image.putpalette([i // 3 for i in range(768)])
    else:
        image = grey.convert(mode)
    decoded = decode_image(encode(image, transparency=3) if mode == "P" else encode(image), "a")
    assert decoded.colour_share == 0
    assert picture_reason(decoded.notes) is None


@pytest.mark.parametrize("quality", [10, 50, 95])
def test_chroma_noise_of_a_jpeg_is_no_colour(quality):
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (200, 200, 1)), 3, axis=2) + rng.integers(-4, 5, 3)
    image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    assert decode_image(encode(image, "JPEG", quality=quality), "a").colour_share == 0


def test_one_bit_is_black_and_white():
    decoded = decode_image(encode(Image.fromarray(PICTURE > 80)), "a").pixels
    assert set(np.unique(decoded)) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation):
    turns = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, -1),
    }  # how the camera stored an upright picture  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turns[orientation](PICTURE))
    np.testing.assert_array_equal(decode_image(encode(stored, "PNG", exif=exif), "a").pixels, PICTURE)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken_and_said(file_format):
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    content = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless)
    decoded = decode_image(content, "a")
    np.testing.assert_array_equal(decoded.pixels, PICTURE)
    assert decoded.notes == ("first of several frames",)
    assert decode_image(encode(frames[0], file_format, **lossless), "a").notes == ()


@pytest.mark.parametrize("file_format", ["TIFF", "GIF"])
def test_frames_are_not_counted(file_format):
    """A small file can hold tens of thousands: Pillow walks through them all, for TIFF in quadratic time."""
    content, many = encode(PICTURE, file_format), 20_000
    if file_format == "TIFF":
        content += bytes(len(content) % 2)
        (first,) = struct.unpack_from("<I", content, 4)
        length = 2 + 12 * struct.unpack_from("<H", content, first)[0]  # of a directory without the pointer to the next
        directory, start = content[first : first + length], len(content)
        content = content[: first + length] + struct.pack("<I", start) + content[first + length + 4 :]
        content += b"".join(directory + struct.pack("<I", start + (i + 1) * (length + 4)) for i in range(many))
    else:
        content = content[:-1] + (b"," + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0") * many + b";"
    start = time.perf_counter()
    assert decode_image(content, "a").notes == ("first of several frames",)
    assert time.perf_counter() - start < 1


# --- refused in one line -------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A black PNG of side x side pixels in a few hundred kilobytes."""
    packer, rows = zlib.compressobj(9), bytearray()
    for _ in range(side):
        rows += packer.compress(bytes(side + 1))
    rows += packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(rows)) + chunk(b"IEND", b"")


def _torn_exif() -> bytes:
    """Turned by a quarter, with a width in letters: Pillow reads it and cannot write it again."""
    entries = struct.pack("<HHI4s", 0x0100, 2, 2, b"ab") + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


REFUSED = {
    "zero bytes": (lambda: b"", "0 bytes"),
    "text": (lambda: b"hello, world\n" * 100, "not an image"),
    "a program": (lambda: b"\x7fELF" + bytes(500), "not an image"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "pdf": (lambda: b"%PDF-1.7\n" + bytes(100), "not an image"),
    "a format that is not accepted": (lambda: encode(PICTURE, "PPM"), "not an image"),
    "postscript": (lambda: encode(PICTURE, "EPS"), "not an image"),
    "1 x 1": (lambda: encode(PICTURE[:1, :1]), "1 x 1 pixels"),
    "a line": (lambda: encode(PICTURE[:1]), "60 x 1 pixels"),
    "cut PNG": (lambda: encode(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))[:9000], "damaged"),
    "cut JPEG": (lambda: encode(PICTURE, "JPEG")[:-300], "damaged"),
    "JPEG with a torn EXIF": (lambda: encode(PICTURE, "JPEG", exif=_torn_exif()), "damaged"),
    "cut TIFF": (lambda: encode(PICTURE, "TIFF")[:1200], "damaged"),
    "cut header": (lambda: encode(PICTURE)[:20], "image"),
    "signature only": (lambda: encode(PICTURE)[:8], "image"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line_that_says_what_came_and_what_is_accepted(kind):
    make, expected = REFUSED[kind]
    with pytest.raises(InvalidImageError, match=expected) as caught:
        decode_image(make(), "scan.png")
    message = str(caught.value)
    assert message.startswith("scan.png: ")
    assert "\n" not in message
    assert "accepted" in message or "needed" in message


def test_over_20_mb_names_the_setting():
    with pytest.raises(InvalidImageError, match=r"21\.0 MB, the limit is 20 MB \(uploads\.max_size_mb\)"):
        decode_image(bytes(21_000_000), "a.png")


def test_too_many_pixels_are_refused_before_they_are_decoded():
    content = bomb(20_000)
    assert len(content) < 1_000_000
    with pytest.raises(InvalidImageError, match=r"400000000 pixels, the limit is 50,000,000"):
        decode_image(content, "a.png")


def test_pixel_limit_is_exact():
    content = encode(PICTURE)
    assert decode_image(content, "a", max_pixels=2400).pixels.size == 2400
    with pytest.raises(InvalidImageError, match="limit is 2,399 pixels"):
        decode_image(content, "a", max_pixels=2399)


MEMORY = """
import re, sys
sys.path[:0] = [{tests!r}]
import io
import numpy as np
from PIL import Image
from test_imaging import bomb
from brainmri.config import load_settings
from brainmri.errors import BrainMRIError
from brainmri.imaging import preprocess
from brainmri.pipeline import read_slices
# Of this program alone: ru_maxrss would begin at what the test runner held when it started us.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
settings = load_settings()
try:
    read_slices(bomb(20_000), "bomb.png", settings)
    sys.exit("the bomb was decoded")
except BrainMRIError as error:
    print(error)
# The worst that is let in: just under the limit, colour, transparency, palette, 16 bit, rotated.
side = int(settings.uploads.max_pixels ** 0.5)
exif = Image.Exif(); exif[0x0112] = 6
for mode, extra in (("L", dict(exif=exif)), ("RGBA", {{}}), ("P", dict(transparency=0)), ("I;16", {{}})):
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, "PNG", compress_level=1, **extra)
    assert buffer.tell() < 20e6
    preprocess(read_slices(buffer.getvalue(), mode, settings)[0].pixels)
    print(mode, peak() // 1_000_000, "MB")
print(peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
def test_memory_stays_under_a_gigabyte_and_a_half():
    script = MEMORY.format(tests=str(Path(__file__).resolve().parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "400000000 pixels" in done.stdout
    assert int(done.stdout.split()[-1]) < 1.5e9, done.stdout


# --- whatever comes ------------------------------------------------------------------------------------------------


def decoded_or_refused(content: bytes) -> None:
    try:
        decoded = decode_image(content, "x")
    except BrainMRIError as error:
        message = str(error)
    else:
        message = ""
        assert decoded.pixels.dtype == np.uint8
        assert decoded.pixels.ndim == 2
        assert min(decoded.pixels.shape) >= MIN_SIDE
        network_input, _ = preprocess(decoded.pixels)
        assert network_input.shape == (128, 128)
        assert np.isfinite(network_input).all()
    assert "\n" not in message


QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.binary(max_size=400))
def test_any_bytes_are_decoded_or_refused(content):
    decoded_or_refused(content)


FILES = {f: encode(PICTURE, f) for f in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")}


@QUICK
@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_damage_is_decoded_or_refused(file_format, data):
    content = bytearray(FILES[file_format])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_refused(bytes(content[: data.draw(st.integers(0, len(content)))]))


@QUICK
@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_damage_to_a_whole_file_is_decoded_or_refused(file_format, data):
    content = bytearray(FILES[file_format])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_refused(bytes(content))


@QUICK
@given(hnp.arrays(np.uint8, st.tuples(st.integers(MIN_SIDE, 90), st.integers(MIN_SIDE, 90))))
def test_any_picture_survives_png_and_is_not_written_to(pixels):
    before = pixels.copy()
    np.testing.assert_array_equal(decode_image(encode(pixels), "a").pixels, before)
    network_input, transform = preprocess(pixels)
    np.testing.assert_array_equal(pixels, before)
    assert network_input.dtype == np.float32
    assert network_input.min() >= 0
    assert network_input.max() <= 1
    assert transform.side >= 1


@QUICK
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
    )
)
def test_stretch_stays_in_range_and_keeps_the_order(values):
    stretched = stretch_to_uint8(values.astype(np.float32)).ravel().astype(int)
    order = np.argsort(np.nan_to_num(values.astype(np.float32).ravel(), posinf=3e38, neginf=-3e38), kind="stable")
    finite = np.isfinite(values.astype(np.float32).ravel()[order])
    assert (np.diff(stretched[order][finite]) >= 0).all()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((40, 40), np.float32), np.zeros((40, 40, 3), np.uint8), np.zeros((4, 40), np.uint8), [[0]], None],
)
def test_preprocess_refuses_what_is_no_slice(wrong):
    with pytest.raises(InvalidImageError, match="expected"):
        preprocess(wrong)


def _noise(scale: float, side: int) -> np.ndarray:
    """Air in a magnitude picture."""
    return np.hypot(*np.random.default_rng(0).normal(0, scale, (2, side, side))).astype(np.uint8)


BLANK = {
    "black": np.zeros((64, 80), np.uint8),
    "grey": np.full((64, 80), 100, np.uint8),
    "white": np.full((64, 80), 255, np.uint8),
    "nearly black": np.tile(np.arange(4, dtype=np.uint8), (64, 20)),
    "a few bright pixels": np.pad(np.full((4, 4), 255, np.uint8), 100),
    "air": _noise(3, 256),
    "louder air": _noise(6, 512),
}


@pytest.mark.parametrize("kind", BLANK)
def test_nothing_to_see_is_blank(kind):
    pixels = BLANK[kind]
    view, _ = preprocess(pixels)
    assert is_blank(pixels, view)
    assert picture_reason(blank_notes(pixels, view)) == "The picture is blank or nearly so, with no head to be seen"


def test_little_to_see_is_not_blank():
    rows, columns = np.mgrid[:256, :256]
    tip = np.hypot(rows - 90, columns - 140)  # of a head, 3 cm wide in 24
    rim = np.where(tip < 16, 90 + 40 * np.cos(tip / 4), _noise(2, 256)).astype(np.uint8)
    for pixels in (rim, samples()["notumor"].slice.pixels, samples()["notumor"].slice.pixels // 8):
        view, _ = preprocess(pixels)
        assert blank_notes(pixels, view) == ()


@pytest.mark.parametrize("spacing", [None, (0.5, 0.5), (0.9375, 0.93751), (0.5, 0.509)])
def test_square_pixels_are_seen_as_without_spacing(spacing):
    pixels = samples()["glioma"].slice.pixels
    plain, transform = preprocess(pixels)
    view, same = preprocess(pixels, spacing_mm=spacing)
    np.testing.assert_array_equal(view, plain)
    assert (same, same.columns, same.shape) == (transform, 0, (transform.side, transform.side))


ASPECTS = [(1, 1.5), (1, 2), (1.5, 1), (2, 1), (1, 1.05)]


def squashed(pixels: np.ndarray, by: tuple[float, float]) -> np.ndarray:
    """A picture of pixels that are so many times as high and wide."""
    height, width = pixels.shape
    return np.asarray(
        Image.fromarray(pixels).resize((round(width / by[1]), round(height / by[0])), Image.Resampling.BOX)
    )


@pytest.mark.parametrize("by", ASPECTS)
@pytest.mark.parametrize("label", ["glioma", "pituitary"])
def test_pixels_that_are_not_square_give_the_view_of_the_square_original(label, by):
    sample = samples()[label]
    plain, whole = preprocess(sample.slice.pixels)
    given = squashed(sample.slice.pixels, by)
    view, transform = preprocess(given, spacing_mm=(0.5 * by[0], 0.5 * by[1]))
    off, off_without = (np.abs(v - plain).mean() for v in (view, preprocess(given)[0]))
    assert off < 0.4 * off_without  # what is left: the box may be a pixel of its 128 wider or narrower
    again = np.array([transform.top * by[0], transform.left * by[1], *np.multiply(transform.shape, by)])
    np.testing.assert_allclose(again, [whole.top, whole.left, *whole.shape], atol=8)  # the box is found on 4 x 4 pixels
    mask = squashed(sample.mask.astype(np.uint8) * 255, by) > 127  # an expert's outline goes the same way
    seen, expected = (
        np.asarray(Image.fromarray(t.to_network(m).astype(np.uint8) * 255).resize((128, 128))) > 127
        for t, m in ((transform, mask), (whole, sample.mask))
    )
    assert (seen & expected).sum() / (seen | expected).sum() > 0.85


def test_a_crop_of_an_earlier_version_is_square():
    old = CropTransform(**{"top": -2, "left": 1, "side": 60, "network_size": 128})
    assert old.shape == (60, 60)
    assert old.to_network(np.ones((64, 64), np.uint8)).shape == (60, 60)


def test_fast_filters_are_scipys_and_numpys_to_the_last_bit():
    from scipy import ndimage

    from brainmri import imaging

    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = tuple(rng.integers(8, 129, 2))
        image = rng.integers(0, 256, shape).astype(np.float32)
        mask = rng.random(shape) < rng.uniform(0.3, 0.95)
        np.testing.assert_array_equal(imaging._smooth(image), ndimage.uniform_filter(image, 3))
        np.testing.assert_array_equal(imaging._open(mask), ndimage.binary_opening(mask, iterations=2))
        values = np.sort((rng.random(int(rng.integers(2, 3000))) * 255).astype(np.float32))
        for q in (2, 10):
            assert imaging._percentile(values, q) == np.percentile(values, q)
        expected = np.percentile(values, (1, 99.5))
        assert [imaging._percentile(values, q, np.float64) for q in (1, 99.5)] == expected.tolist()
