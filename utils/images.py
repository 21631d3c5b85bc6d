"""Folders of one's own images, of any format, size and colour, as arrays of small square ones."""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

EXCLUDED_FORMATS = {"EPS"}
"""Encapsulated PostScript is a program, which Pillow would hand to Ghostscript to run."""


class ImageError(Exception):
    """A folder or an image that cannot be used; the message says why."""


@dataclass(frozen=True)
class Folder:
    """The images of a folder: paths[i] holds images[i] of the (n, side, side, 3) bytes.

    skipped: (path, reason) of the files that are no readable image.
    """

    paths: list[Path]
    images: np.ndarray
    skipped: list[tuple[Path, str]]


def read_folder(folder: str | os.PathLike, side: int, *, verbose: int = 1) -> Folder:
    """All images in a folder and its sub-folders, in the order of their paths.

    Each is brought to side x side pixels by `read_image`. Files that are no readable image are
    listed; hidden ones, whose name or folder starts with a dot, and links to folders are passed by.

    Raises ImageError where the folder is none, or has no readable image.
    """
    files = find_files(folder)
    images = np.empty((len(files), side, side, 3), np.uint8)
    paths, skipped = [], []
    for path in tqdm(files, "reading", unit="image", mininterval=1, disable=not verbose):
        try:
            images[len(paths)] = read_image(path, side)
            paths.append(path)
        except ImageError as error:
            skipped.append((path, str(error)))
    if not paths:
        tried = "".join(f"\n  {printable(path)}: {reason}" for path, reason in skipped[:5])
        raise ImageError(f"{printable(folder)} holds no readable image{tried}")
    return Folder(paths, images[: len(paths)], skipped)


def find_files(folder: str | os.PathLike) -> list[Path]:
    """The files in a folder and its sub-folders, sorted, hidden ones left out.

    Raises ImageError where it is no folder.
    """
    if not Path(folder).is_dir():
        raise ImageError(f"{printable(folder)} is no folder; give the folder the images lie in")
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent, name) for name in sorted(files) if not name.startswith("."))
        found += [path for path in paths if path.is_file()]
    return found


def read_image(path: str | os.PathLike, side: int) -> np.ndarray:
    """An image file as (side, side, 3) bytes: the largest square at its centre, resized.

    By area averaging where it becomes smaller, as the paper's 64x64 images (section 5.2), and
    bicubic where larger. The camera's orientation is applied, transparency lies on white, of an
    animation the first frame is taken, and 16 bits a channel become 8.

    Raises ImageError for what Pillow cannot read, and for over Image.MAX_IMAGE_PIXELS (about 89
    million) pixels.
    """
    try:
        if not os.path.getsize(path):
            raise ImageError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_formats()) as opened:
                opened.draft(None, (4 * side, 4 * side))  # decode large JPEGs at a fraction
                image = _to_rgb(ImageOps.exif_transpose(opened))
            method = Image.Resampling.BOX if min(image.size) > side else Image.Resampling.BICUBIC
            return np.asarray(ImageOps.fit(image, (side, side), method))
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ImageError(_reason(error)) from error


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


def _formats():
    Image.init()
    return [name for name in Image.ID if name not in EXCLUDED_FORMATS]


def _to_rgb(image):
    """Any mode as RGB; ImageError where the pixels' range is unknown."""
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ImageError("32-bit pixels have no known range; save it with 8 or 16 bits")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _reason(error):
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels: taken for a decompression bomb"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image format that Pillow knows"
    return printable(str(error)) or type(error).__name__
