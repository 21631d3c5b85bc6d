import numpy as np

from models.augmentation import random_views


def test_views_are_mirrored_and_shifted_with_reflection():
    """Each is a window of the padded image, or its mirror image; all are equally likely."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, 16, 24, 3), np.uint8)
    padded = np.pad(x[0], ((2, 2), (3, 3), (0, 0)), mode="symmetric")
    windows = [padded[i : i + 16, j : j + 24] for i in range(5) for j in range(7)]
    # the mirror image of a shifted image is the mirror image shifted the other way
    possible = {each.tobytes(): i for i, each in enumerate(windows + [w[:, ::-1] for w in windows])}
    assert len(possible) == 70
    views = random_views(np.repeat(x, 7000, axis=0), rng)
    assert views.dtype == x.dtype and views.shape == (7000, 16, 24, 3)
    counts = np.bincount([possible[each.tobytes()] for each in views], minlength=70)
    assert ((counts > 50) & (counts < 170)).all()  # 100 each, 10 their standard deviation


def test_each_image_has_its_own_view_and_the_generator_decides():
    x = np.arange(5 * 16 * 16, dtype=np.float32).reshape(5, 16, 16, 1)
    one, same = (random_views(x, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert all(np.isin(view, image).all() for view, image in zip(one, x, strict=True))
    assert (one != random_views(x, np.random.default_rng(4))).any()


def test_images_too_small_to_shift_are_mirrored_at_most():
    x = np.arange(100 * 16, dtype=np.uint8).reshape(100, 4, 4, 1)
    mirrored = (random_views(x, np.random.default_rng(0)) == x[:, :, ::-1]).all((1, 2, 3))
    assert 20 < mirrored.sum() < 80
