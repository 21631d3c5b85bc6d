"""A batch of images, each under another of the 72 transformations, against a loop over images.

    python -m benchmarks.transformations

The loops treat one image after another: SciPy's `affine_transform` on each channel, which is how
libraries for data augmentation shift an image, or NumPy's padding and slicing; then flips and
quarter turns by NumPy. All sides must give the same pixels. The layer is compiled alone; its share,
and that of the random views that `best` trains on, is of a training step of the paper's network on
as many images.
"""

import numpy as np
import tensorflow as tf
from scipy.ndimage import affine_transform

from benchmarks.options import plain_parser
from benchmarks.timing import medians, seconds_of
from benchmarks.training_step import fixed_batch_step
from models.augmentation import random_views
from models.transformation_detector import TransformationDetector
from transformations import Transformation, Transformer, TransformLayer
from utils.device import PRECISIONS, device_name


def main() -> None:
    """Print images/s of every side, the ratios, and the layer's share of a training step."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--images", type=int, default=128, help="a batch (default: 128)")
    add("--repeats", type=int, default=20, help="default: 20")
    add("--precision", choices=PRECISIONS, default="auto", help="of the training step")
    options = parser.parse_args()

    transformer, rng = Transformer(), np.random.default_rng(0)
    x = rng.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    t = rng.integers(0, len(transformer), options.images).astype(np.int32)
    each = [transformer.transformations[i] for i in t]
    layer = TransformLayer(transformer.transformations)
    compiled, tensors = tf.function(layer), [tf.constant(x), tf.constant(t)]
    outputs = {
        "SciPy, image by image": lambda: loop(scipy_shift, x, each),
        "NumPy, image by image": lambda: loop(numpy_shift, x, each),
        "transform_batch": lambda: transformer.transform_batch(x, t),
        "TransformLayer": lambda: compiled(tensors).numpy(),
    }
    expected = outputs["SciPy, image by image"]()
    for name, output in outputs.items():
        np.testing.assert_array_equal(output(), expected, err_msg=name)

    detector = TransformationDetector(precision=options.precision)
    calls = {"SciPy, image by image": 1, "NumPy, image by image": 1}
    sides = {
        name: lambda name=name: seconds_of(outputs[name], calls.get(name, 20)) for name in outputs
    }
    sides["random_views"] = lambda: seconds_of(lambda: random_views(x, rng), 20)
    step = fixed_batch_step(detector, options.images)
    sides["training step"] = lambda: seconds_of(step)
    found = medians(sides, options.repeats)

    print(f"{device_name()}\n{options.images} images of 32x32x3 bytes, {len(transformer)} kinds")
    slow = found["SciPy, image by image"]
    for name in outputs:
        print(f"{name:24}{options.images / found[name]:12,.0f} images/s{slow / found[name]:8.1f} x")
    for name in ("TransformLayer", "random_views"):
        share = 100 * found[name] / found["training step"]
        print(f"{name}: {share:.2f} % of a training step in {detector.precision_}")


def loop(shift, x: np.ndarray, each: list[Transformation]) -> np.ndarray:
    """Every image flipped, shifted and turned by itself."""
    moved = []
    for image, (flip, tx, ty, k) in zip(x, each, strict=True):
        image = np.fliplr(image) if flip else image
        image = shift(image, tx, ty) if tx or ty else image
        moved.append(np.rot90(image, k))
    return np.stack(moved)


def scipy_shift(image: np.ndarray, tx: int, ty: int) -> np.ndarray:
    """By linear interpolation of every channel, which is exact for whole pixels."""
    channels = [
        affine_transform(image[..., c], np.eye(2), (tx, ty), order=1, mode="reflect")
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def numpy_shift(image: np.ndarray, tx: int, ty: int) -> np.ndarray:
    """By a slice of the image that is continued by reflection."""
    height, width, _ = image.shape
    padded = np.pad(image, [(abs(tx),) * 2, (abs(ty),) * 2, (0, 0)], mode="symmetric")
    return padded[abs(tx) + tx :, abs(ty) + ty :][:height, :width]


if __name__ == "__main__":
    main()
