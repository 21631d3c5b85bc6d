"""The graph by ONNX Runtime against the detector, and docs/own_images.md's snippet for it."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import detect
from models.transformation_detector import TransformationDetector
from utils.folders import read_folder
from utils.images import to_grey
from utils.threshold import p_values

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own_images.md").read_text(encoding="utf-8")
HAVE = all(map(importlib.util.find_spec, ("onnx", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not HAVE, reason="needs the packages onnx and onnxruntime")

if HAVE:
    from models.onnx_export import write_onnx


def trained(x, n_steps=2, **settings):
    """A detector after a step or two, its batch statistics of use, calibrated."""
    samples = 128 * n_steps
    settings = {"widen_factor": 1, "precision": "float32", "samples": samples} | settings
    detector = TransformationDetector(verbose=0, **settings).fit(x)
    rng = np.random.default_rng(0)
    for layer in detector.network_.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + rng.uniform(0.1, 0.5, w.shape) for w in layer.get_weights()])
    detector._estimate_alpha(x)
    return detector.calibrate(x[:30])


def by_onnx(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    parts = [session.run(None, {"images": x[i : i + 7]}) for i in range(0, len(x), 7)]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


GREY = ((16, 16, 1), "u1")
COLOUR = ((64, 64, 3), "f4")  # its last layer reads 2x2 pixels


@needs_onnx
@pytest.mark.parametrize(
    "settings, images",
    [
        ({"transformations": "simple", "depth": 10}, COLOUR),
        ({"transformations": "simple", "score_name": "simplified", "dropout_rate": 0.3}, GREY),
        ({"score_name": "rotation", "scored_transformations": "unflipped"}, GREY),
        ({"transformations": "simple", "depth": 16, "widen_factor": 2}, GREY),
        ({"transformations": "rotations", "score_name": "density", "hidden_layers": 1}, GREY),
    ],
)
def test_scores_equal_the_detectors(settings, images, tmp_path):
    shape, kind = images
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (100, *shape)) * rng.random((100, 1, 1, 1))  # of all contrasts
    x = x.astype(np.uint8)
    x = x if kind == "u1" else (x / np.float32(127.5) - 1).astype(kind)
    detector = trained(x[:40], **settings)
    write_onnx(tmp_path / "m.onnx", detector)
    score, p = by_onnx(tmp_path / "m.onnx", x)
    expected = detector.score_samples(x)
    assert score.dtype == np.float64 and score.shape == (100,)
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(p, p_values(detector.calibration_scores_, score))


@pytest.fixture(scope="module")
def model(tmp_path_factory, digits):
    """A model file of 32x32 grey images, calibrated."""
    folder = tmp_path_factory.mktemp("onnx")
    x = digits.x_train[digits.y_train == 4][:60].repeat(2, axis=1).repeat(2, axis=2)
    detector = trained(x, transformations="simple")
    detector.details_["region"] = "centre"
    detector.save(folder / "m.keras")
    return folder / "m.keras"


@needs_onnx
def test_the_command_and_the_pages_snippet(model, tmp_path, monkeypatch, capsys):
    """On photographs of several kinds, as the command `score` reads them."""
    rng = np.random.default_rng(0)
    kinds = [("L", (90, 70)), ("RGB", (400, 300)), ("RGB", (33, 90)), ("RGB", (20, 29))]
    for i, (mode, size) in enumerate(kinds):
        pixels = rng.integers(0, 256, (*size[::-1], len(mode)), np.uint8).squeeze()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg", exif=exif)
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "model.keras")
    assert detect.main(["export", "model.keras", "--output", "model.onnx"]) == 0
    assert "wrote model.onnx" in capsys.readouterr().out
    (snippet,) = [each for each in snippets() if "onnxruntime" in each]
    names = {"paths": sorted(tmp_path.glob("*.jpg"))}
    exec(snippet, names)
    x = to_grey(read_folder(".", 32, verbose=0).images)
    np.testing.assert_array_equal(names["x"], x)
    expected = TransformationDetector.load(model)
    np.testing.assert_allclose(names["score"], expected.score_samples(x), rtol=1e-4)
    np.testing.assert_array_equal(
        names["p_value"], p_values(expected.calibration_scores_, names["score"])
    )


def test_without_the_package_one_error_names_it(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    command = ["export", str(model), "--output", str(tmp_path / "m.onnx")]
    assert detect.main(command) == 2
    assert "error: export needs the package onnx: pip install onnx" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


@needs_onnx
@pytest.mark.parametrize(
    "command, message",
    [
        ("export m.keras --output m.txt", "m.txt must end in .onnx"),
        ("export none.keras --output m.onnx", "none.keras"),
        ("export m.txt --output m.onnx", "must end in .keras"),
    ],
)
def test_wrong_names_are_one_error(command, message, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "m.keras")
    assert detect.main(command.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown
    assert not Path("m.onnx").exists()


@needs_onnx
def test_another_network_is_refused(model, tmp_path):
    detector = TransformationDetector.load(model)
    detector.network_ = keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Softmax()])
    with pytest.raises(ValueError, match=r"of kind Softmax, which cannot be exported"):
        write_onnx(tmp_path / "m.onnx", detector)


def snippets():
    """The Python of the page's part on exchange."""
    return re.findall(r"```python\n(.*?)```", PAGE.partition("## Exchange")[2], re.DOTALL)


def test_the_pages_pipeline_can_be_kept_by_joblib(tmp_path, digits):
    """As a program, its function in a module of its own; then loaded by another process."""
    (pipeline,) = [each for each in snippets() if "joblib" in each]
    load = "import joblib, pipeline\nprint(pipeline.labels.tolist())"
    load += "\nprint(joblib.load('pipeline.joblib').predict(pipeline.x).tolist())"
    data = (
        "import numpy as np\nx = np.random.default_rng(0).random((60, 64)).astype('f4') * 2 - 1\n"
    )
    data += "x_train, x_held_out = x[:40], x[40:]\n"
    quick = pipeline.replace(
        '**RECIPES["small"]', 'transformations="simple", samples=128, verbose=0'
    )
    assert quick != pipeline
    (tmp_path / "pipeline.py").write_text(data + quick)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", load]
    shown = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    now, loaded = map(json.loads, shown.stdout.splitlines()[-2:])
    assert now == loaded and set(now) <= {-1, 1} and len(now) == 60


def test_the_pages_words_on_pyod_are_its_conventions(model, digits):
    """Against PyOD's base class as documented: outliers are above threshold_, labelled 1."""
    (snippet,) = [each for each in snippets() if "contamination" in each]
    x = digits.x_train[:40].repeat(2, axis=1).repeat(2, axis=2)
    names = {"detector": TransformationDetector.load(model), "x_train": x, "x": x}
    names["detector"].verbose = 0
    names["np"] = np
    exec(snippet, names)
    scores = names["detector"].decision_function(x)
    order = np.argsort(scores)
    np.testing.assert_array_equal(np.argsort(-names["outlier_scores"]), order)
    np.testing.assert_array_equal(names["labels"], (scores < 0).astype(int))
    np.testing.assert_array_equal(names["labels"], names["outlier_scores"] > 0)
    assert names["labels_"].sum() == 4 and set(np.flatnonzero(names["labels_"])) == set(order[:4])
