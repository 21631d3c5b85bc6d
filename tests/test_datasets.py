import gzip
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from utils import cats_vs_dogs, datasets
from utils.cats_vs_dogs import build_cats_vs_dogs, resize_and_crop
from utils.datasets import DATASETS, LAYOUTS, DatasetError, load_dataset, load_test_images
from utils.images import ImageError

ROOT = Path(__file__).resolve().parents[1]


def small_arrays(name, n=6):
    rng = np.random.default_rng(0)
    shape, classes = LAYOUTS[name].image_shape, len(LAYOUTS[name].class_names)
    return {
        "x_train": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "y_train": (np.arange(n) % classes).astype(np.uint8),
        "x_test": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "y_test": (np.arange(n) % classes).astype(np.uint8),
    }


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_reads_its_npz(name, tmp_path):
    arrays = small_arrays(name)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    data = load_dataset(name, tmp_path)
    side = max(32, LAYOUTS[name].image_shape[0])
    edge = (side - LAYOUTS[name].image_shape[0]) // 2
    assert data.x_train.shape[1:3] == (side, side) and data.x_train.dtype == np.uint8
    inner = data.x_test[:, edge : side - edge, edge : side - edge]
    np.testing.assert_array_equal(inner, arrays["x_test"])
    assert inner.sum(dtype=int) == data.x_test.sum(dtype=int)
    np.testing.assert_array_equal(data.y_train, arrays["y_train"])


def test_labels_may_be_a_column(tmp_path):
    arrays = small_arrays("cifar10")
    arrays["y_train"] = arrays["y_train"][:, None]
    np.savez(tmp_path / "cifar10.npz", **arrays)
    assert load_dataset("cifar10", tmp_path).y_train.shape == (6,)


def write_idx(folder, arrays):
    folder.mkdir()
    for key, name in datasets.IDX_FILES.items():
        array = arrays[key][..., 0] if key.startswith("x") else arrays[key]
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / name).write_bytes(gzip.compress(head + array.tobytes()))


def test_reads_the_original_idx_files(tmp_path):
    arrays = small_arrays("fashion_mnist")
    write_idx(tmp_path / "fashion_mnist", arrays)
    data = load_dataset("fashion_mnist", tmp_path)
    for key, expected in arrays.items():
        found = getattr(data, key)
        found = found[:, 2:-2, 2:-2] if key.startswith("x") else found
        np.testing.assert_array_equal(found, expected)


def test_digits_need_nothing(digits):
    assert digits.x_train.shape[1:] == (16, 16, 1)
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert digits.x_train.max() == 255 and digits.x_train.min() == 0
    for label in range(10):
        train, test = (np.sum(y == label) for y in (digits.y_train, digits.y_test))
        assert 2 * test - 1 <= train <= 2 * test + 2


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("y_test"), r"cifar10\.npz has no array y_test"),
        (lambda a: a.update(x_train=a["x_train"][..., 0]), r"x_train has shape \(6, 32, 32\), exp"),
        (lambda a: a.update(x_test=a["x_test"].astype(float)), "x_test has dtype float64"),
        (lambda a: a.update(y_train=a["y_train"] + 8), r"y_train has class 13, expected 0\.\.9"),
        (
            lambda a: a.update(y_train=a["y_train"][:4]),
            r"of shape \(4,\), expected 6 class numbers",
        ),
        (lambda a: a.update(y_test=a["y_test"] / 2), "y_test is float64"),
        (lambda a: a.update(x_test=a["x_test"][:0]), r"x_test has shape \(0, 32, 32, 3\)"),
    ],
)
def test_wrong_arrays_are_named(change, message, tmp_path):
    arrays = small_arrays("cifar10")
    change(arrays)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 10, 500, -10, -100])
def test_truncated_npz_is_named(tmp_path, keep):
    path = tmp_path / "mnist.npz"
    np.savez(path, **small_arrays("mnist"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"mnist\.npz is damaged.*delete it"):
        load_dataset("mnist", tmp_path)


def test_a_damaged_file_that_cannot_be_downloaded_is_named(tmp_path):
    (tmp_path / "tiny_imagenet.npz").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"tiny_imagenet\.npz is damaged.*delete it") as raised:
        load_test_images("tiny_imagenet", tmp_path)
    assert "y_train" not in str(raised.value) and "what to put there" in str(raised.value)
    (tmp_path / "tiny_imagenet.npz").unlink()
    with pytest.raises(DatasetError, match=r"put there an \.npz with uint8 x_test"):
        load_test_images("tiny_imagenet", tmp_path)


def test_an_npz_with_pickles_is_not_unpickled(tmp_path):
    arrays = small_arrays("mnist") | {"x_train": np.array([object()])}
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(DatasetError, match="damaged"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
        (lambda path: path.write_bytes(b"plain"), "damaged"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\1\0\0\0\0")), "no IDX file"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\3\0\0\0\1")), "announces"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\3\0\0")), "announces"),
        (lambda path: path.unlink(), "lacks t10k-images"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    write_idx(tmp_path / "mnist", small_arrays("mnist"))
    damage(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(DatasetError, match=message):
        load_dataset("mnist", tmp_path)


def test_a_download_is_kept(tmp_path, monkeypatch):
    a = small_arrays("cifar100")
    calls = []

    def load_data(label_mode):
        calls.append(label_mode)
        return (a["x_train"], a["y_train"][:, None]), (a["x_test"], a["y_test"][:, None])

    monkeypatch.setattr(keras.datasets.cifar100, "load_data", load_data)
    first = load_dataset("cifar100", tmp_path / "new")
    second = load_dataset("cifar100", tmp_path / "new")
    assert calls == ["coarse"]
    np.testing.assert_array_equal(first.x_train, second.x_train)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["cifar100.npz"]


def test_two_that_miss_a_data_set_download_it_once(tmp_path, monkeypatch):
    a, calls, started = small_arrays("cifar10"), [], threading.Event()

    def load_data():
        calls.append(0)
        started.set()
        time.sleep(0.5)
        return (a["x_train"], a["y_train"]), (a["x_test"], a["y_test"])

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", load_data)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(load_dataset, "cifar10", tmp_path)
        assert started.wait(60)
        second = load_dataset("cifar10", tmp_path)
        np.testing.assert_array_equal(first.result().x_train, second.x_train)
    assert len(calls) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["cifar10.npz"]


def test_a_download_that_fails_says_what_to_put_where(tmp_path, monkeypatch):
    def load_data():
        raise OSError("no route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(DatasetError, match=r"no route to host.*put .*mnist\.npz there.*four \.gz"):
        load_dataset("mnist", tmp_path)
    assert not list(tmp_path.iterdir())


def test_cats_vs_dogs_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cats_vs_dogs, "N_TRAIN", 3)
    monkeypatch.setattr(cats_vs_dogs, "N_TEST", 2)
    with pytest.raises(DatasetError, match="cats_vs_dogs FOLDER"):
        load_dataset("cats_vs_dogs", tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for name, shade in (("cat", 10), ("dog", 100)):
        for i in range(12):
            size = (64 + 7 * i, 90) if i % 2 else (200, 128)
            Image.new("RGB", size, (shade + i,) * 3).save(folder / f"{name}.{i}.jpg")
    (folder / "cat.1.jpg").write_bytes(b"broken")
    (folder / "cat.x.jpg").write_bytes(b"no number")
    build_cats_vs_dogs(folder, tmp_path)
    data = load_dataset("cats_vs_dogs", tmp_path)
    assert data.x_train.shape == (6, 64, 64, 3)
    shades = [data.x_train[data.y_train == k].mean((1, 2, 3)).round().tolist() for k in (0, 1)]
    assert shades == [[10, 12, 13], [100, 101, 102]]  # by number, the broken one passed over
    assert data.x_test[data.y_test == 0].mean((1, 2, 3)).round().tolist() == [14, 15]
    command = [sys.executable, "-m", "utils.datasets", "cats_vs_dogs", folder]
    command += ["--data-dir", tmp_path / "new"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.startswith("error: ")
    assert "12 readable cat.N.jpg or Cat/N.jpg files, expected 12499" in result.stderr


@pytest.mark.parametrize("inside", [True, False])
def test_cats_vs_dogs_from_folders_by_class(tmp_path, monkeypatch, inside):
    """As in today's archive, of which a file of each class is broken, and lacking in the test."""
    monkeypatch.setattr(cats_vs_dogs, "N_TRAIN", 3)
    monkeypatch.setattr(cats_vs_dogs, "N_TEST", 2)
    folder = tmp_path / "archive" / "PetImages"
    for name, shade in (("Cat", 10), ("Dog", 100)):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (80, 70), (shade + i,) * 3).save(folder / name / f"{i}.jpg")
        (folder / name / "Thumbs.db").write_bytes(b"no image")
    (folder / "Cat" / "1.jpg").write_bytes(b"")
    (folder / "Dog" / "2.jpg").write_bytes((folder / "Dog" / "2.jpg").read_bytes()[:300])
    build_cats_vs_dogs(folder if inside else folder.parent, tmp_path)
    data = load_dataset("cats_vs_dogs", tmp_path)
    shades = [data.x_train[data.y_train == k].mean((1, 2, 3)).round().tolist() for k in (0, 1)]
    assert shades == [[10, 12, 13], [100, 101, 103]]
    assert data.x_test.mean((1, 2, 3)).round().tolist() == [14, 104]
    (folder / "Cat" / "0.jpg").unlink()
    with pytest.raises(ImageError, match=r"has 3 readable cat\.N\.jpg or Cat/N\.jpg files, exp"):
        build_cats_vs_dogs(folder, tmp_path)
    shutil.copytree(folder, folder.with_name("PetImages (1)"))
    with pytest.raises(ImageError, match=r"some numbers of \*/Cat/\*\.jpg twice"):
        build_cats_vs_dogs(folder.parent, tmp_path)


def test_the_output_is_tried_before_the_images_are_read(tmp_path):
    (tmp_path / "cats_vs_dogs.npz").mkdir()
    with pytest.raises(ValueError, match=r"cats_vs_dogs\.npz is there and is no file"):
        build_cats_vs_dogs(tmp_path / "none", tmp_path)


def test_resizing_is_by_area_and_centred(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    small = resize_and_crop(tmp_path / "a.png", 64)
    expected = image[:, 16:144].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - expected).max() <= 1


@pytest.mark.parametrize(
    "height, width", [(13, 13), (13, 29), (31, 17), (8, 23), (5, 7), (3, 40), (1, 9), (20, 33)]
)
def test_parts_of_pixels_count_by_their_area_and_sizes_are_rounded_down(tmp_path, height, width):
    """Each old pixel is made of small equal ones, so many that a new one is a block of them."""
    side = 8
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    new_height, new_width = (int(side * n / min(height, width)) for n in (height, width))
    fine = image.repeat(new_height, axis=0).repeat(new_width, axis=1).astype(float)
    whole = fine.reshape(new_height, height, new_width, width, 3).mean((1, 3))
    top, left = (new_height - side) // 2, (new_width - side) // 2
    expected = whole[top : top + side, left : left + side]
    assert min(new_height, new_width) == side == len(expected) == expected.shape[1]
    # half of a step by rounding, and what rounding of the sum may decide at a tie
    assert np.abs(resize_and_crop(tmp_path / "a.png", side) - expected).max() < 0.5 + 1e-9


def test_a_strip_takes_no_more_memory_than_its_centre(tmp_path):
    Image.new("RGB", (20_000, 1), (5, 6, 7)).save(tmp_path / "a.png")
    assert (resize_and_crop(tmp_path / "a.png", 64) == (5, 6, 7)).all()


def test_unknown_names_are_refused():
    with pytest.raises(DatasetError, match="unknown data set 'cifar'; known are digits, cifar10"):
        load_dataset("cifar")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_the_real_data(name):
    path = ROOT / "data" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there: see README on getting {name}")
    data = load_dataset(name, ROOT / "data")
    sizes = {"mnist": (60_000, 10_000), "fashion_mnist": (60_000, 10_000)}
    sizes |= {"cats_vs_dogs": (20_000, 5_000)}
    n_train, n_test = sizes.get(name, (50_000, 10_000))
    lacking = 2 * cats_vs_dogs.N_BROKEN if name == "cats_vs_dogs" else 0
    assert len(data.x_train) == n_train and n_test - lacking <= len(data.x_test) <= n_test
    counts = np.bincount(data.y_test)
    assert name == "mnist" or len(set(counts.tolist())) == 1


def test_a_random_part_is_the_same_for_images_and_labels():
    x, y = np.arange(200).reshape(100, 2), np.arange(100)
    part = datasets.random_part(y, 30, seed=0)
    assert len(set(part.tolist())) == 30 and (np.diff(part) > 0).all()
    np.testing.assert_array_equal(datasets.random_part(x, 30, seed=0), x[part])
    assert not np.array_equal(datasets.random_part(y, 30, seed=1), part)
    assert datasets.random_part(x, None, 0) is x and datasets.random_part(x, 100, 0) is x
