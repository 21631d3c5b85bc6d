"""Images of any format, size and colour as small square ones of bytes."""

import contextlib
import functools
import importlib
import math
import os
import re
import struct
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PLUGINS = {
    ".avif": ("pillow-avif-plugin", "pillow_avif"),
    ".heic": ("pillow-heif", "pillow_heif"),
    ".heif": ("pillow-heif", "pillow_heif"),
    ".hif": ("pillow-heif", "pillow_heif"),
    ".jxl": ("pillow-jxl-plugin", "pillow_jxl"),
}
"""Optional packages, and their modules, that teach Pillow formats which it may not know itself."""

MAX_PIXELS = Image.MAX_IMAGE_PIXELS
"""About 89 million; of more, an image is taken for a decompression bomb unless allowed."""

REGIONS = ("centre", "whole", "tiles")
MAX_TILES = 64

FULL_WHITE = 0xFFFF
"""White of 16 bits."""

OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
LOWER_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBX")
    for order, other in OTHER_ORDER.items()
}
"""Of 16-bit colours, Pillow decodes the upper bytes; the lower ones where told the other order."""

BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, SMAX_SAMPLE_VALUE = 258, 262, 284, 341
"""TIFF's tags."""


class ImageError(ValueError):
    """A folder or an image that cannot be used; the message says why."""


def read_image(
    path: str | os.PathLike, side: int | None, *, white: int | None = None, square: int = 0, **how
) -> np.ndarray:
    """One of the squares of an image file as (side, side, 3) bytes, see `read_squares`.

    white: of grey or RGB integers of more than 8 bits, the value that becomes 255, as those above
    it do. None takes what the file says: the maximum of a PGM but for 65535, which is any's, a
    PNG's significant bits, a TIFF's bits or highest sample; or else the smallest 2^b - 1 that no
    pixel exceeds. Of 16-bit colours
    with transparency, or in CMYK, the upper 8 bits are taken. Raises as `read_squares`.
    """
    squares, _ = read_squares(path, side, **how)
    if isinstance(squares, Deep):
        squares = squares.to_bytes(squares.white if white is None else white)
    return numbered(squares, square)


def numbered(squares: Sequence, number: int):
    """The one of that number; ImageError where there are fewer, since the file was replaced."""
    if number >= len(squares):
        raise ImageError("it has another shape than when it was first read")
    return squares[number]


@dataclass(frozen=True)
class Deep:
    """Squares of more than 8 bits: float32 (n, side, side, 1 or 3), white, the highest pixel."""

    pixels: np.ndarray
    white: int
    highest: int

    def to_bytes(self, white: int) -> np.ndarray:
        """(n, side, side, 3) bytes."""
        scaled = np.clip(np.rint(self.pixels * (255 / white)), 0, 255).astype(np.uint8)
        return np.broadcast_to(scaled, (*scaled.shape[:-1], 3))


def read_squares(
    path: str | os.PathLike,
    side: int | None,
    *,
    max_pixels: int = MAX_PIXELS,
    region: str = "centre",
    enlarge: bool = True,
) -> tuple[np.ndarray | Deep, float]:
    """The squares of an image file, (n, side, side, 3) bytes, and the share of its pixels in them.

    With side None, all of the image at its own size, (1, h, w, 3). With enlarge False, squares of
    fewer pixels stay as small as the image's shorter side.

    They are cut by `boxes`, and resized by area averaging where they become smaller, as the paper's
    64x64 images (section 5.2), and bicubic where larger. The camera's orientation is applied,
    transparency lies on white, and of an animation the first frame is taken.

    Raises ImageError for what Pillow cannot read, for integers below 0 and floating-point numbers,
    whose range is unknown, and for more than max_pixels pixels.
    """
    try:
        if not os.path.getsize(path):
            raise ImageError("the file is empty")
        with _pixel_limit(max_pixels), _opened(path) as opened:
            pixels, stated = _deep_pixels(opened, path)
            if pixels is None:
                size = opened.size
                if side is None or not opened.draft(None, (4 * side, 4 * side)):
                    size = None  # but a large JPEG is decoded at a fraction
                image = _to_rgb(_upright(opened))
                if size and image.size != opened.size:  # turned upright
                    size = size[::-1]
                return _cut(image, side, region, enlarge, size)
            highest = int(pixels.max())
            white = max(1, stated if highest <= stated else (1 << highest.bit_length()) - 1)
            channels = [Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(pixels, -1, 0)]
            cut, used = zip(*(_cut(c, side, region, enlarge) for c in channels), strict=True)
            return Deep(np.stack(cut, axis=-1), white, highest), used[0]
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ImageError(_reason(error, path, max_pixels)) from error


def boxes(width: int, height: int, region: str) -> list[tuple[float, float, float, float]]:
    """What of an image is used, as (left, top, right, bottom).

    region: "centre", the largest square at the centre; "whole", all of it, squeezed to a square;
    "tiles", squares as large that cover the image and overlap by a quarter of a side or more.
    Raises ImageError where these would be over MAX_TILES.
    """
    if region == "whole":
        return [(0, 0, width, height)]
    short, long = sorted((width, height))
    n = 1 if region == "centre" else 1 + math.ceil((long - short) / (0.75 * short))
    if n > MAX_TILES:
        raise ImageError(f"{width}x{height} pixels would be {n} tiles, over {MAX_TILES}: cut it up")
    places = np.linspace(0, 1, n) if n > 1 else [0.5]
    corners = [((width - short) * at, (height - short) * at) for at in places]
    return [(left, top, left + short, top + short) for left, top in corners]


def is_grey(images: np.ndarray) -> bool:
    """Whether the three channels of images (n, h, w, 3) are equal everywhere."""
    return bool((images == images[..., :1]).all())


def to_grey(images: np.ndarray) -> np.ndarray:
    """Images (n, h, w, 3) as (n, h, w, 1) bytes of ITU-R 601 luma; grey keeps its values."""
    return np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in images])[..., None]


def printable(path: str | os.PathLike) -> str:
    """A path for people: what is no visible character is escaped, and so is invalid UTF-8.

    Control characters would steer a terminal, and direction marks disguise a name.
    """
    text = os.fsdecode(path)
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def spreadsheet_safe(path: str | os.PathLike) -> str:
    """A path for a CSV cell: still that path, but never a formula.

    A relative path that starts with anything but a letter, digit, `_`, `.`, `/` or `\\` gets "./"
    before it. Bytes that are no UTF-8 are escaped.
    """
    text = "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in os.fsdecode(path))
    return text if re.match(r"[\w./\\]", text) else f"./{text}"


def _escaped(character):
    if "\udc80" <= character <= "\udcff":  # a byte that was no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _cut(image, side, region, enlarge, size=None):
    """The squares (n, side, side, ...) of a Pillow image, and the share of its pixels in them.

    size: that of the image in its file, where a fraction of it was decoded: the boxes are of that.
    The central one is cut as ImageOps.fit does.
    """
    size = size or image.size
    used = min(size) / max(size) if region == "centre" else 1.0
    if side is None:
        return np.asarray(image)[None], used
    side = side if enlarge else min(side, *image.size)
    method = Image.Resampling.BOX if min(image.size) > side else Image.Resampling.BICUBIC
    scale, limit = np.tile(np.divide(image.size, size), 2), np.tile(image.size, 2)
    places = [tuple(np.minimum(scale * box, limit)) for box in boxes(*size, region)]
    found = [np.asarray(image.resize((side, side), method, place)) for place in places]
    return np.stack(found), used


@contextlib.contextmanager
def _opened(path):
    # by a path, Pillow maps the pixels of an uncompressed file, those of a turned one wrongly
    with open(path, "rb") as file, Image.open(file, formats=_formats()) as opened:
        yield opened


@functools.cache
def _formats():
    """The formats to try, those of the installed plugins included, whatever a file's suffix."""
    Image.init()
    for suffix, (_, module) in PLUGINS.items():
        if suffix not in Image.EXTENSION:
            with contextlib.suppress(Exception):  # absent or broken: `_reason` names the package
                plugin = importlib.import_module(module)
                getattr(plugin, "register_heif_opener", lambda: None)()  # others do so themselves
    # but PostScript, which is a program that Pillow would hand to Ghostscript to run
    return [name for name in Image.ID if name != "EPS"]


@contextlib.contextmanager
def _pixel_limit(max_pixels):
    """Pillow's own limit, which is global, set meanwhile; over it is an error, not a warning."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            Image.MAX_IMAGE_PIXELS = max_pixels
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _deep_pixels(opened, path):
    """The integers (h, w, 1 or 3) of an image of more than 8 bits, and the white that it states.

    (None, 0) for other images, (pixels, 0) where nothing is stated.
    """
    codec, _, _, arguments = opened.tile[0] if opened.tile else ("", None, 0, ())
    raw_mode = arguments[0] if isinstance(arguments, tuple | list) and arguments else arguments
    if opened.format == "TIFF" and opened.tag_v2.get(PLANAR) == 2:
        bits = opened.tag_v2.get(BITS_PER_SAMPLE, (1,))
        if len(bits) > 1 and max(bits) > 8:  # which Pillow decodes as if they were 8
            raise ImageError("colours of over 8 bits in planes of their own; save them interleaved")
    if opened.mode == "F":
        raise ImageError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if opened.mode.startswith("I"):
        pixels = np.asarray(_upright(opened))[..., None]
        if pixels.min() < 0:
            raise ImageError("pixels below 0 have no known range; save it with 8 or 16 bits")
        if opened.format == "TIFF" and opened.tag_v2.get(PHOTOMETRIC) == 0:  # whose white is 0
            full = (1 << max(opened.tag_v2[BITS_PER_SAMPLE])) - 1
            black = _stated_white(opened, path, pixels) or full
            pixels = np.maximum(black - pixels.astype(np.int64), 0)
        if codec.startswith("ppm"):  # which Pillow has stretched to 16 bits
            return np.rint(pixels * (arguments[-1] / FULL_WHITE)).astype(np.int32), arguments[-1]
    elif raw_mode in LOWER_BYTES:
        with _opened(path) as again:
            again.tile = [_with_raw_mode(tile, LOWER_BYTES[raw_mode]) for tile in again.tile]
            low, high = (np.asarray(_upright(each)) for each in (again, opened))
        pixels = high.astype(np.uint16) << 8 | low
    else:
        return None, 0
    return pixels, _stated_white(opened, path, pixels)


def _upright(image):
    """The image turned as its camera was held, as far as it says so legibly."""
    image.load()  # damaged pixels fail here: they are no matter of what follows
    try:
        image.getexif()
    except Exception:  # Pillow's readers of damaged notes raise nearly anything
        return image
    return ImageOps.exif_transpose(image)


def _with_raw_mode(tile, raw_mode):
    """An entry of an image's `tile`, which tells its decoder how the bytes lie."""
    codec, extents, offset, arguments = tile
    arguments = raw_mode if isinstance(arguments, str) else (raw_mode, *arguments[1:])
    return getattr(type(tile), "_make", tuple)((codec, extents, offset, arguments))


def _stated_white(opened, path, pixels):
    """White of as many bits as a PNG or TIFF says that it has; 0 where it does not say."""
    if opened.format == "PNG":
        stated = (1 << min(_significant_bits(path), 16)) - 1
        # the standard wants fewer bits stretched to all 16; some programs leave them as they are
        return FULL_WHITE if 0 < stated < pixels.max() else stated
    if opened.format != "TIFF":
        return 0
    tags = opened.tag_v2
    highest = int(max(tags.get(SMAX_SAMPLE_VALUE, (0,))))
    bits = highest.bit_length() or max(tags[BITS_PER_SAMPLE])
    return (1 << bits) - 1 if highest or bits < 16 else 0


def _significant_bits(path):
    """The number in a PNG's chunk sBIT, which stands before the pixels; 0 where there is none."""
    with open(path, "rb") as file:
        file.seek(8)
        while True:
            length, kind = struct.unpack(">I4s", file.read(8))
            if kind in (b"sBIT", b"IDAT"):
                return max(file.read(length)) if kind == b"sBIT" else 0
            file.seek(length + 4, os.SEEK_CUR)


def _to_rgb(image):
    """Any mode of 8 bits or fewer as RGB."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _reason(error, path, max_pixels):
    suffix = Path(path).suffix.lower()
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"more than {max_pixels} pixels: taken for a decompression bomb; if it is none, allow "
            "more by --max-pixels"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        if suffix in PLUGINS and suffix not in Image.EXTENSION:
            return f"read by the package {PLUGINS[suffix][0]}: pip install {PLUGINS[suffix][0]}"
        return "no image format that Pillow knows"
    return printable(str(error)) or type(error).__name__
