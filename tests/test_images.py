import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.images import (
    ImageError,
    find_files,
    is_grey,
    printable,
    read_folder,
    read_image,
    spreadsheet_safe,
    to_grey,
)

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(image, form, **settings):
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "TGA", "QOI", "GIF", "JPEG", "WEBP"])
def test_formats_give_their_pixels(tmp_path, form):
    image = Image.fromarray(PIXELS // 64 * 64)
    settings = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    path = tmp_path / "image"
    path.write_bytes(encoded(image, form, **settings.get(form, {})))
    found = read_image(path, 32).astype(int)
    assert np.abs(found - (PIXELS // 64 * 64)).max() <= (4 if form == "JPEG" else 0)


def test_modes_become_rgb(tmp_path):
    def read(image, form="PNG"):
        path = tmp_path / "image"
        path.write_bytes(encoded(image, form))
        return read_image(path, 32)

    grey = PIXELS[..., 0]
    three = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read(Image.fromarray(grey)), three)
    sixteen = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(read(Image.fromarray(sixteen)), three)
    np.testing.assert_array_equal(read(Image.fromarray(sixteen), "PPM"), three)
    bilevel = Image.fromarray(grey).convert("1")
    np.testing.assert_array_equal(read(bilevel)[..., 0], np.asarray(bilevel) * 255)
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(read(palette), np.asarray(palette.convert("RGB")))
    # what is transparent is white, whatever colour it hides
    alpha = np.where(np.arange(32) < 16, 0, 255).astype(np.uint8)[None].repeat(32, 0)
    found = read(Image.fromarray(np.dstack([PIXELS, alpha])))
    assert (found[:, :16] == 255).all()
    np.testing.assert_array_equal(found[:, 16:], PIXELS[:, 16:])
    for pixels in (np.ones((8, 8), np.float32), np.full((8, 8), 70_000, np.int32)):
        with pytest.raises(ImageError, match="8 or 16 bits"):
            read(Image.fromarray(pixels), "TIFF")


def test_the_camera_turned_on_its_side_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    Image.fromarray(PIXELS).save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 32), np.rot90(PIXELS, -1))


def test_the_central_square_is_resized_by_area(tmp_path):
    large = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "image.png")
    blocks = large[:, 16:80].reshape(32, 2, 32, 2, 3).mean((1, 3))
    np.testing.assert_allclose(read_image(tmp_path / "image.png", 32), blocks, rtol=0, atol=1)


def test_extreme_shapes_cost_no_memory(tmp_path):
    Image.new("L", (1_000_000, 1), 77).save(tmp_path / "line.png")
    assert (read_image(tmp_path / "line.png", 32) == 77).all()
    Image.new("L", (1, 1), 77).save(tmp_path / "dot.png")
    assert (read_image(tmp_path / "dot.png", 32) == 77).all()


def png_of(width, height):
    """A PNG file that announces so many pixels and holds none."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    with pytest.raises(ImageError, match=r"more than \d+ pixels|no image format"):
        read_image(tmp_path / "bomb.png", 32)
    assert Image.MAX_IMAGE_PIXELS < 90_000_000


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "image.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with Image.open(tmp_path / "image.eps") as image:
        assert image.format == "EPS"
    with pytest.raises(ImageError, match="no image format"):
        read_image(tmp_path / "image.eps", 32)


def test_a_folder_is_read_in_order_and_says_what_it_skipped(tmp_path):
    whole = encoded(Image.fromarray(PIXELS), "PNG")
    for name in ("b.png", "a/z.jpg", "a/b/no-suffix", ".hidden.png", ".git/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    folder = read_folder(tmp_path, 16, verbose=0)
    names = [str(path.relative_to(tmp_path)) for path in folder.paths]
    assert names == ["b.png", "a/z.jpg", "a/b/no-suffix"]
    assert folder.images.shape == (3, 16, 16, 3) and folder.images.dtype == np.uint8
    np.testing.assert_array_equal(folder.images[0], folder.images[2])
    reasons = {path.name: reason for path, reason in folder.skipped}
    assert reasons.keys() == {"empty.png", "half.png", "notes.txt"}
    assert reasons["empty.png"] == "the file is empty"
    assert "truncated" in reasons["half.png"].lower()
    assert reasons["notes.txt"] == "no image format that Pillow knows"


def test_no_image_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="is no folder"):
        find_files(tmp_path / "none")
    with pytest.raises(ImageError, match="no readable image"):
        read_folder(tmp_path, 16, verbose=0)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"no readable image\n  .*x.png: no image format"):
        read_folder(tmp_path, 16, verbose=0)


WHOLE_FILES = [
    encoded(Image.fromarray(PIXELS), form)
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI")
]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_give_an_image_or_an_image_error(data, tmp_path_factory):
    """Random bytes, and real files that are cut, or have bytes changed."""
    content = data.draw(st.sampled_from([b"", *WHOLE_FILES]))
    content = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 8)) if content else 0):
        position = data.draw(st.integers(0, min(200, len(content) - 1)))
        content[position] = data.draw(st.integers(0, 255))
    content += data.draw(st.binary(max_size=60))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        assert read_image(path, 16).shape == (16, 16, 3)
    except ImageError as error:
        assert str(error)


def test_grey_is_luma_and_grey_images_keep_their_values():
    x = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in x]
    np.testing.assert_array_equal(to_grey(x)[..., 0], expected)
    grey = np.repeat(x[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(to_grey(grey), grey[..., :1])
    assert is_grey(grey) and not is_grey(x)


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40
)


@given(names)
def test_any_name_is_safe_in_a_terminal_and_a_spreadsheet(name):
    assert printable(name).isprintable()
    cell = spreadsheet_safe(name)
    assert cell in (name, f"./{name}")
    assert not re.match("[=+\\-@\t\r\n ;|%\uff1d\uff0b\uff0d\uff20]", cell)


def test_names_that_are_formulas_or_no_utf8():
    for name in ("=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1"):
        assert spreadsheet_safe(name) == "./" + name
    for name in ("a.png", "../=a.png", "/=a.png", "größe.png", "C:\\a.png"):
        assert spreadsheet_safe(name) == name
    assert spreadsheet_safe(os.fsdecode(b"\xff=.png")) == r"./\xff=.png"[2:]
    assert printable(os.fsdecode(b"a\xff.png")) == r"a\xff.png"
    assert printable("a\x1b[31m\u202egnp") == r"a\x1b[31m\u202egnp"
