"""Cats and dogs (section 5.2) from the images of the Asirra data set."""

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from utils.commands import file_path, run_command
from utils.files import check_writable, write_npz
from utils.images import ImageError, printable

CLASSES = ["cat", "dog"]
SIDE = 64
N_TRAIN = 10_000
N_TEST = 2_500
N_BROKEN = 1
"""Of each class, in the archive in which the images are found today."""


def build_cats_vs_dogs(folder: str | os.PathLike, data_dir: str | os.PathLike = "data") -> Path:
    """Write cats_vs_dogs.npz from the images of the Asirra data set; returns its path.

    They are cat.N.jpg and dog.N.jpg, or Cat/N.jpg and Dog/N.jpg, in the folder or in a sub-folder,
    and are brought to 64x64 by `resize_and_crop`. In the order of N, the first 10,000 of each class
    are for training and the next 2,500 for testing; images that Pillow cannot read are passed over,
    and one may be lacking of each class.

    Raises ImageError where a class has fewer readable images than that, and ValueError or OSError
    where the file cannot be written.
    """
    path = Path(data_dir, "cats_vs_dogs.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path, ".npz")
    files = {name: _numbered_files(Path(folder), name) for name in CLASSES}
    for name, found in files.items():
        _check_count(folder, name, len(found))
    classes = []
    for name, found in files.items():
        images = list(itertools.islice(_readable(found), N_TRAIN + N_TEST))
        _check_count(folder, name, len(images))
        classes.append(np.stack(images))
    arrays = {}
    for split, part in (("train", slice(N_TRAIN)), ("test", slice(N_TRAIN, None))):
        images = [each[part] for each in classes]
        arrays[f"x_{split}"] = np.concatenate(images)
        arrays[f"y_{split}"] = np.repeat(np.uint8([0, 1]), [len(each) for each in images])
    write_npz(path, arrays)
    return path


def _numbered_files(folder: Path, name: str) -> list[Path]:
    """A class's files in the order of their numbers, from the first layout that is there."""
    patterns = (f"{name}.*.jpg", f"{name.title()}/*.jpg")
    for pattern in (*patterns, *(f"*/{pattern}" for pattern in patterns)):
        found = {file: file.stem.removeprefix(f"{name}.") for file in folder.glob(pattern)}
        numbered = {file: int(text) for file, text in found.items() if text.isdecimal()}
        if len(set(numbered.values())) < len(numbered):
            raise ImageError(
                f"{printable(folder)} has some numbers of {pattern} twice, as two copies of the "
                "data set would: name the folder of one of them"
            )
        if numbered:
            return sorted(numbered, key=numbered.get)
    return []


def _readable(files: Iterable[Path]) -> Iterator[np.ndarray]:
    for file in files:
        try:
            image = resize_and_crop(file, SIDE)
        except Exception as error:  # decoders raise nearly anything for damaged files
            print(f"passed over {printable(file)}: {error}", file=sys.stderr)
        else:
            yield image


def _check_count(folder, name, count):
    needed = N_TRAIN + N_TEST - N_BROKEN
    if count < needed:
        raise ImageError(
            f"{printable(folder)} has {count} readable {name}.N.jpg or {name.title()}/N.jpg files, "
            f"expected {needed}: put the unpacked images there"
        )


def resize_and_crop(file: str | os.PathLike, side: int) -> np.ndarray:
    """An image file as (side, side, 3) bytes, as the authors' release makes it.

    The shorter side becomes `side`; the longer one keeps its ratio to it, rounded down. A new pixel
    is the mean of the area that it covers of the old ones, parts of pixels included (Pillow's BOX
    takes a pixel whole or not at all). Then the centre is cropped; of an odd margin, the larger
    part is cut off at the right or below.
    """
    with Image.open(file) as opened:
        image = np.asarray(opened.convert("RGB"))
    shorter = min(image.shape[:2])
    rows, columns = (
        _area_weights(length, side * length // shorter, side) for length in image.shape[:2]
    )
    resized = columns @ np.tensordot(rows, image, 1)
    return np.rint(resized).astype(np.uint8)


def _area_weights(length: int, new: int, side: int) -> np.ndarray:
    """The share of each old pixel in each new one, for the `side` at the centre of `new`.

    Along one axis, `length` old pixels long: (side, length).
    """
    edges = ((new - side) // 2 + np.arange(side + 1)) * (length / new)
    covered = np.clip(edges[:, None] - np.arange(length), 0, 1)  # of a pixel, left of an edge
    return np.diff(covered, axis=0) * (new / length)


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m utils.datasets`; returns the exit status."""
    text = (build_cats_vs_dogs.__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m utils.datasets", description=text)
    parser.add_argument("name", choices=["cats_vs_dogs"])
    add = parser.add_argument
    text = "of cat.N.jpg and dog.N.jpg, or of Cat/N.jpg and Dog/N.jpg"
    add("folder", type=file_path, help=text)
    add("--data-dir", type=file_path, default="data", help="where the .npz goes (default: data)")
    options = parser.parse_args(arguments)
    return run_command(lambda: print("wrote", build_cats_vs_dogs(options.folder, options.data_dir)))
