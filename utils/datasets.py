"""The image data sets of section 5.2, MNIST, and scikit-learn's digits, as arrays of bytes.

A new one is a row of LAYOUTS, and its .npz in data/.

    python -m utils.datasets cats_vs_dogs FOLDER            builds cats_vs_dogs.npz
"""

if __name__ == "__main__":
    from utils import startup

    startup.stop_on_interrupt()  # first: what follows takes a second to load

import gzip
import math
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils import cats_vs_dogs
from utils.files import claim, read_npz, write_npz
from utils.folders import read_folder
from utils.images import printable

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}

CIFAR10 = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
FASHION_MNIST = "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle-boot"
CIFAR100 = (
    "aquatic mammals, fish, flowers, food containers, fruit and vegetables, household electrical "
    "devices, household furniture, insects, large carnivores, large man-made outdoor things, "
    "large natural outdoor scenes, large omnivores and herbivores, medium-sized mammals, "
    "non-insect invertebrates, people, reptiles, small mammals, trees, vehicles 1, vehicles 2"
)
DIGITS = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Layout:
    """What a data set's arrays look like, and where they come from if no file is there.

    padding: zeros around images of the MNIST family, which may also lie in IDX_FILES. download:
    what `load_data` of keras.datasets takes; None where it has no such data set. remedy: another
    way to get the file.
    """

    image_shape: tuple[int, int, int]
    class_names: list[str]
    padding: int = 0
    download: dict | None = None
    remedy: str = ""


LAYOUTS = {
    "digits": Layout((16, 16, 1), DIGITS),
    "cifar10": Layout((32, 32, 3), CIFAR10.split(", "), download={}),
    "cifar100": Layout((32, 32, 3), CIFAR100.split(", "), download={"label_mode": "coarse"}),
    "fashion_mnist": Layout((28, 28, 1), FASHION_MNIST.split(", "), padding=2, download={}),
    "mnist": Layout((28, 28, 1), DIGITS, padding=2, download={}),
    "cats_vs_dogs": Layout(
        (64, 64, 3),
        cats_vs_dogs.CLASSES,
        remedy="make it from the images with python -m utils.datasets cats_vs_dogs FOLDER",
    ),
}
DATASETS = LAYOUTS.keys()
TABLE_1 = ("cifar10", "cifar100", "fashion_mnist", "cats_vs_dogs")


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


def load_dataset(name: str, data_dir: str | os.PathLike = "data") -> Dataset:
    """A data set by name: one of DATASETS.

    Read from `<data_dir>/<name>.npz` (arrays x_train, y_train, x_test, y_test), or, for the MNIST
    family, from the original four .gz files in `<data_dir>/<name>/`. Where neither is there, it is
    downloaded with keras.datasets, by one process at a time, and kept as that .npz; cats_vs_dogs
    cannot be. digits comes with scikit-learn. CIFAR-100 has its 20 superclasses; the MNIST family's
    28x28 become 32x32 with zeros, as in section 5.2.

    Raises DatasetError for an unknown name, for data that cannot be had, and for files that are
    truncated or hold something else.
    """
    if name not in LAYOUTS:
        raise DatasetError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    layout, npz, folder = LAYOUTS[name], Path(data_dir, f"{name}.npz"), Path(data_dir, name)
    if name == "digits":
        arrays, source = _enlarged_digits(), "scikit-learn's digits"
    elif npz.exists():
        arrays, source = _read_npz(npz), npz
    elif layout.padding and any((folder / file).exists() for file in IDX_FILES.values()):
        arrays, source = _read_idx_folder(folder), folder
    else:
        arrays, source = _download(name, npz), npz
    arrays = _checked(arrays, layout, source)
    if layout.padding:
        edge = (layout.padding, layout.padding)
        for key in ("x_train", "x_test"):
            arrays[key] = np.pad(arrays[key], [(0, 0), edge, edge, (0, 0)])
    return Dataset(name, **arrays, class_names=layout.class_names)


def load_test_images(name: str, data_dir: str | os.PathLike = "data") -> np.ndarray:
    """Images to tell CIFAR-10's from (section 5.5): (n, 32, 32, 3) uint8.

    `tiny_imagenet` is read from `<data_dir>/tiny_imagenet.npz` (array x_test) or from the images in
    the folder `<data_dir>/tiny_imagenet/`, which are resized. Any other name is that of a data set
    of `load_dataset`, whose test images are taken; grey ones get three equal channels.

    Raises DatasetError as `load_dataset` does, and for images of another size, and ImageError where
    the folder holds no readable image.
    """
    if name == "tiny_imagenet":
        x, source = _tiny_imagenet(Path(data_dir))
    else:
        x, source = load_dataset(name, data_dir).x_test, f"{name} in {data_dir}/"
    if x.shape[-1:] == (1,):
        x = np.repeat(x, 3, axis=-1)
    _check_images(x, LAYOUTS["cifar10"].image_shape, f"{source}: x_test")
    return x


def random_part(x: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """A random so many of x's rows, in order: the same ones for all arrays of that length."""
    if limit is None or limit >= len(x):
        return x
    return x[np.sort(np.random.default_rng(seed).permutation(len(x))[:limit])]


def _tiny_imagenet(data_dir):
    npz, folder = data_dir / "tiny_imagenet.npz", data_dir / "tiny_imagenet"
    if npz.exists():
        arrays = _read_npz(npz)
        if "x_test" not in arrays:
            raise DatasetError(f"{npz} has no array x_test")
        return arrays["x_test"], npz
    if not folder.is_dir():
        raise DatasetError(
            f"{npz} and {folder}/ are missing, and this data set cannot be downloaded here: put "
            "there an .npz with uint8 x_test (n, 32, 32, 3), or a folder of the images"
        )
    test = folder / "test"  # of the published archive; it has images of two other parts
    found = read_folder(test if test.is_dir() else folder, side=32)
    if found.skipped:
        path, reason = found.skipped[0]
        raise DatasetError(f"{path}: {reason}; put the original file there, or take it away")
    return found.images, folder


def _read_npz(path):
    try:
        return read_npz(path, ARRAYS)
    except ValueError as error:
        remedy = "delete it and start again, which downloads it or says what to put there"
        raise DatasetError(f"{error}; {remedy}") from error


def _read_idx_folder(folder):
    missing = [file for file in IDX_FILES.values() if not (folder / file).exists()]
    if missing:
        raise DatasetError(f"{folder} lacks {', '.join(missing)}; put the original file(s) there")
    arrays = {key: _read_idx(folder / file) for key, file in IDX_FILES.items()}
    return arrays | {key: arrays[key][..., None] for key in ("x_train", "x_test")}


def _read_idx(path):
    """An IDX file of bytes: two zeros, type 8, the number of axes, their lengths, the bytes."""
    remedy = "put the original file there"
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is damaged ({error}); {remedy}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DatasetError(f"{path} is no IDX file of bytes; {remedy}")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    if len(raw) != start + math.prod(shape):
        held = max(0, len(raw) - start)
        raise DatasetError(f"{path} announces {shape} bytes and holds {held}; {remedy}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _download(name, npz):
    layout = LAYOUTS[name]
    remedy = f"put {npz} there, an .npz with uint8 x_train and x_test (n, h, w, c), y_train, y_test"
    if layout.padding:
        remedy += f", or the original four .gz files into {npz.with_suffix('')}"
    if layout.remedy:
        remedy += f", or {layout.remedy}"
    if layout.download is None:
        raise DatasetError(
            f"{npz} is missing, and this data set cannot be downloaded here: {remedy}"
        )
    import keras

    with claim(npz, wait=True):  # two downloads of Keras's would write one file in its cache
        if npz.exists():
            return _read_npz(npz)
        try:
            train, test = getattr(keras.datasets, name).load_data(**layout.download)
        except Exception as error:  # a URL, a proxy, a digest, a full disk: all mean the same here
            raise DatasetError(
                f"{npz} is missing and its download failed ({error}): {remedy}"
            ) from error
        arrays = dict(zip(ARRAYS, (*train, *test), strict=True))
        for key in ("x_train", "x_test"):
            arrays[key] = arrays[key] if arrays[key].ndim == 4 else arrays[key][..., None]
        arrays = _checked(arrays, layout, f"the download of {name}")
        write_npz(npz, arrays)
        return arrays


def _checked(arrays, layout, source):
    """The arrays in their one form; DatasetError where they cannot be this data set."""
    for key in ARRAYS:
        if key not in arrays:
            raise DatasetError(f"{source} has no array {key}")
    checked, last = {}, len(layout.class_names) - 1
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        _check_images(x, layout.image_shape, f"{source}: x_{split}")
        if y.size != len(x) or y.shape[:1] != (len(x),) or not np.issubdtype(y.dtype, np.integer):
            raise DatasetError(
                f"{source}: y_{split} is {y.dtype} of shape {y.shape}, "
                f"expected {len(x)} class numbers"
            )
        if y.min() < 0 or y.max() > last:
            wrong = y.max() if y.max() > last else y.min()
            raise DatasetError(f"{source}: y_{split} has class {wrong}, expected 0..{last}")
        checked |= {f"x_{split}": x, f"y_{split}": y.reshape(-1).astype(np.int64)}
    return checked


def _check_images(x, image_shape, name):
    if x.shape[1:] != tuple(image_shape) or not len(x):
        expected = ", ".join(["n", *map(str, image_shape)])
        raise DatasetError(f"{name} has shape {x.shape}, expected ({expected})")
    if x.dtype != np.uint8:
        raise DatasetError(f"{name} has dtype {x.dtype}, expected uint8")


def _digits():
    """scikit-learn's 1,797 digits: bytes (n, 8, 8), and which digit each is."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _enlarged_digits():
    """They doubled to 16x16; every third of a class is for testing."""
    x, y = _digits()
    x = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)[..., None]
    test = np.array([np.sum(y[:i] == label) % 3 == 2 for i, label in enumerate(y)])
    return {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}


def write_digits(folder: Path) -> None:
    """Write the folders good, normal, odd and mixed of 16x16 PNGs: fours, but for the odd ones.

    mixed has 31 fours and 10 other digits. Raises ValueError where the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{printable(folder)} is there already; name a new folder")
    images, y = _digits()
    fours, others = images[y == 4], np.random.default_rng(0).permutation(images[y != 4])
    mixed = [*fours[150:], *others[100:110]]
    parts = {"good": fours[:120], "normal": fours[120:150], "odd": others[:100], "mixed": mixed}
    for name, part in parts.items():
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(part):
            enlarged = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
            enlarged.save(folder / name / f"{i:03}.png")


if __name__ == "__main__":
    sys.exit(cats_vs_dogs.main())
