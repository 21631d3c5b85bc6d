"""Which map points better at what is odd in an image: occlusion, or the score's input gradient.

    python -m benchmarks.anomaly_map cars.keras --dataset cifar10 --label 1

A patch of an image of another class is pasted at a random place into test images of the class that
a model was trained on. Printed are, over the images, the mean AUROC of the map's pixels (in the
patch or not), and the share of images whose highest pixel lies in the patch, for both maps, for the
distance from the centre, and by chance.
"""

import numpy as np
from keras import ops
from scipy.ndimage import gaussian_filter

from benchmarks.options import data_parser
from models.anomaly_map import anomaly_map
from models.transformation_detector import TransformationDetector
from transformations import all_transformed
from utils.backend import input_gradient
from utils.datasets import load_dataset
from utils.detector import to_unit_range
from utils.metrics import auroc


def pasted(normal, others, patch, rng):
    """Images with a patch (patch x patch) of another each, and where it is: (n, h, w) bool."""
    x, inside = normal.copy(), np.zeros(normal.shape[:3], bool)
    height, width = normal.shape[1:3]
    for i, other in enumerate(others[: len(x)]):
        top, left = rng.integers(0, (height - patch + 1, width - patch + 1))
        place = slice(top, top + patch), slice(left, left + patch)
        x[i][place] = other[place]
        inside[i][place] = True
    return x, inside


def gradient_map(detector, x, at_once=4):
    """For each pixel of x (n, h, w, c), g . (mean training image - x), smoothed: (n, h, w).

    g: the score's gradient. To first order, the rise of the score where the pixel is covered.
    """
    mean = np.asarray(detector.details_["mean_image"]).reshape(x.shape[1:]).astype(x.dtype)
    images, score, rises = to_unit_range(x), score_of(detector), []
    for start in range(0, len(x), at_once):
        part = images[start : start + at_once]
        gradient = ops.convert_to_numpy(input_gradient(score, ops.convert_to_tensor(part)))
        rises.append((gradient * (to_unit_range(mean) - part)).sum(-1))
    return gaussian_filter(np.concatenate(rises), (0, 2, 2))


def score_of(detector):
    """The detector's dirichlet or rotation score of images in [-1, 1], as a function of tensors."""
    maps = detector.transformer_.index_maps(*detector.image_shape_[:2])[detector.scored_indices_]
    turns = np.array([each.k for each in detector.transformer_.transformations])

    def score(images):
        logits = detector.network_(all_transformed(images, maps))
        log_p = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        log_p = ops.reshape(log_p, (-1, len(maps), len(turns)))
        alpha = detector.alpha_
        if detector.settings_.score_name == "rotation":
            alpha = detector.rotation_alpha_
            groups = [np.flatnonzero(turns == each) for each in np.unique(turns)]
            parts = [ops.logsumexp(ops.take(log_p, each, axis=-1), axis=-1) for each in groups]
            log_p = ops.stack(parts, axis=-1)
        return ops.sum((alpha - 1).astype("f4") * log_p, axis=(1, 2))

    return score


def measures(maps, inside):
    """The mean AUROC of pixels, and the share of images whose highest pixel is in the patch."""
    areas = [auroc(i.ravel(), m.ravel()) for m, i in zip(maps, inside, strict=True)]
    flat = maps.reshape(len(maps), -1)
    hits = inside.reshape(len(maps), -1)[np.arange(len(maps)), flat.argmax(1)]
    return np.mean(areas), np.mean(hits)


def main():
    parser = data_parser(__doc__)
    parser.add_argument("model")
    parser.add_argument(
        "--label", type=int, default=1, help="of the class the model was trained on"
    )
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    detector = TransformationDetector.load(options.model)
    detector.verbose = 0
    data, rng = load_dataset(options.dataset, options.data_dir), np.random.default_rng(0)
    normal = data.x_test[data.y_test == options.label][: options.images]
    others = rng.permutation(data.x_test[data.y_test != options.label])
    rows = np.arange(normal.shape[1])[:, None] - (normal.shape[1] - 1) / 2
    columns = np.arange(normal.shape[2])[None] - (normal.shape[2] - 1) / 2
    centre = np.repeat(-np.hypot(rows, columns)[None], len(normal), axis=0)
    for patch in (8, 12):
        x, inside = pasted(normal, others, patch, rng)
        print(f"patches of {patch}x{patch}; by chance: 50.0, {100 * inside.mean():.1f}", flush=True)
        show("distance from the centre", centre, inside)
        if detector.settings_.score_name in ("dirichlet", "rotation"):  # of others none is here
            show("gradient", gradient_map(detector, x), inside)
        show("occlusion", anomaly_map(detector, x), inside)


def show(name, maps, inside):
    """A line with the measures."""
    areas, hits = measures(maps, inside)
    print(f"  {name:26} {100 * areas:5.1f} {100 * hits:5.1f}", flush=True)


if __name__ == "__main__":
    main()
