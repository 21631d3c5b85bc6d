"""Which recipe for a folder: what `detect.py fit` learns in some minutes, by each of several.

    taskset -c 0 python -m benchmarks.folders --class 1 --recipes fast,best_short

Images of a class are given to `fit --minutes`, which holds a fifth of them out. Prints a line of
JSON for each recipe: the steps it made, the share of normal images that are flagged, and of test
images of the class beside odd ones the AUROC and the share of these that are flagged, in percent.
The odd ones are images of other classes, and images of the class into which a patch of an image of
another, 8x8 or 12x12 pixels, is pasted at a random place.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.anomaly_map import pasted
from benchmarks.options import folder_parser
from benchmarks.pace import fitted, good_images, write_images
from models.recipes import RECIPES
from utils.commands import number_above_zero
from utils.datasets import load_dataset, random_part
from utils.device import device_name
from utils.metrics import auroc
from utils.threshold import p_values

PATCHES = 8, 12


def main() -> None:
    """The command at the head of this file."""
    parser = folder_parser(__doc__)
    add = parser.add_argument
    add("--tested", type=int, default=500, help="normal images, and odd ones (default: 500)")
    add("--recipes", default="fast,best_short", help=f"of {', '.join(RECIPES)}")
    add("--minutes", type=number_above_zero, default=4.0, help="of a fit (default: 4)")
    options = parser.parse_args()
    data = load_dataset(options.dataset, options.data_dir)
    good, tested = good_images(data, options), test_images(data, options)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "good"), good)
        for recipe in options.recipes.split(","):
            model = Path(folder, f"{recipe}.keras")
            command = ["fit", Path(folder, "good"), "--output", model, "--recipe", recipe]
            command += ["--size", good.shape[1], "--minutes", options.minutes, "--quiet"]
            scorer = fitted([*command, "--seed", options.seed], model)
            found = {
                "dataset": options.dataset,
                "class": data.class_names[options.label],
                "images": len(good),
                "seed": options.seed,
                "recipe": recipe,
                "minutes": options.minutes,
                "device": device_name(),
            }
            print(json.dumps(found | measures(scorer, tested)), flush=True)


def test_images(data, options) -> dict[str, np.ndarray]:
    """Normal test images, and odd ones by kind, of each at most so many as are tested."""
    mine = random_part(data.x_test[data.y_test == options.label], options.tested, 0)
    others = random_part(data.x_test[data.y_test != options.label], options.tested, 0)
    rng = np.random.default_rng(0)
    patched = {f"{n}x{n}": pasted(mine, rng.permutation(others), n, rng)[0] for n in PATCHES}
    return {"normal": mine, "other classes": others} | patched


def measures(scorer, tested: dict[str, np.ndarray]) -> dict:
    """How well a model tells each kind of odd images from the normal ones."""
    detector, scores, flagged = scorer.detector, {}, {}
    for kind, x in tested.items():
        x = scorer.prepare(np.broadcast_to(x, (*x.shape[:3], 3)))
        scores[kind] = detector.score_samples(x)
        p = p_values(detector.calibration_scores_, scores[kind])
        flagged[kind] = round(100 * float(np.mean(p <= detector.false_alarm_rate_)), 1)
    normal = scores.pop("normal")
    found = {}
    for kind, odd in scores.items():
        is_normal = np.arange(len(normal) + len(odd)) < len(normal)
        area = auroc(is_normal, np.concatenate([normal, odd]))
        found[kind] = {"auroc": round(100 * area, 1), "flagged": flagged[kind]}
    steps = round(detector.record_["training_samples"] / detector.batch_size)
    return {"steps": steps, "normal flagged": flagged["normal"]} | found


if __name__ == "__main__":
    main()
