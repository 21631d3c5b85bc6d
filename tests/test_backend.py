"""Keras's own defaults are in force in every detector, whatever a user's keras.json says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from baselines import METHODS
from models.transformation_detector import TransformationDetector
from utils.backend import keras_defaults

ROOT = Path(__file__).resolve().parents[1]

SMALL = {
    "transformations": {"transformations": "simple", "widen_factor": 1, "precision": "float32"},
    "raw_ocsvm": {"nu_grid": (0.5,), "gamma_grid": (0.01,)},
    "cae_ocsvm": {"nu_grid": (0.5,), "gamma_grid": (0.01,)},
    "deep_svdd": {"pretraining_epochs": 1},
    "dagmm": {},
    "dsebm": {},
    "adgan": {"latent_dim": 4, "steps_per_epoch": 1, "critic_steps": 1, "n_seeds": 1},
}


def scores_of_all(x):
    """The scores of a saved model, and of every method after a training step."""
    found = {"loaded": TransformationDetector.load("model.keras").score_samples(x)}
    for name, method in METHODS.items():
        trains = "epochs" in method.create().get_params()
        trained = {"epochs": 1, "batch_size": 16} if trains else {}
        detector = method.create(**SMALL[name], **trained, seed=0, verbose=0)
        found[name] = detector.fit(x).score_samples(x)
    return found


def test_a_keras_json_of_other_settings_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), dtype=np.uint8)
    detector = TransformationDetector(**SMALL["transformations"], epochs=0.1, verbose=0).fit(x)
    detector.save("model.keras")
    settings = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 1e-7}
    settings["backend"] = keras.backend.backend()
    Path("keras.json").write_text(json.dumps(settings))
    np.save("x.npy", x)
    code = (
        "import keras, numpy as np\n"
        "assert keras.config.floatx() == 'float16'\n"
        "from tests.test_backend import scores_of_all\n"
        "np.savez('scores.npz', **scores_of_all(np.load('x.npy')))\n"
        "assert keras.config.floatx() == 'float16'\n"
        "assert keras.config.image_data_format() == 'channels_first'\n"
    )
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with np.load("scores.npz") as found:
        assert {"loaded", "transformations", "dagmm", "dsebm"} < set(found)
        for name in found:
            assert found[name].dtype == np.float64 and np.isfinite(found[name]).all()
        np.testing.assert_allclose(found["loaded"], detector.score_samples(x), rtol=1e-3)


def test_the_programs_own_settings_are_given_back():
    keras.config.set_floatx("float64")
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ZeroDivisionError), keras_defaults():
            assert keras.config.floatx() == "float32"
            assert keras.config.image_data_format() == "channels_last"
            assert keras.layers.Dense(1).compute_dtype == "float32"
            1 / 0  # noqa: B018
        assert keras.config.floatx() == "float64"
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        keras.config.set_dtype_policy("float32")
