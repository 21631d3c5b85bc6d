"""The geometric transformations of section 4.1: horizontal flip, translation and rotation.

Every transformation only moves pixels, so it is an index map: entry p of the map names the source
pixel of output pixel p. A map is made once, by transforming the image whose pixels are 0, 1, 2 and
so on; applying a batch of different transformations is then one gather, exact for every dtype.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops


class Transformation(NamedTuple):
    """Flip, then translate, then rotate; the defaults are the identity.

    flip mirrors left and right. tx and ty move the content by whole pixels, so that
    output[r, c] = input[r + tx, c + ty], with half-sample symmetric reflection at the borders
    (d c b a | a b c d | d c b a). k rotates by k * 90 degrees counter-clockwise.
    """

    flip: bool = False
    tx: int = 0
    ty: int = 0
    k: int = 0

    @property
    def name(self) -> str:
        """For example `flip, translate (-8, 0), rotate 270`; `identity` where nothing happens."""
        parts = [
            "flip" if self.flip else "",
            f"translate ({self.tx:+d}, {self.ty:+d})" if self.tx or self.ty else "",
            f"rotate {90 * self.k}" if self.k else "",
        ]
        return ", ".join(part for part in parts if part) or "identity"


class TransformationSet:
    """A list T_0, ..., T_{k-1} of transformations, applied by index.

    transformations: (flip, tx, ty, k) tuples in the order of their labels. Section 6 needs, for
    example, `[(False, 0, 0, 0), (True, 0, 0, 0)]`, the identity and the flip.

    Raises ValueError for an empty list, for a translation that is no whole number and for a
    rotation outside 0..3.
    """

    def __init__(self, transformations: Sequence[tuple[bool, int, int, int]]):
        self.transformations = [Transformation(*each) for each in transformations]
        if not self.transformations:
            raise ValueError("a set of transformations needs at least one, got none")
        for each in self.transformations:
            whole = all(isinstance(v, int | np.integer) for v in (each.tx, each.ty, each.k))
            if not whole or each.flip not in (False, True) or each.k not in range(4):
                raise ValueError(
                    f"transformation {tuple(each)}: expected (flip, tx, ty, k) with flip True or "
                    "False, tx and ty whole pixels, and k quarter turns in 0..3"
                )

    def __len__(self) -> int:
        return len(self.transformations)

    @property
    def n_transforms(self) -> int:
        """The number of transformations, |T|: also the number of classes to tell apart."""
        return len(self.transformations)

    @property
    def names(self) -> list[str]:
        """A readable name for each index."""
        return [each.name for each in self.transformations]

    def to_list(self) -> list[list]:
        """The (flip, tx, ty, k) of each as plain values, fit for JSON and for the constructor."""
        return [[bool(flip), int(tx), int(ty), int(k)] for flip, tx, ty, k in self.transformations]

    def index_maps(self, height: int, width: int) -> np.ndarray:
        """The source pixel of every output pixel, (n_transforms, height * width) int32.

        Raises ValueError where the set has quarter turns and the image is not square, or where a
        translation is not smaller than the image.
        """
        shift = [max(abs(t[i]) for t in self.transformations) for i in (1, 2)]
        if shift[0] >= height or shift[1] >= width:
            raise ValueError(
                f"translations of up to {shift[0]} rows and {shift[1]} columns need larger images "
                f"than {height}x{width}; choose smaller translations"
            )
        if height != width and any(t.k for t in self.transformations):
            raise ValueError(
                f"rotations need square images, got {height}x{width}; crop or resize the images, "
                "or use a set without rotations"
            )
        pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)
        return np.stack([_transform(pixels, each).ravel() for each in self.transformations])

    def transform_batch(self, x: np.ndarray, t_inds: Sequence[int]) -> np.ndarray:
        """Image i under transformation t_inds[i]: (n, h, w, c) of any dtype to the same.

        Raises ValueError where x is no batch of images, t_inds does not hold one index for each, or
        an index is outside 0..n_transforms - 1.
        """
        x = np.asarray(x)
        if x.ndim != 4:
            raise ValueError(f"expected images of shape (n, h, w, c), got {x.shape}")
        t_inds = self._check_indices(t_inds, len(x))
        n, height, width, channels = x.shape
        source = self.index_maps(height, width)[t_inds, :, None]
        flat = x.reshape(n, height * width, channels)
        return np.take_along_axis(flat, source, axis=1).reshape(x.shape)

    def _check_indices(self, t_inds, n: int) -> np.ndarray:
        t_inds = np.asarray(t_inds)
        if t_inds.shape != (n,) or (n and not np.issubdtype(t_inds.dtype, np.integer)):
            raise ValueError(
                f"expected {n} whole-number transformation indices, one for each image, "
                f"got {t_inds.dtype} of shape {t_inds.shape}"
            )
        wrong = t_inds[(t_inds < 0) | (t_inds >= len(self))]
        if wrong.size:
            raise ValueError(
                f"transformation index {wrong[0]} is outside 0..{len(self) - 1}, "
                f"the indices of this set of {len(self)}"
            )
        return t_inds.astype(np.int64)


class Transformer(TransformationSet):
    """The paper's 72 transformations (section 6): every flip x translation x rotation.

    translation_x moves along rows, translation_y along columns, in pixels: 8 for 32x32 images and
    16 for 64x64. The rotation varies fastest, then the translations; index 0 is the identity.
    """

    def __init__(self, translation_x: int = 8, translation_y: int = 8):
        rows, columns = ((0, -t, t) for t in (translation_x, translation_y))
        super().__init__(list(itertools.product((False, True), rows, columns, range(4))))


class SimpleTransformer(TransformationSet):
    """The 8 transformations without translation: every flip x rotation."""

    def __init__(self):
        super().__init__([(flip, 0, 0, k) for flip in (False, True) for k in range(4)])


class Rotations(TransformationSet):
    """The four rotations, by quarter turns, and nothing else."""

    def __init__(self):
        super().__init__([(False, 0, 0, k) for k in range(4)])


@keras.saving.register_keras_serializable("geometric_transformations")
class TransformLayer(keras.layers.Layer):
    """`TransformationSet.transform_batch` on the device, inside a compiled model.

    Called on [images, t]: images (n, h, w, c) of any dtype, t (n,) of any integer dtype. Returns
    the transformed images. Indices given as NumPy arrays or lists are checked; inside a compiled
    step, where nothing can be raised, they must already lie in 0..n_transforms - 1.
    """

    def __init__(self, transformations: Sequence[tuple[bool, int, int, int]], **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.transformations = TransformationSet(transformations)

    def build(self, input_shape):
        (_, height, width, _), _ = input_shape
        self._maps = self.transformations.index_maps(height, width)

    def __call__(self, inputs, *args, **kwargs):
        images, t = inputs
        if isinstance(t, np.ndarray | list | tuple):
            t = self.transformations._check_indices(t, len(images))
        return super().__call__([images, t], *args, **kwargs)

    def call(self, inputs):
        images, t = inputs
        _, height, width, channels = images.shape
        n = ops.shape(images)[0]
        source = ops.take(ops.convert_to_tensor(self._maps), ops.reshape(t, (-1,)), axis=0)
        rows = source + ops.expand_dims(ops.arange(n, dtype="int32") * (height * width), 1)
        flat = ops.reshape(images, (-1, channels))
        moved = ops.take(flat, ops.reshape(rows, (-1,)), axis=0)
        return ops.reshape(moved, (-1, height, width, channels))

    def compute_output_spec(self, inputs):
        images, _ = inputs
        return keras.KerasTensor(images.shape, dtype=images.dtype)

    def get_config(self):
        return {**super().get_config(), "transformations": self.transformations.to_list()}


def all_transformed(images, index_maps: np.ndarray):
    """Every image of a symbolic batch (n, h, w, c) under every map: (n * k, h, w, c), k fastest."""
    _, height, width, channels = images.shape
    flat = ops.reshape(images, (-1, height * width, channels))
    moved = ops.take(flat, ops.convert_to_tensor(index_maps.ravel()), axis=1)
    return ops.reshape(moved, (-1, height, width, channels))


def _transform(image: np.ndarray, transformation: Transformation) -> np.ndarray:
    flip, tx, ty, k = transformation
    if flip:
        image = image[:, ::-1]
    height, width = image.shape
    padded = np.pad(image, [(abs(tx), abs(tx)), (abs(ty), abs(ty))], mode="symmetric")
    image = padded[abs(tx) + tx :, abs(ty) + ty :][:height, :width]
    return np.rot90(image, k)
