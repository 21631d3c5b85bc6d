"""Folders of one's own images, of any format, size and colour, as arrays of small square ones."""

import contextlib
import functools
import importlib
import os
import re
import struct
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.progress import progress

EXCLUDED_FORMATS = {"EPS"}
"""Encapsulated PostScript is a program, which Pillow would hand to Ghostscript to run."""

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

FULL_WHITE = 0xFFFF
"""White of 16 bits."""

OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
LOWER_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBX")
    for order, other in OTHER_ORDER.items()
}
"""Of 16-bit colours, Pillow decodes the upper bytes; the lower ones where told the other order."""

BITS_PER_SAMPLE, SMAX_SAMPLE_VALUE = 258, 341
"""TIFF's tags."""


class ImageError(ValueError):
    """A folder or an image that cannot be used; the message says why."""


@dataclass(frozen=True)
class Folder:
    """The images of a folder: paths[i] holds images[i] of the (n, side, side, 3) bytes.

    skipped: (path, reason) of the files that are no readable image, and of folders left out.
    white: the value that became 255 in the images of more than 8 bits, None where there are none.
    clipped: how many of these have pixels above it.
    """

    paths: list[Path]
    images: np.ndarray
    skipped: list[tuple[Path, str]]
    white: int | None = None
    clipped: int = 0


def read_folder(
    folder: str | os.PathLike,
    side: int,
    *,
    white: int | None = None,
    max_pixels: int = MAX_PIXELS,
    verbose: int = 1,
) -> Folder:
    """All images in a folder and its sub-folders, in the order of `find_files`.

    Each is brought to side x side pixels by `read_image`. white: for images of more than 8 bits;
    None takes the smallest that is enough for all of them, so that the 12 bits of a camera become
    8 however its files store them. Files that are no readable image are listed.

    Raises ImageError where the folder is none, or has no readable image.
    """
    files, skipped = find_files(folder)
    images = np.empty((len(files), side, side, 3), np.uint8)
    paths, deep = [], {}
    for path in progress(files, "reading", unit="image", verbose=verbose):
        try:
            square = _square(path, side, max_pixels)
        except ImageError as error:
            skipped.append((path, str(error)))
            continue
        if isinstance(square, _Deep):
            deep[len(paths)] = square
        else:
            images[len(paths)] = square
        paths.append(path)
    if not paths:
        tried = "".join(f"\n  {printable(path)}: {reason}" for path, reason in skipped[:5])
        raise ImageError(f"{printable(folder)} holds no readable image{tried}")
    if deep and white is None:
        white = max(each.white for each in deep.values())
    for i, each in deep.items():
        images[i] = each.to_bytes(white)
    clipped = sum(each.highest > white for each in deep.values())
    return Folder(paths, images[: len(paths)], skipped, white if deep else None, clipped)


def find_files(folder: str | os.PathLike) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files in a folder and its sub-folders, and (path, reason) of what is left out.

    Sorted within each folder. Links to folders are followed, after all that lies in the folder
    itself; a folder that can be reached in several ways is read once. Hidden files and folders,
    whose names start with a dot, are passed by without mention.

    Raises ImageError where it is no folder.
    """
    if not os.path.isdir(folder):
        raise ImageError(f"{printable(folder)} is no folder; give the folder the images lie in")
    found, skipped, pending = [], [], [Path(folder)]
    # a link that leads upwards would read all that lies beside the folder
    seen = {_identity(parent): parent for parent in Path(folder).resolve().parents}

    def unreadable(error):
        skipped.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    for start in pending:  # which grows
        for parent, folders, files in os.walk(start, onerror=unreadable):
            parent = Path(parent)
            first = seen.setdefault(_identity(parent), parent)
            if first is not parent:
                skipped.append((parent, f"leads back to {printable(first)}"))
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            pending += [parent / name for name in folders if (parent / name).is_symlink()]
            for path in (parent / name for name in sorted(files) if not name.startswith(".")):
                if os.path.isfile(path):
                    found.append(path)
                else:
                    skipped.append((path, _why_no_file(path)))
    return found, skipped


def read_image(
    path: str | os.PathLike, side: int, *, white: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """An image file as (side, side, 3) bytes: the largest square at its centre, resized.

    By area averaging where it becomes smaller, as the paper's 64x64 images (section 5.2), and
    bicubic where larger. The camera's orientation is applied, transparency lies on white, and of an
    animation the first frame is taken.

    white: of grey or RGB integers of more than 8 bits, the value that becomes 255, as those above
    it do. None takes what the file says: the maximum of a PGM, a PNG's significant bits, a TIFF's
    bits or highest sample; or else the smallest 2^b - 1 that no pixel exceeds. Of 16-bit colours
    with transparency, or in CMYK, the upper 8 bits are taken.

    Raises ImageError for what Pillow cannot read, for integers below 0 and floating-point numbers,
    whose range is unknown, and for more than max_pixels pixels.
    """
    square = _square(path, side, max_pixels)
    if isinstance(square, _Deep):
        return square.to_bytes(square.white if white is None else white)
    return square


def is_grey(images: np.ndarray) -> bool:
    """Whether the three channels of images (n, h, w, 3) are equal everywhere."""
    return bool((images == images[..., :1]).all())


def to_grey(images: np.ndarray) -> np.ndarray:
    """Images (n, h, w, 3) as (n, h, w, 1) bytes of ITU-R 601 luma; grey keeps its values."""
    weights = np.array([19595, 38470, 7471], np.uint32)  # of 65536, as Pillow's convert("L")
    grey = [(image @ weights + 0x8000) >> 16 for image in images]
    return np.stack(grey).astype(np.uint8)[..., None]


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


@dataclass(frozen=True)
class _Deep:
    """An image of more than 8 bits: float32 (side, side, 1 or 3), its white, its highest pixel."""

    pixels: np.ndarray
    white: int
    highest: int

    def to_bytes(self, white):
        """(side, side, 3) bytes."""
        scaled = np.clip(np.rint(self.pixels * (255 / white)), 0, 255).astype(np.uint8)
        return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


def _square(path, side, max_pixels):
    """An image as (side, side, 3) bytes, or as _Deep."""
    try:
        if not os.path.getsize(path):
            raise ImageError("the file is empty")
        with _pixel_limit(max_pixels), _opened(path) as opened:
            pixels, stated = _deep_pixels(opened, path)
            if pixels is not None:
                highest = int(pixels.max())
                enough = (1 << max(highest, 1).bit_length()) - 1
                white = stated if stated > 0 and highest <= stated else enough
                channels = np.moveaxis(pixels, -1, 0)
                squares = [_fit(Image.fromarray(c.astype(np.float32)), side) for c in channels]
                return _Deep(np.stack(squares, axis=-1), white, highest)
            opened.draft(None, (4 * side, 4 * side))  # decode large JPEGs at a fraction
            return np.asarray(_fit(_to_rgb(ImageOps.exif_transpose(opened)), side))
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ImageError(_reason(error, path, max_pixels)) from error


def _fit(image, side):
    method = Image.Resampling.BOX if min(image.size) > side else Image.Resampling.BICUBIC
    return ImageOps.fit(image, (side, side), method)


def _opened(path):
    return Image.open(path, formats=_formats(Path(path).suffix.lower()))


@functools.cache
def _formats(suffix):
    """The formats to try, those of the plugin for files of that suffix included."""
    Image.init()
    if suffix in PLUGINS and suffix not in Image.EXTENSION:
        with contextlib.suppress(ImportError):  # then `_reason` names the package
            plugin = importlib.import_module(PLUGINS[suffix][1])
            getattr(plugin, "register_heif_opener", lambda: None)()  # others do so by themselves
    return [name for name in Image.ID if name not in EXCLUDED_FORMATS]


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
    if opened.mode == "F":
        raise ImageError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if opened.mode.startswith("I"):
        pixels = np.asarray(ImageOps.exif_transpose(opened))[..., None]
        if pixels.min() < 0:
            raise ImageError("pixels below 0 have no known range; save it with 8 or 16 bits")
        if codec.startswith("ppm"):  # which Pillow has stretched to 16 bits
            return np.rint(pixels * (arguments[-1] / FULL_WHITE)).astype(np.int32), arguments[-1]
    elif raw_mode in LOWER_BYTES:
        with _opened(path) as again:
            again.tile = [_with_raw_mode(tile, LOWER_BYTES[raw_mode]) for tile in again.tile]
            low, high = (np.asarray(ImageOps.exif_transpose(each)) for each in (again, opened))
        pixels = high.astype(np.uint16) << 8 | low
    else:
        return None, 0
    return pixels, _stated_white(opened, path, pixels)


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


def _identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _why_no_file(path):
    try:
        os.stat(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "neither a file nor a folder"


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
