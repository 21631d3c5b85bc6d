"""The image data sets of section 5.2, MNIST, and scikit-learn's digits, as arrays of bytes.

    python -m utils.datasets cats_vs_dogs FOLDER [--data-dir data]

builds cats_vs_dogs.npz from the images of the Asirra data set: a folder of cat.0.jpg ... and
dog.0.jpg ... files, or one with the sub-folders Cat and Dog of 0.jpg ... files.
"""

if __name__ == "__main__":
    from utils import startup

    startup.stop_on_interrupt()  # first: what follows takes a second to load

import argparse
import gzip
import math
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils.commands import run_command
from utils.files import check_writable, read_npz, write_npz
from utils.images import ImageError, printable, read_folder

CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
FASHION_MNIST = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
]
CIFAR100 = [
    "aquatic mammals",
    "fish",
    "flowers",
    "food containers",
    "fruit and vegetables",
    "household electrical devices",
    "household furniture",
    "insects",
    "large carnivores",
    "large man-made outdoor things",
    "large natural outdoor scenes",
    "large omnivores and herbivores",
    "medium-sized mammals",
    "non-insect invertebrates",
    "people",
    "reptiles",
    "small mammals",
    "trees",
    "vehicles 1",
    "vehicles 2",
]
DIGITS = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Layout:
    """What a data set's arrays look like, and the names of its classes."""

    image_shape: tuple[int, int, int]
    class_names: list[str]
    padding: int = 0


LAYOUTS = {
    "digits": Layout((16, 16, 1), DIGITS),
    "cifar10": Layout((32, 32, 3), CIFAR10),
    "cifar100": Layout((32, 32, 3), CIFAR100),
    "fashion_mnist": Layout((28, 28, 1), FASHION_MNIST, padding=2),
    "mnist": Layout((28, 28, 1), DIGITS, padding=2),
    "cats_vs_dogs": Layout((64, 64, 3), ["cat", "dog"]),
}
DATASETS = tuple(LAYOUTS)

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
CATS_VS_DOGS_TRAIN = 10_000
CATS_VS_DOGS_TEST = 2_500
CATS_VS_DOGS_BROKEN = 1
"""Of each class, in the archive in which the images are found today."""


class DatasetError(ValueError):
    """A data set that is missing or damaged; the message says what to put where."""


@dataclass(frozen=True)
class Dataset:
    """x_train, x_test: (n, h, w, c) uint8. y_train, y_test: (n,) class numbers, int64."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]


def load_dataset(name: str, data_dir: str | os.PathLike = "data", *, pad: bool = True) -> Dataset:
    """A data set by name: one of DATASETS.

    Read from `<data_dir>/<name>.npz` (arrays x_train, y_train, x_test, y_test), or, for the MNIST
    family, from the original four .gz files in `<data_dir>/<name>/`. Where neither is there, it is
    downloaded with keras.datasets and kept as that .npz; cats_vs_dogs cannot be. digits comes with
    scikit-learn. CIFAR-100 has its 20 superclasses. pad: bring the MNIST family's 28x28 to 32x32
    with zeros, as section 5.2 does.

    Raises DatasetError for an unknown name, for data that cannot be had, and for files that are
    truncated or hold something else.
    """
    if name not in LAYOUTS:
        raise DatasetError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    layout, npz, folder = LAYOUTS[name], Path(data_dir, f"{name}.npz"), Path(data_dir, name)
    if name == "digits":
        arrays, source = _digits(), "scikit-learn's digits"
    elif npz.exists():
        arrays, source = _read_npz(npz), npz
    elif layout.padding and any((folder / file).exists() for file in IDX_FILES.values()):
        arrays, source = _read_idx_folder(folder), folder
    else:
        arrays, source = _download(name, npz), npz
    arrays = _checked(arrays, layout, source)
    if pad and layout.padding:
        edge = (layout.padding, layout.padding)
        for key in ("x_train", "x_test"):
            arrays[key] = np.pad(arrays[key], [(0, 0), edge, edge, (0, 0)])
    return Dataset(name, **arrays, class_names=layout.class_names)


def load_test_images(
    name: str, data_dir: str | os.PathLike = "data", image_shape: tuple = (32, 32, 3)
) -> np.ndarray:
    """Images to tell a labelled data set's from (section 5.5): (n, h, w, c) uint8.

    `tiny_imagenet` is read from `<data_dir>/tiny_imagenet.npz` (array x_test) or from the images in
    the folder `<data_dir>/tiny_imagenet/`, which are resized. Any other name is that of a data set
    of `load_dataset`, whose test images are taken; grey ones get three equal channels.

    Raises DatasetError as `load_dataset` does, and for images of another size.
    """
    if name == "tiny_imagenet":
        x, source = _tiny_imagenet(Path(data_dir), image_shape[0])
    else:
        x, source = load_dataset(name, data_dir).x_test, f"{name} in {data_dir}/"
    if x.ndim == 4 and x.shape[-1] == 1:
        x = np.repeat(x, image_shape[-1], axis=-1)
    if x.ndim != 4 or x.shape[1:] != tuple(image_shape) or x.dtype != np.uint8 or not len(x):
        expected = ", ".join(["n", *map(str, image_shape)])
        raise DatasetError(
            f"{source}: x_test is {x.dtype} of shape {x.shape}, expected uint8 ({expected})"
        )
    return x


def random_part(x: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """A random so many of x's rows, in order: the same ones for all arrays of that length."""
    if limit is None or limit >= len(x):
        return x
    return x[np.sort(np.random.default_rng(seed).permutation(len(x))[:limit])]


def _tiny_imagenet(data_dir, side):
    npz, folder = data_dir / "tiny_imagenet.npz", data_dir / "tiny_imagenet"
    if npz.exists():
        arrays = _read_npz(npz)
        if "x_test" not in arrays:
            raise DatasetError(f"{npz} has no array x_test")
        return arrays["x_test"], npz
    if not folder.is_dir():
        raise DatasetError(
            f"{npz} and {folder}/ are missing, and this data set cannot be downloaded here: put "
            f"there an .npz with uint8 x_test (n, {side}, {side}, 3), or a folder of the images"
        )
    try:
        found = read_folder(folder, side)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    if found.skipped:
        path, reason = found.skipped[0]
        raise DatasetError(f"{path}: {reason}; put the original file there")
    return found.images, folder


def _read_npz(path):
    try:
        return read_npz(path, IDX_FILES)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{error}; delete it to download it again, or put an .npz with x_train, y_train, "
            "x_test and y_test there"
        ) from error


def _read_idx_folder(folder):
    missing = [file for file in IDX_FILES.values() if not (folder / file).exists()]
    if missing:
        raise DatasetError(f"{folder} lacks {', '.join(missing)}; put the original file(s) there")
    arrays = {key: _read_idx(folder / file) for key, file in IDX_FILES.items()}
    for key in ("x_train", "x_test"):
        arrays[key] = arrays[key][..., None]
    return arrays


def _read_idx(path):
    """An IDX file of bytes: two zeros, type 8, the number of axes, their lengths, the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is damaged ({error}); put the original file there") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DatasetError(f"{path} is no IDX file of bytes; put the original file there")
    axes = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    if len(raw) != 4 + 4 * axes + math.prod(shape):
        raise DatasetError(
            f"{path} announces {shape} bytes and holds {max(0, len(raw) - 4 - 4 * axes)}; "
            "put the original file there"
        )
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _download(name, npz):
    remedy = f"put {npz} there, an .npz with uint8 x_train and x_test (n, h, w, c), y_train, y_test"
    if name == "cats_vs_dogs":
        raise DatasetError(
            f"{npz} is missing, and this data set cannot be downloaded here: {remedy}, or make it "
            "from the images with python -m utils.datasets cats_vs_dogs FOLDER"
        )
    if LAYOUTS[name].padding:
        remedy += f", or the original four .gz files into {npz.with_suffix('')}"
    import keras

    arguments = {"label_mode": "coarse"} if name == "cifar100" else {}
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data(**arguments)
    except Exception as error:  # a URL, a proxy, a digest, a full disk: all mean the same here
        raise DatasetError(
            f"{npz} is missing and its download failed ({error}): {remedy}"
        ) from error
    if x_train.ndim == 3:
        x_train, x_test = x_train[..., None], x_test[..., None]
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    arrays = _checked(arrays, LAYOUTS[name], f"the download of {name}")
    write_npz(npz, arrays)
    return arrays


def _checked(arrays, layout, source):
    """The arrays in their one form; DatasetError where they cannot be this data set."""
    checked = {}
    n_classes = len(layout.class_names)
    for split in ("train", "test"):
        for key in (f"x_{split}", f"y_{split}"):
            if key not in arrays:
                raise DatasetError(f"{source} has no array {key}")
        x, y = arrays[f"x_{split}"], np.asarray(arrays[f"y_{split}"])
        expected = ", ".join(["n", *map(str, layout.image_shape)])
        if x.ndim != 4 or x.shape[1:] != layout.image_shape or not len(x):
            raise DatasetError(f"{source}: x_{split} has shape {x.shape}, expected ({expected})")
        if x.dtype != np.uint8:
            raise DatasetError(f"{source}: x_{split} has dtype {x.dtype}, expected uint8")
        if y.size != len(x) or y.shape[:1] != (len(x),) or not np.issubdtype(y.dtype, np.integer):
            raise DatasetError(
                f"{source}: y_{split} is {y.dtype} of shape {y.shape}, "
                f"expected {len(x)} class numbers"
            )
        if y.min() < 0 or y.max() >= n_classes:
            wrong = y.max() if y.max() >= n_classes else y.min()
            raise DatasetError(
                f"{source}: y_{split} has class {wrong}, expected 0..{n_classes - 1}"
            )
        checked[f"x_{split}"], checked[f"y_{split}"] = x, y.reshape(-1).astype(np.int64)
    return checked


def _digits():
    """scikit-learn's 1,797 8x8 digits, doubled to 16x16; every third of a class is for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    x = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)[..., None]
    y = digits.target
    rank = np.array([np.sum(y[:i] == y[i]) for i in range(len(y))])
    test = rank % 3 == 2
    return {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}


def build_cats_vs_dogs(folder: str | os.PathLike, data_dir: str | os.PathLike = "data") -> Path:
    """Write cats_vs_dogs.npz from the images of the Asirra data set; returns its path.

    They are cat.N.jpg and dog.N.jpg, or Cat/N.jpg and Dog/N.jpg, in the folder or in a sub-folder.
    Each image's shorter side is brought to 64 pixels by area averaging and the centre is cropped to
    64x64. In the order of N, the first 10,000 of each class are for training and the next 2,500 for
    testing; images that Pillow cannot read are passed over, and one may be lacking of each class.

    Raises DatasetError where a class has fewer readable images than that, and ValueError or OSError
    where the file cannot be written.
    """
    path = Path(data_dir, "cats_vs_dogs.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path, ".npz")
    names = LAYOUTS["cats_vs_dogs"].class_names
    files = {name: _asirra_files(Path(folder), name) for name in names}
    for name in names:
        _check_count(folder, name, len(files[name]))
    parts = {key: [] for key in IDX_FILES}
    for label, name in enumerate(names):
        images = []
        for file in files[name]:
            try:
                images.append(resize_and_crop(file, 64))
            except Exception as error:  # decoders raise nearly anything for damaged files
                print(f"passed over {printable(file)}: {error}", file=sys.stderr)
            if len(images) == CATS_VS_DOGS_TRAIN + CATS_VS_DOGS_TEST:
                break
        _check_count(folder, name, len(images))
        for split, part in (
            ("train", images[:CATS_VS_DOGS_TRAIN]),
            ("test", images[CATS_VS_DOGS_TRAIN:]),
        ):
            parts[f"x_{split}"].append(np.stack(part))
            parts[f"y_{split}"].append(np.full(len(part), label, np.uint8))
    write_npz(path, {key: np.concatenate(value) for key, value in parts.items()})
    return path


def _asirra_files(folder, name):
    """A class's files in the order of their numbers, from the first layout that is there."""
    patterns = (f"{name}.*.jpg", f"{name.title()}/*.jpg")
    for pattern in (*patterns, *(f"*/{pattern}" for pattern in patterns)):
        found = {file: file.stem.removeprefix(f"{name}.") for file in folder.glob(pattern)}
        numbered = {file: int(text) for file, text in found.items() if text.isdecimal()}
        if numbered:
            return sorted(numbered, key=numbered.get)
    return []


def _check_count(folder, name, count):
    needed = CATS_VS_DOGS_TRAIN + CATS_VS_DOGS_TEST - CATS_VS_DOGS_BROKEN
    if count < needed:
        raise DatasetError(
            f"{printable(folder)} has {count} readable {name}.N.jpg or {name.title()}/N.jpg files, "
            f"expected {needed}: put the unpacked images there"
        )


def resize_and_crop(file: str | os.PathLike, side: int) -> np.ndarray:
    """An image file as (side, side, 3) bytes: shorter side resized by area, centre cropped."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BOX)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def main(arguments: list[str] | None = None) -> int:
    """The command at the head of this file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.datasets", description=build_cats_vs_dogs.__doc__.split("\n\n")[0]
    )
    parser.add_argument("name", choices=["cats_vs_dogs"])
    parser.add_argument("folder", help="of cat.N.jpg and dog.N.jpg, or of Cat/N.jpg and Dog/N.jpg")
    parser.add_argument("--data-dir", default="data", help="where the .npz goes (default: data)")
    options = parser.parse_args(arguments)

    def build():
        print("wrote", build_cats_vs_dogs(options.folder, options.data_dir))

    return run_command(build)


if __name__ == "__main__":
    sys.exit(main())
