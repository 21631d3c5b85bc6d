"""The one-class SVMs' grid of 90 settings: `RawOCSVM` against scikit-learn, setting by setting.

    python -m benchmarks.ocsvm_grid

Both sides get the training images of one class and the test set. The fast side is timed on the
whole grid. Of the slow side, `OneClassSVM(kernel="rbf")`, a random sample of the settings is fitted
on all training images, and each scores a random sample of the test images; the medians, that of the
scoring scaled to the whole test set, are taken times the number of settings.
"""

import time

import numpy as np
from sklearn.svm import OneClassSVM

from baselines.ocsvm import RawOCSVM
from benchmarks.options import data_parser
from utils.datasets import load_dataset
from utils.detector import to_unit_range
from utils.device import device_name, peak_memory


def main() -> None:
    """Time both sides and print the medians and their ratio."""
    parser = data_parser(__doc__)
    add = parser.add_argument
    add("--class-index", type=int, default=0, help="the normal class by number (default: 0)")
    add("--limit-train", type=int, help="train on the first N images of the class")
    add("--limit-test", type=int, help="score the first N images of the test set")
    add("--repeats", type=int, default=3, help="of the fast side (default: 3)")
    add("--settings", type=int, default=3, help="timed on the slow side (default: 3)")
    add("--slow-test", type=int, default=500, help="images scored there (default: 500)")
    options = parser.parse_args()

    data = load_dataset(options.dataset, options.data_dir)
    x = data.x_train[data.y_train == options.class_index][: options.limit_train]
    x_test = data.x_test[: options.limit_test]
    normal = data.y_test[: options.limit_test] == options.class_index
    rng = np.random.default_rng(0)
    some = x_test[rng.permutation(len(x_test))[: options.slow_test]]
    print(
        f"{device_name()}\n{options.dataset}, {data.class_names[options.class_index]}: "
        f"{len(x)} training images, {len(x_test)} to score"
    )

    fast = []
    for _ in range(options.repeats):
        detector = RawOCSVM(verbose=0).fit(x)
        detector.score_in_hindsight(x_test, normal)
        fast.append(sum(detector.seconds_.values()))
        parts = ", ".join(f"{part} {s:.1f} s" for part, s in detector.seconds_.items())
        print(f"RawOCSVM, whole grid: {fast[-1]:.1f} s ({parts})", flush=True)
    grid = [(nu, gamma) for nu in detector.nu_grid for gamma in detector.gamma_grid]
    print(f"peak memory {peak_memory() / 1e9:.1f} GB, data and libraries included", flush=True)

    fits, scorings, difference = [], [], 0.0
    pixels, some_pixels = (to_unit_range(a).reshape(len(a), -1).astype(float) for a in (x, some))
    for nu, gamma in (grid[i] for i in rng.permutation(len(grid))[: options.settings]):
        machine, start = OneClassSVM(nu=nu, gamma=gamma), time.perf_counter()
        machine.fit(pixels)
        fits.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = machine.decision_function(some_pixels)
        scorings.append((time.perf_counter() - start) * len(x_test) / len(some))
        ours = RawOCSVM(nu=nu, gamma=gamma, max_train=len(x), verbose=0).fit(x).score_samples(some)
        difference = max(difference, np.abs(ours - expected).max() / np.abs(expected).max())
        print(
            f"OneClassSVM, nu {nu}, gamma {gamma}: fit {fits[-1]:.1f} s, scoring {scorings[-1]:.1f}"
            f" s (from {len(some)} images)",
            flush=True,
        )

    slow = len(grid) * (np.median(fits) + np.median(scorings))
    print(f"largest relative difference of decision values: {difference:.1e}")
    print(
        f"median: RawOCSVM {np.median(fast):.1f} s; OneClassSVM {slow:.0f} s, from {len(fits)} of "
        f"{len(grid)} settings; {slow / np.median(fast):.0f} times faster"
    )


if __name__ == "__main__":
    main()
