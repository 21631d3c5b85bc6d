import io
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, TiffImagePlugin

from utils import images
from utils.folders import find_files, listed, read_folder
from utils.images import (
    ImageError,
    is_grey,
    printable,
    read_image,
    spreadsheet_safe,
    to_grey,
)

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
PIXELS[0, :2] = [[0] * 3, [255] * 3]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
    for pixels in (np.ones((8, 8), np.float32), np.full((8, 8), -1, np.int32)):
        with pytest.raises(ImageError, match="no known range; save it with 8 or 16 bits"):
            read(Image.fromarray(pixels), "TIFF")


def png(pixels, significant=None):
    """A 16-bit PNG of pixels (h, w) or (h, w, 3), with the number of significant bits stated."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, 2 if channels == 3 else 0, 0, 0, 0)
    stated = b"" if significant is None else chunk(b"sBIT", bytes([significant] * channels))
    return (
        PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + stated
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(pixels, **settings):
    return encoded(Image.fromarray(pixels), "TIFF", **settings)


def planar_tiff(pixels):
    """An uncompressed TIFF of pixels (h, w, 3) whose colours lie one after another."""
    planes = [np.ascontiguousarray(plane).tobytes() for plane in np.moveaxis(pixels, -1, 0)]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258] = pixels.shape[1], pixels.shape[0], (8 * pixels.itemsize,) * 3
    tags[259], tags[262], tags[277], tags[278], tags[284] = 1, 2, 3, pixels.shape[0], 2
    tags[273] = tags[279] = (len(planes[0]),) * 3
    length = len(tags.tobytes()) + 8
    # Pillow adds to these where the pixels begin, behind the tags
    tags[273] = tuple(i * len(planes[0]) for i in range(3))
    file = io.BytesIO()
    tags.save(file)
    assert file.tell() == length
    return file.getvalue() + b"".join(planes)


def pgm(pixels, maximum):
    head = f"P5 {pixels.shape[1]} {pixels.shape[0]} {maximum}\n".encode()
    return head + pixels.astype(">u2").tobytes()


DEEP_FORMATS = {
    "PNG": lambda pixels, bits: png(pixels),
    "PNG that states": lambda pixels, bits: png(pixels, bits),
    "TIFF": lambda pixels, bits: tiff(pixels.astype(np.uint16)),
    "TIFF that states": lambda pixels, bits: tiff(
        pixels.astype(np.uint16), tiffinfo={341: 2**bits - 1}
    ),
    "TIFF, packed": lambda pixels, bits: tiff(pixels.astype(np.uint16), compression="tiff_lzw"),
    "TIFF of 32 bits": lambda pixels, bits: tiff(pixels.astype(np.int32)),
    "PGM": lambda pixels, bits: pgm(pixels, 65535),
    "PGM that states": lambda pixels, bits: pgm(pixels, max(2**bits - 1, 256)),
}


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", DEEP_FORMATS)
def test_fewer_bits_than_the_file_stores_keep_their_grey_levels(tmp_path, form, bits):
    """Pixels of so many bits: a bright and a dark image, of which one alone would not tell."""
    grey = PIXELS[..., 0].astype(int)
    white = 2**bits - 1
    bright, dark = grey * white // 255, grey * white // 255 // 5
    for name, pixels in (("bright", bright), ("dark", dark)):
        (tmp_path / name).write_bytes(DEEP_FORMATS[form](pixels, bits))
    folder = read_folder(tmp_path, 32, verbose=0)
    assert folder.white == (256 if form == "PGM that states" and bits == 8 else white)
    assert folder.clipped == 0 and not folder.skipped
    for found, pixels in zip(folder.images, (bright, dark), strict=True):
        np.testing.assert_allclose(found[..., 0], pixels * (255 / folder.white), rtol=0, atol=0.51)
        assert (found == found[..., :1]).all()
    # what says how bright white is says so of a single image, too
    if "states" in form and (form, bits) != ("PGM that states", 16):  # 65535 is any 16-bit PGM's
        np.testing.assert_array_equal(read_image(tmp_path / "dark", 32), folder.images[1])


def test_white_may_be_given_and_clips(tmp_path):
    pixels = np.arange(1024).reshape(32, 32)
    (tmp_path / "a.png").write_bytes(png(pixels))
    folder = read_folder(tmp_path, 32, white=511, verbose=0)
    assert (folder.white, folder.clipped) == (511, 1)
    assert (folder.images[0][16:] == 255).all()
    np.testing.assert_allclose(
        folder.images[0][:16, :, 0], pixels[:16] * (255 / 511), rtol=0, atol=0.51
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 32, white=511), folder.images[0])
    assert read_folder(tmp_path, 32, white=65535, verbose=0).images.max() == 4


def test_8_bits_beside_deeper_images_keep_their_values(tmp_path):
    grey = PIXELS[..., 0]
    (tmp_path / "deep.png").write_bytes(png(grey.astype(int) * 16))
    Image.fromarray(grey // 2).save(tmp_path / "eight.png")
    folder = read_folder(tmp_path, 32, verbose=0)
    assert folder.white == 4095
    np.testing.assert_array_equal(folder.images[1][..., 0], grey // 2)
    (tmp_path / "deep.png").unlink()
    assert read_folder(tmp_path, 32, verbose=0).white is None


def test_a_png_that_follows_the_standard_is_stretched_already(tmp_path):
    """12 significant bits, in all 16."""
    (tmp_path / "a.png").write_bytes(png(np.full((8, 8), 30_000), 12))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8), round(30_000 / 65535 * 255))
    (tmp_path / "a.png").write_bytes(png(np.full((8, 8), 3_000), 12))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8), round(3_000 / 4095 * 255))


def test_more_significant_bits_than_there_are_mean_all(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.full((8, 8), 30_000), 200))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8), round(30_000 / 65535 * 255))


def test_black_is_black(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((8, 8), int)))
    assert not read_image(tmp_path / "a.png", 8).any()


def test_16_bit_colours_are_read_whole(tmp_path):
    """Pillow alone gives their upper bytes."""
    pixels = RNG.integers(0, 4096, (24, 32, 3))
    (tmp_path / "a.png").write_bytes(png(pixels))
    found = read_image(tmp_path / "a.png", 24)
    expected = pixels[:, 4:28] * (255 / 4095)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.51)


def test_deep_images_are_resized_by_area(tmp_path):
    pixels = RNG.integers(0, 4096, (64, 96))
    (tmp_path / "a.png").write_bytes(png(pixels, 12))
    blocks = pixels[:, 16:80].reshape(32, 2, 32, 2).mean((1, 3)) * (255 / 4095)
    found = read_image(tmp_path / "a.png", 32)[..., 0]
    np.testing.assert_allclose(found, blocks, rtol=0, atol=0.51)


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
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    with pytest.raises(ImageError, match=r"more than \d+ pixels.*--max-pixels|no image format"):
        read_image(tmp_path / "bomb.png", 32)
    assert Image.MAX_IMAGE_PIXELS < 90_000_000


def test_the_limit_of_pixels_is_a_choice(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    assert read_folder(tmp_path, 32, max_pixels=1024, verbose=0).images.shape == (1, 32, 32, 3)
    with pytest.raises(ImageError, match=r"a\.png: more than 1023 pixels.*--max-pixels"):
        read_folder(tmp_path, 32, max_pixels=1023, verbose=0)
    (tmp_path / "bomb.png").write_bytes(png_of(10_000, 9_000))
    with pytest.raises(ImageError) as raised:  # the limit is passed, there are no pixels
        read_image(tmp_path / "bomb.png", 32, max_pixels=90_000_000)
    assert "--max-pixels" not in str(raised.value)
    assert before == Image.MAX_IMAGE_PIXELS


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
    (tmp_path / "no-folder").symlink_to("no-folder")
    folder = read_folder(tmp_path, 16, verbose=0)
    names = [str(path.relative_to(tmp_path)) for path in folder.paths]
    assert names == ["b.png", "a/z.jpg", "a/b/no-suffix"]
    assert folder.images.shape == (3, 16, 16, 3) and folder.images.dtype == np.uint8
    np.testing.assert_array_equal(folder.images[0], folder.images[2])
    reasons = {path.name: reason for path, reason in folder.skipped}
    assert reasons.pop("pipe.png") == "neither a file nor a folder"
    assert reasons.pop("gone.png") == "cannot be read: No such file or directory"
    assert "symbolic links" in reasons.pop("no-folder")
    assert reasons.keys() == {"empty.png", "half.png", "notes.txt"}
    assert reasons["empty.png"] == "the file is empty"
    assert "truncated" in reasons["half.png"].lower()
    assert reasons["notes.txt"] == "no image format that Pillow knows"


def test_links_to_folders_are_followed_once(tmp_path):
    top, other = tmp_path / "above" / "top", tmp_path / "other"
    for folder in (top / "a", other / "inner"):
        folder.mkdir(parents=True)
        Image.fromarray(PIXELS).save(folder / "1.png")
    Image.fromarray(PIXELS).save(tmp_path / "above" / "beside.png")
    (top / "a" / "up").symlink_to(top.parent)
    (top / "a" / "top").symlink_to("..")
    (top / "0-same").symlink_to("a")
    (top / "1-other").symlink_to(other)
    (top / "2-inner").symlink_to(other / "inner")
    (top / "file.png").symlink_to(other / "inner" / "1.png")
    (other / "back").symlink_to(top / "a")
    (other / "inner" / ".hidden").symlink_to(tmp_path)
    found, skipped = find_files(top)
    names = ["file.png", "a/1.png", "1-other/inner/1.png"]
    assert [str(path.relative_to(top)) for path in found] == names
    reasons = {str(path.relative_to(top)): reason for path, reason in skipped}
    assert reasons == {
        "0-same": f"leads back to {top / 'a'}",
        "2-inner": f"leads back to {top / '1-other' / 'inner'}",
        "a/up": f"leads back to {top.parent}",
        "a/top": f"leads back to {top}",
        "1-other/back": f"leads back to {top / 'a'}",
    }


def test_folders_that_cannot_be_read_are_listed(tmp_path, monkeypatch):
    """Whoever runs the test: the system's answer is replaced, as root may read everything."""
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / name / "1.png")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, os.strerror(13), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    folder = read_folder(tmp_path, 16, verbose=0)
    assert folder.paths == [tmp_path / "open" / "1.png"]
    assert folder.skipped == [(tmp_path / "closed", "cannot be read: Permission denied")]


@pytest.mark.parametrize(
    "name, package", [("a.HEIC", "pillow-heif"), ("a.jxl", "pillow-jxl-plugin")]
)
def test_the_package_that_reads_a_format_is_named(tmp_path, monkeypatch, name, package):
    def absent(module):
        raise ImportError(module)

    monkeypatch.setattr(images.importlib, "import_module", absent)
    monkeypatch.setattr(images.Image, "EXTENSION", {})
    images._formats.cache_clear()
    (tmp_path / name).write_bytes(b"\0\0\0\x1cftypheic")
    with pytest.raises(ImageError, match=f"pip install {package}$"):
        read_image(tmp_path / name, 16)
    images._formats.cache_clear()


def test_heic_is_read_where_its_package_is(tmp_path):
    """Also under another name, whichever is read first."""
    heif = pytest.importorskip("pillow_heif")
    image = heif.from_pillow(Image.new("RGB", (64, 64), (200, 40, 90)))
    image.save(tmp_path / "b.heic", quality=90)
    shutil.copy(tmp_path / "b.heic", tmp_path / "a.jpg")
    found = read_folder(tmp_path, 16, verbose=0).images.astype(int)
    assert len(found) == 2 and np.abs(found - [200, 40, 90]).max() <= 8


def test_plugins_are_registered_whatever_is_read_first(monkeypatch):
    asked = []
    monkeypatch.setattr(images.importlib, "import_module", lambda name: asked.append(name))
    monkeypatch.setattr(images.Image, "EXTENSION", {})
    images._formats.cache_clear()
    assert "EPS" not in images._formats() and "PNG" in images._formats()
    images._formats.cache_clear()
    assert set(asked) == {module for _, module in images.PLUGINS.values()}


def test_deep_colours_in_planes_of_their_own_are_refused(tmp_path):
    """Which Pillow decodes wrongly; those of 8 bits it decodes well."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    (tmp_path / "8.tif").write_bytes(planar_tiff(pixels))
    np.testing.assert_array_equal(read_image(tmp_path / "8.tif", 8), pixels)
    (tmp_path / "16.tif").write_bytes(planar_tiff(pixels.astype(np.uint16) * 257))
    with pytest.raises(ImageError, match="over 8 bits in planes of their own; save them interle"):
        read_image(tmp_path / "16.tif", 8)


def test_a_tiff_whose_white_is_0_is_no_negative(tmp_path):
    """Of 16 bits, as Pillow has it for 8."""
    grey = PIXELS[..., 0].astype(int) * 257
    data = bytearray(tiff((65535 - grey).astype(np.uint16)))
    offset = struct.unpack("<I", data[4:8])[0]
    for entry in range(struct.unpack("<H", data[offset : offset + 2])[0]):
        place = offset + 2 + 12 * entry
        if struct.unpack("<H", data[place : place + 2])[0] == 262:
            data[place + 8 : place + 10] = struct.pack("<H", 0)
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", None)[..., 0], PIXELS[..., 0])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("damage", ["byte", "stream"])
def test_damaged_pixels_are_no_image(tmp_path, deep, damage):
    """A changed byte, and compressed data that end too early in a file whose sums are right."""
    whole = png(DEEP, 12) if deep else encoded(Image.fromarray(PIXELS), "PNG")
    start = whole.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", whole[start - 8 : start - 4])
    data = bytearray(whole[start : start + length])
    data[length // 2] ^= 255
    if damage == "byte":
        made = whole[:start] + bytes(data) + whole[start + length :]
    else:
        cut = zlib.compress(zlib.decompress(whole[start : start + length]))[: length // 2]
        made = whole[: start - 8] + chunk(b"IDAT", cut) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(made)
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.png", 16)


def test_a_broken_plugin_leaves_other_formats_readable(tmp_path, monkeypatch):
    def broken(name):
        raise RuntimeError("built for another version")

    monkeypatch.setattr(images.importlib, "import_module", broken)
    images._formats.cache_clear()
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", None), PIXELS)
    images._formats.cache_clear()


def test_an_illegible_note_of_the_orientation_is_passed_over(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n       4\nno hexadecimal\n")
    Image.fromarray(PIXELS).save(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", None), PIXELS)


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "y" * 300 + ".png"])
def test_a_listed_name_that_no_file_can_have_is_one_file_less(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    folder = read_folder([tmp_path / name, tmp_path / "a.png"], 16, strict=False, verbose=0)
    assert folder.paths == [tmp_path / "a.png"] and len(folder.skipped) == 1
    with pytest.raises(ImageError, match="is no folder and no file"):
        find_files(tmp_path / name)


def test_a_list_from_a_closed_standard_input_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ImageError, match="standard input is closed"):
        listed(Path("-"))


def test_no_image_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="is no folder"):
        find_files(tmp_path / "none")
    with pytest.raises(ImageError, match="no readable image"):
        read_folder(tmp_path, 16, verbose=0)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"no readable image\n  .*x.png: no image format"):
        read_folder(tmp_path, 16, verbose=0)
    with pytest.raises(ImageError) as raised:
        read_folder(tmp_path / "x.png", 16, verbose=0)
    assert str(raised.value) == f"{tmp_path / 'x.png'}: no image format that Pillow knows"


DEEP = PIXELS[..., 0].astype(int) * 16
WHOLE_FILES = [
    encoded(Image.fromarray(PIXELS), form)
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI")
]
WHOLE_FILES += [png(DEEP, 12), png(PIXELS.astype(int)), pgm(DEEP, 4095), tiff(DEEP.astype("i4"))]


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
    expected = x @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(to_grey(x)[..., 0], expected, rtol=0, atol=0.51)
    grey = np.repeat(x[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(to_grey(grey), grey[..., :1])
    assert is_grey(grey) and not is_grey(x)


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40
)


@settings(deadline=None)
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


@pytest.mark.parametrize("orientation, upright", [(3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
def test_a_turned_tiff_is_turned_back(tmp_path, orientation, upright, mode, compression):
    """Also an uncompressed one, whose pixels Pillow would map into memory."""
    shape = (8, 12, len(mode)) if mode.startswith("RGB") else (8, 12)
    pixels = RNG.integers(0, 256, shape).astype("u2" if mode == "I;16" else "u1")
    pixels[0, 0], pixels[..., 3:] = 255, 255
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = orientation
    path = tmp_path / "image.tif"
    Image.fromarray(pixels).save(path, tiffinfo=tags, compression=compression)
    expected = np.rot90(pixels, upright)
    expected = expected[..., :3] if expected.ndim == 3 else expected[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(read_image(path, None, white=255), expected)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_paths_as_programs_write_them(tmp_path, encoding):
    text = "a b.png\r\n\r\nGrün/猫.png\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert listed(tmp_path / "list.txt") == ["a b.png", "Grün/猫.png"]
