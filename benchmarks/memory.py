"""Peak memory of training on one class of CIFAR-10's size and scoring: what it depends on.

    python -m benchmarks.memory

Every line is measured in a process of its own: WRN-10-4, batches of 128, 5,000 training images,
then alpha, then the test images' scores. Training lasts some steps, alpha takes 500 images: neither
holds more for going on longer. The last line is of many fits in one process, as a search over
settings makes them.
"""

import gc
import subprocess
import sys

import numpy as np

from benchmarks.options import plain_parser
from models.transformation_detector import TransformationDetector
from transformations import Rotations, SimpleTransformer, TransformationSet, Transformer
from utils.device import PRECISIONS, device_name, peak_memory
from utils.startup import proc_field

SETS = {
    4: Rotations(),
    8: SimpleTransformer(),
    72: Transformer(),
    200: TransformationSet(
        [
            (flip, tx, ty, k)
            for flip in (False, True)
            for tx in range(-8, 9, 4)
            for ty in range(-8, 9, 4)
            for k in range(4)
        ]
    ),
}


def main() -> None:
    """Print the peaks, for growing sets of transformations and of test images."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    add("--measure", type=int, nargs=2, help="transformations and test images: that line alone")
    add("--fits", type=int, help="so many fits in one process: that line alone")
    options = parser.parse_args()
    if options.fits:
        measure_fits(options.fits)
        return
    if options.measure:
        measure(*options.measure, options.precision)
        return
    print(device_name())
    for n_transforms, n_test in [(4, 100), (8, 100), (72, 100), (200, 100), (72, 500)]:
        command = [sys.executable, "-m", "benchmarks.memory", "--precision", options.precision]
        subprocess.run([*command, "--measure", str(n_transforms), str(n_test)], check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.memory", "--fits", "40"], check=True)


def measure_fits(fits: int) -> None:
    """Print how much memory is held after each tenth of the fits of a small network."""
    x = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
    held = []
    for _ in range(fits):
        TransformationDetector("simple", widen_factor=1, epochs=0.2, verbose=0).fit(x)
        gc.collect()
        held.append(int(proc_field("VmRSS", "self/status").split()[0]) / 2**10)
    shown = held[:: max(1, fits // 10)]
    print(
        f"{fits} fits in one process: {', '.join(f'{each:.0f}' for each in shown)} "
        f"MiB held on the way, {(held[-1] - held[0]) / max(1, fits - 1):.1f} MiB more with each fit"
    )


def measure(n_transforms: int, n_test: int, precision: str) -> None:
    """Print this process's peak after each part of the work."""
    rng = np.random.default_rng(0)
    x, x_test = (rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in (5000, n_test))
    start = peak_memory()
    steps = 40 * 128 / (len(x) * n_transforms)
    detector = TransformationDetector(
        SETS[n_transforms], epochs=steps, alpha_images=500, precision=precision, verbose=0
    ).fit(x)
    trained = peak_memory()
    detector.score_samples(x_test)
    print(
        f"{detector.precision_}, {n_transforms:3} transformations, {n_test:5} test images: peak "
        f"{peak_memory() / 2**30:.2f} GiB; {trained / 2**30:.2f} before the test images, "
        f"{start / 2**30:.2f} with the libraries alone",
        flush=True,
    )


if __name__ == "__main__":
    main()
