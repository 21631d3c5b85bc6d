"""A trained `TransformationDetector` as one file: a Keras archive with a JSON of the rest.

The file may come from a stranger. Reading it runs no code of it and unpickles nothing: the network
is built from the settings, and its weights are read once they are known to lie in the file and to
be as many as the settings say.
"""

import json
import math
import os
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from models.wide_residual_network import HIDDEN_UNITS
from transformations import TransformationSet
from utils.density import UnitDensity
from utils.device import PrecisionError, resolve_precision
from utils.files import refusing, replacing
from utils.settings import whole_number

FORMAT = 3

RENAMED = {"score": "score_name", "scored": "scored_transformations"}
"""Settings of format 2 by their names in format 3; the rest is the same."""


def check_model_path(path: str | os.PathLike) -> Path:
    """The path; ValueError where it does not end as a saved detector's does."""
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"{path} must end in .keras: a saved detector is a Keras archive")
    return path


def write_model(path: Path, detector) -> None:
    """Write a fitted detector, whole or not at all. OSError where there is no room."""
    saved = {
        "format": FORMAT,
        "settings": detector.get_settings() | {"precision": detector.precision_},
        "image_shape": detector.image_shape_,
        "image_dtype": detector.image_dtype_,
        "alpha": detector.alpha_.tolist(),
        "rotation_alpha": detector.rotation_alpha_.tolist() if detector._has_rotations_ else None,
        "seconds": detector.seconds_,
        "found": detector.record_,
        "details": detector.details_,
    }
    if hasattr(detector, "calibration_scores_"):
        saved["calibration_scores"] = detector.calibration_scores_.tolist()
        saved["false_alarm_rate"] = detector.false_alarm_rate_
    with replacing(path) as partial:
        keras.saving.save_model(detector.network_, partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr("detector.json", json.dumps(saved))
            if hasattr(detector, "density_"):
                with archive.open("density.npy", "w") as member:
                    np.save(member, detector.density_.reference)


def read_model(path: Path, create, precision: str | None = None):
    """`TransformationDetector.load`; create: the class."""
    what = f"{path} is not a saved detector of this project"
    if precision is not None:
        resolve_precision(precision)
    refused = refusing(what, passing=(PrecisionError,))
    with open(path, "rb") as file, refused, zipfile.ZipFile(file) as archive:
        detector = _from_archive(archive, path, create, precision)
        # Keras has opened the path again
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            raise ValueError("it was replaced while it was read: try again")
        return detector


def _from_archive(archive, path, create, precision):
    size, unpacked = path.stat().st_size, sum(each.file_size for each in archive.infolist())
    if unpacked > size:  # which `save` never writes
        raise ValueError(f"its {size} bytes would unpack to {unpacked}")
    saved = json.loads(archive.read("detector.json"))
    if saved["format"] not in (2, FORMAT):
        raise ValueError(f"format {saved['format']} where this version reads 2 and {FORMAT}")
    settings = {RENAMED.get(name, name): value for name, value in saved["settings"].items()}
    if not isinstance(settings["transformations"], str):
        settings["transformations"] = TransformationSet(settings["transformations"])
    detector = create(**settings)
    detector.precision = precision or detector.precision
    shape = [whole_number()("image_shape", n) for n in saved["image_shape"]]
    detector._begin(shape, saved["image_dtype"])
    _check_size(detector, archive.getinfo("model.weights.h5").file_size)
    detector._build()
    _check_weights(archive, detector.network_)
    detector.network_.load_weights(path)
    k, m = detector.transformer_.n_transforms, len(detector.scored_indices_)
    detector.alpha_ = _finite(saved["alpha"]).reshape(m, k)
    if detector._has_rotations_:
        detector.rotation_alpha_ = _finite(saved["rotation_alpha"]).reshape(m, -1)
    if detector.settings_.score_name == "density":
        with archive.open("density.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            if math.prod(shape) * dtype.itemsize > archive.getinfo("density.npy").file_size:
                raise ValueError(f"density.npy announces {shape} numbers and is smaller")
            member.seek(0)
            reference = np.load(member, allow_pickle=False)
        d = detector.network_.get_layer("features").output.shape[-1]
        if reference.shape[1:] != (m, d) or not np.isfinite(reference).all():
            raise ValueError(
                f"density.npy, of shape {reference.shape}, is not of {m} x {d} finite features"
            )
        detector.density_ = UnitDensity(reference)
    detector.seconds_ = {part: float(value) for part, value in saved["seconds"].items()}
    detector.record_, detector.details_ = dict(saved["found"]), dict(saved["details"])
    if "calibration_scores" in saved:
        scores = _finite(saved["calibration_scores"]).ravel()
        detector.calibrate_by(scores, saved["false_alarm_rate"])
    return detector


def _check_size(detector, stored_bytes):
    """Refuses settings of a network larger than its stored weights."""
    depth, widen_factor = detector._architecture()
    if depth > 1000:
        raise ValueError(f"depth {depth} is absurd")
    k = len(detector._resolve_transformations())
    hidden = detector.settings_.hidden_layers
    # the 3x3 convolutions from a group's filters to as many, the head's last layer, and its others
    n_convolutions = 2 * ((depth - 4) // 6) - 1
    weights = 9 * n_convolutions * sum((16 * 2**g * widen_factor) ** 2 for g in range(3))
    weights += (HIDDEN_UNITS if hidden else 64 * widen_factor) * k
    weights += max(0, hidden - 1) * HIDDEN_UNITS**2
    if 4 * weights > stored_bytes:
        raise ValueError(
            f"depth {depth}, widen factor {widen_factor} with {hidden} hidden layers and {k} "
            f"transformations make over {weights} weights, "
            f"the file has {stored_bytes} bytes of them"
        )


def _check_weights(archive, network):
    """Refuses weights that lie outside the archive, or are more than the network's, unread."""

    def problem(name, link):
        if not isinstance(link, h5py.HardLink):
            return f"weights {name} are a link that leads elsewhere"
        if isinstance(file[name], h5py.Dataset):
            if file[name].external or file[name].is_virtual:
                return f"weights {name} lie in another file"
            sizes.append(file[name].size)
        return None

    sizes = []
    with archive.open("model.weights.h5") as member, h5py.File(member) as file:
        found = file.visititems_links(problem)
    if found:
        raise ValueError(found)
    # Dropout's seeds, two numbers a layer, are stored too
    if not 0 <= sum(sizes) - network.count_params() <= 2 * len(network.layers):
        raise ValueError(
            f"{sum(sizes)} weights are stored for a network of {network.count_params()}"
        )


def _finite(values):
    values = np.array(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("alpha and calibration scores must be finite")
    return values
