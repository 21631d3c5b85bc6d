"""How `detect.py fit --region whole` should make a square of a wide image: squeezed or padded.

    python -m benchmarks.whole --images digits --side 16 --seeds 0,1

Images twice as wide as high: a four beside a seven (16x32), a t-shirt beside a trouser (32x64), the
middle rows of automobiles (16x32) or of dogs (32x64). Odd are those where one of the two is another
digit or garment, and those of other classes. They become squares squeezed, padded by black bands,
and by mirror images. Prints the AUROC, in percent, of normal and as many odd ones after training on
1,200, by recipe `fast` with widen_factor 1, a line a seed.
"""

import numpy as np
from PIL import Image

from benchmarks.options import plain_parser
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils.commands import file_path
from utils.datasets import load_dataset
from utils.metrics import auroc

IMAGES = {
    "digits": ("digits", 4, 7),
    "garments": ("fashion_mnist", 0, 1),
    "automobiles": ("cifar10", 1, None),
    "dogs": ("cats_vs_dogs", 1, None),
}
"""The data set, its normal class, and that of the image beside it."""

TRAINED = 1200


def main() -> None:
    """The command at the head of this file."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--data-dir", type=file_path, default="data", help="where data sets lie (default: data)")
    add("--images", choices=IMAGES, default="digits", help="default: digits")
    add("--side", type=int, default=32, help="of the squares, in pixels (default: 32)")
    add("--seeds", default="0", help="separated by commas (default: 0)")
    add("--samples", type=int, default=20_000, help="of a training (default: 20000)")
    add("--tested", type=int, default=200, help="normal, and odd, images (default: 200)")
    options = parser.parse_args()
    recipe = RECIPES["fast"] | {"widen_factor": 1, "samples": options.samples}
    for seed in map(int, options.seeds.split(",")):
        parts = wide_images(options, seed)
        found = {}
        for name, square in SQUARES.items():
            x, normal, odd = (np.stack([square(i, options.side) for i in part]) for part in parts)
            detector = TransformationDetector(**recipe, seed=seed, verbose=0).fit(x)
            scores = detector.score_samples(np.concatenate([normal, odd]))
            found[name] = 100 * auroc(np.arange(len(scores)) < len(normal), scores)
        values = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(f"{options.images}, seed {seed}: {values}", flush=True)


def wide_images(options, seed: int) -> list[np.ndarray]:
    """Random images (n, h, 2h, 1 or 3): to train on, normal ones and odd ones to test."""
    dataset, label, right = IMAGES[options.images]
    data, rng = load_dataset(dataset, options.data_dir), np.random.default_rng(seed)

    def some(x, chosen, n):  # again and again where there are fewer
        return x[rng.permutation(np.resize(rng.permutation(np.flatnonzero(chosen)), n))]

    def normal(x, y, n, label):
        return some(x, y == label, n)

    train, test, n = (data.x_train, data.y_train), (data.x_test, data.y_test), options.tested
    parts = [normal(*train, TRAINED, label), normal(*test, n, label)]
    parts.append(some(data.x_test, ~np.isin(data.y_test, [label, right]), n))
    if right is None:
        quarter = data.x_train.shape[1] // 4
        return [x[:, quarter:-quarter] for x in parts]
    beside = [normal(*train, TRAINED, right), normal(*test, n, right), normal(*test, n, right)]
    half = n // 2  # of the odd pairs are odd at the left, the others at the right
    parts[2][half:], beside[2][half:] = parts[1][half:], parts[2][half:].copy()
    return [np.concatenate(pair, axis=2) for pair in zip(parts, beside, strict=True)]


def squeezed(image: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """An image (h, w, c) at height x width pixels, the height being the width where not given."""
    size = width, height or width
    made = Image.fromarray(image.squeeze()).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(made).reshape(*size[::-1], -1)


def padded(image: np.ndarray, side: int, **how) -> np.ndarray:
    """An image twice as wide as high at side x side pixels, with bands above and below."""
    band = side // 4
    return np.pad(squeezed(image, side, side // 2), [(band, band), (0, 0), (0, 0)], **how)


SQUARES = {
    "squeezed": squeezed,
    "padded": padded,
    "mirrored": lambda image, side: padded(image, side, mode="symmetric"),
}


if __name__ == "__main__":
    main()
