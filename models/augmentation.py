"""Random views of images: crops, mirror images, other colours, as a few products of matrices."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

NUMBERS = 9
"""Uniform numbers from [0, 1) that make one view."""

TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32
)
"""From RGB to luma and two numbers of chroma, whose angle is the hue and whose size the colour."""


@keras.saving.register_keras_serializable("geometric_transformations")
class RandomViews(keras.layers.Layer):
    """Images (n, h, w, c) in [-1, 1] and uniform numbers (n, NUMBERS) to views (n, h, w, c).

    A view is a part of the image, whose sides are `crop` to 1 times the image's, resized to the
    image's size by linear interpolation, and, where flip is, mirrored in half the cases.
    Brightness, contrast and, of RGB images, colourfulness are multiplied by 1 - jitter to
    1 + jitter, the hue is turned by up to +-hue times 360 degrees, the share grey becomes grey.

    Where the numbers come from the host, a training that was stopped goes on with the same views,
    on any backend.
    """

    def __init__(
        self,
        crop: float = 1.0,
        flip: bool = True,
        jitter: float = 0.4,
        hue: float = 0.2,
        grey: float = 0.2,
        **how,
    ):
        super().__init__(dtype="float32", **how)
        self.crop, self.flip, self.jitter, self.hue, self.grey = crop, flip, jitter, hue, grey

    def call(self, images, numbers):
        size, top, left, mirror, *colours = ops.unstack(numbers, NUMBERS, axis=1)
        size = self.crop + (1 - self.crop) * size
        rows = _resampling(size, top, images.shape[1])
        columns = _resampling(size, left, images.shape[2])
        if self.flip:
            columns = ops.where(mirror[:, None, None] < 0.5, columns[:, ::-1], columns)
        views = ops.einsum("nrh,nhwc->nrwc", rows, images)
        views = ops.einsum("nsw,nrwc->nrsc", columns, views)
        return self._recoloured(views, *colours)

    def _recoloured(self, x, brightness, contrast, colour, hue, grey):
        brightness, contrast, colour = (
            1 + self.jitter * (2 * each - 1) for each in (brightness, contrast, colour)
        )
        x = ops.clip((x + 1) / 2 * _per_image(brightness), 0, 1)
        luma = ops.einsum("nhwc,c->n", x, _luma(x.shape[-1]))
        mean = _per_image(luma / (x.shape[1] * x.shape[2]))
        x = ops.clip(mean + _per_image(contrast) * (x - mean), 0, 1)
        if x.shape[-1] == 3:
            colour = ops.where(grey < self.grey, 0.0, colour)
            x = ops.clip(ops.einsum("nhwc,ndc->nhwd", x, self._colours(colour, hue)), 0, 1)
        return 2 * x - 1

    def _colours(self, colour, hue):
        """The matrices (n, 3, 3) that turn and stretch chroma and leave luma as it is."""
        angle = 2 * np.pi * self.hue * (2 * hue - 1)
        cos, sin = colour * ops.cos(angle), colour * ops.sin(angle)
        one, zero = ops.ones_like(cos), ops.zeros_like(cos)
        rows = (one, zero, zero), (zero, cos, -sin), (zero, sin, cos)
        chroma = ops.stack([ops.stack(row, axis=1) for row in rows], axis=1)
        return ops.matmul(np.linalg.inv(TO_YIQ), ops.matmul(chroma, TO_YIQ))

    def get_config(self):
        return super().get_config() | {
            name: getattr(self, name) for name in ("crop", "flip", "jitter", "hue", "grey")
        }


def numbers_of_views(seed: int, epoch: int) -> Callable[[int, int], np.ndarray]:
    """From a batch's number in the epoch and its size n to its uniform numbers (n, NUMBERS)."""

    def numbers(index, size):
        return np.random.default_rng((seed, epoch, index)).random((size, NUMBERS), np.float32)

    return numbers


def _resampling(size, place, side):
    """Matrices (n, side, side): a part of `size` times the side, at `place` times the rest.

    Row i has the weights of the pixels, at most two, between which the part's pixel i lies.
    """
    i = np.arange(side, dtype=np.float32)
    start = (place * (1 - size) * side)[:, None]
    source = ops.clip(start + size[:, None] * (i + 0.5) - 0.5, 0, side - 1)
    return ops.relu(1 - ops.abs(source[..., None] - i))


def _luma(channels):
    return TO_YIQ[0] if channels == 3 else np.full(channels, 1 / channels, np.float32)


def _per_image(values):
    return values[:, None, None, None]
