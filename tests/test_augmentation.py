import keras
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import map_coordinates

from models.augmentation import NUMBERS, RandomViews

# size, top, left, mirror, brightness, contrast, colour, hue, grey: those that change nothing
SAME = np.array([1, 0, 0, 0.9, 0.5, 0.5, 0.5, 0.5, 0.9], np.float32)


def views(images, numbers, **how):
    made = RandomViews(**how)(images.astype("float32"), np.asarray(numbers, "float32"))
    return keras.ops.convert_to_numpy(made)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 226, (3, 4, 4, 3)).astype("uint8")
    return np.stack([np.asarray(Image.fromarray(each).resize((16, 16))) for each in coarse])


def to_range(images):
    return images.astype("float32") / 127.5 - 1


def changed(**numbers):
    names = ["size", "top", "left", "mirror", "brightness", "contrast", "colour", "hue", "grey"]
    new = SAME.copy()
    for name, value in numbers.items():
        new[names.index(name)] = value
    return np.tile(new, (3, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_that_change_nothing(images, channels):
    x = to_range(images)[..., :channels]
    assert len(SAME) == NUMBERS
    np.testing.assert_allclose(views(x, np.tile(SAME, (3, 1))), x, atol=1e-5)


def test_crops_are_resized_by_linear_interpolation(images):
    """Against SciPy's, at the same places; a part at the edge repeats the edge."""
    x, numbers = to_range(images), np.tile(SAME, (3, 1))
    numbers[:, :3] = [[0, 0, 0], [0.3, 0.2, 1], [0.9, 1, 0.4]]
    found = views(x, numbers, crop=0.4)
    i = np.arange(16) + 0.5
    for image, (size, top, left), view in zip(x, numbers[:, :3], found, strict=True):
        size = 0.4 + 0.6 * size
        rows, columns = (place * (1 - size) * 16 + size * i - 0.5 for place in (top, left))
        grid = np.meshgrid(rows, columns, indexing="ij")
        for channel in range(3):
            expected = map_coordinates(image[..., channel], grid, order=1, mode="nearest")
            np.testing.assert_allclose(view[..., channel], expected, atol=1e-4)


def test_mirror_images(images):
    x = to_range(images)
    np.testing.assert_allclose(views(x, changed(mirror=0.1)), x[:, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(views(x, changed(mirror=0.1), flip=False), x, atol=1e-5)


@pytest.mark.parametrize(
    "name, enhance",
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("colour", ImageEnhance.Color),
    ],
)
def test_brightness_contrast_and_colour_are_pillows(images, name, enhance):
    """Which rounds to bytes, and its mean too."""
    for number, factor in ((0.0, 0.6), (0.75, 1.2), (1.0, 1.4)):
        found = (views(to_range(images), changed(**{name: number}), jitter=0.4) + 1) * 127.5
        for image, view in zip(images, found, strict=True):
            expected = enhance(Image.fromarray(image)).enhance(factor)
            assert np.abs(np.asarray(expected, float) - view).max() < 2


def test_grey_is_luma_and_hue_turns_around_it(images):
    x = to_range(images)
    luma = x @ np.array([0.299, 0.587, 0.114])
    grey = views(x, changed(grey=0.1), grey=0.2)
    np.testing.assert_allclose(grey, np.repeat(luma[..., None], 3, axis=-1), atol=1e-4)
    np.testing.assert_allclose(views(x, changed(hue=1.0), hue=1.0), x, atol=1e-3)  # all around
    pale = 0.2 * x  # far from where a channel would be cut off
    turned = views(pale, changed(hue=0.8), hue=0.2)
    np.testing.assert_allclose(turned @ np.array([0.299, 0.587, 0.114]), 0.2 * luma, atol=1e-3)
    back = views(turned, changed(hue=0.2), hue=0.2)
    np.testing.assert_allclose(back, pale, atol=1e-3)
    assert np.abs(turned - pale).max() > 0.05
