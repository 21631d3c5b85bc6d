"""Scoring images by WRN-10-4 under 72 transformations, against the network's bare forward passes.

    python -m benchmarks.scoring

The bare side is the compiled network on transformed, scaled images that are there already, a batch
after another. The detector transforms them, takes logarithms of the responses and adds up all
scores. Sides take turns, and the medians for batches of several sizes are printed.
"""

from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.options import plain_parser
from benchmarks.timing import medians, seconds_of
from models.transformation_detector import TransformationDetector
from utils.device import PRECISIONS, device_name, use_xla


def main() -> None:
    """Print forward passes a second of every side, and the overhead."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--images", type=int, default=96, help="to score in a turn (default: 96)")
    add("--batches", type=int, nargs="+", default=[72, 144, 576])
    add("--repeats", type=int, default=5, help="turns of each side (default: 5)")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    sides = {}
    for batch in options.batches:
        scoring_batch = mock.Mock(return_value=batch)
        with mock.patch("models.transformation_detector.scoring_batch", scoring_batch):
            detector = TransformationDetector(precision=options.precision, epochs=0.01, verbose=0)
            detector.fit(x)
        sides["detector", batch] = lambda detector=detector: seconds_of(lambda: detector.scores(x))
        sides["bare", batch] = bare(detector.network_, batch, len(x) * 72)
    found = medians(sides, options.repeats)
    print(f"{device_name()}, {detector.precision_}; forward passes a second")
    print(f"{'batch':>8}{'bare':>10}{'detector':>10}{'overhead':>12}")
    for batch in options.batches:
        forward, scoring = found["bare", batch], found["detector", batch]
        print(
            f"{batch:8}{72 * len(x) / forward:10.0f}{72 * len(x) / scoring:10.0f}"
            f"{100 * (scoring / forward - 1):+10.1f} %"
        )


def bare(network, batch: int, passes: int):
    """A side: so many forward passes on one batch, again and again."""
    images = tf.random.uniform((batch, 32, 32, 3), -1, 1)
    forward = tf.function(lambda: network(images, training=False), jit_compile=use_xla())
    calls = passes // batch
    return lambda: seconds_of(lambda: forward().numpy(), calls) * calls


if __name__ == "__main__":
    main()
