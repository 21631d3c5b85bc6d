"""Scoring images by WRN-10-4 under 72 transformations, against the network's bare forward passes.

    python -m benchmarks.scoring

The bare side is the compiled network on transformed, scaled images that are there already, in
batches of 576, one after another. The detector transforms them, takes logarithms of the responses
and adds up all scores, in batches of other sizes too. Sides take turns, and medians are printed.
"""

import argparse
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.timing import medians, seconds_of
from models.transformation_detector import SCORING_BATCH, TransformationDetector
from utils.backend import PRECISIONS, device_name, use_xla


def main() -> None:
    """Print forward passes a second of every side, and the overhead."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=int, default=96, help="to score in a turn (default: 96)")
    add("--batches", type=int, nargs="+", default=[72, 144, 288, SCORING_BATCH, 1152, 2304])
    add("--repeats", type=int, default=5, help="turns of each side (default: 5)")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    sides = {}
    for batch in options.batches:
        with mock.patch("models.transformation_detector.SCORING_BATCH", batch):
            detector = TransformationDetector(precision=options.precision, epochs=0.01, verbose=0)
            detector.fit(x)
        sides[f"detector, batches of {batch}"] = lambda detector=detector: seconds_of(
            lambda: detector.score_variants(x)
        )
    sides["bare forward passes"] = bare(detector.network_, len(x) * 72)
    found = medians(sides, options.repeats)
    print(f"{device_name()}, {detector.precision_}")
    forward = found["bare forward passes"]
    for name, seconds in found.items():
        overhead = 100 * (seconds / forward - 1)
        print(f"{name:30}{72 * len(x) / seconds:8.0f} passes/s{overhead:+8.1f} %")


def bare(network, passes: int):
    """A side: that many forward passes on one batch, again and again."""
    images = tf.random.uniform((SCORING_BATCH, 32, 32, 3), -1, 1)
    forward = tf.function(lambda: network(images, training=False), jit_compile=use_xla())
    return lambda: (
        seconds_of(lambda: forward().numpy(), passes // SCORING_BATCH) * (passes // SCORING_BATCH)
    )


if __name__ == "__main__":
    main()
