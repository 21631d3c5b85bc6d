"""Random views of images, which a network is trained on instead of the images themselves."""

import numpy as np

SHIFT = 1 / 8
"""How far a view is shifted at most, as a share of the image's side."""


def random_views(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Copies of images x (n, h, w, c), half of them mirrored, each shifted another way.

    Rows and columns move by whole pixels, up to SHIFT of their number, all equally likely, with
    half-sample symmetric reflection at the borders, as translations have in `transformations`.
    """
    rows, columns = (_moved(len(x), side, rng) for side in x.shape[1:3])
    columns = np.where(rng.random((len(x), 1)) < 0.5, columns[:, ::-1], columns)
    return x[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _moved(n, side, rng):
    """n times from where each of so many pixels in a row comes, (n, side)."""
    most = int(SHIFT * side)
    source = np.arange(side) + rng.integers(-most, most, (n, 1), endpoint=True)
    return np.where(source < 0, -1 - source, np.minimum(source, 2 * side - 1 - source))
