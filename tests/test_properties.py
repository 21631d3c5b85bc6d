"""What holds for any images, and for any file that someone else made."""

import io
import json
import os
import pickle
import zipfile
from functools import cache

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.transformation_detector import TransformationDetector
from utils.detector import check_images

SHAPES = [(8, 8, 1), (12, 12, 3)]


@cache
def detector(shape, dtype, score_name="dirichlet"):
    """A detector of noise: its scores have no meaning, and must be sound all the same."""
    x = np.random.default_rng(0).integers(0, 256, (24, *shape), dtype=np.uint8)
    x = x if dtype == "uint8" else scaled(x, dtype)
    made = TransformationDetector(
        "simple", widen_factor=1, epochs=0.1, score_name=score_name, precision="float32", verbose=0
    )
    return made.fit(x).calibrate(x, 0.1)


def scaled(x, dtype):
    return (2 * (x / 255) - 1).astype(dtype)


@st.composite
def images(draw, dtypes=("uint8", "float32", "float64")):
    """Images of one shape and dtype, constant ones, noise and extremes among them."""
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(dtypes))
    n = draw(st.integers(1, 6))
    if dtype == "uint8":
        values = st.integers(0, 255)
    else:
        width = {"float32": 32, "float64": 64}[dtype]
        values = st.floats(-1, 1, width=width)
    x = draw(hnp.arrays(dtype, (n, *shape), elements=values, fill=values))
    if draw(st.booleans()):
        noise = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, x.shape, "uint8")
        x = noise if dtype == "uint8" else scaled(noise, dtype)
    return x


def fitted_to(x):
    return detector(x.shape[1:], "uint8" if x.dtype == np.uint8 else "float32")


@settings(max_examples=25, deadline=None)
@given(images(), st.randoms(use_true_random=False))
def test_scores_are_finite_and_each_images_own(x, random):
    """Independent of the images scored along, their order, and the batches they come in."""
    made = fitted_to(x)
    scores = made.score_samples(x)
    assert scores.shape == (len(x),) and scores.dtype == np.float64
    assert np.isfinite(scores).all()
    order = list(range(len(x)))
    random.shuffle(order)
    np.testing.assert_array_equal(made.score_samples(x[order]), scores[order])
    one_by_one = [made.score_samples(x[i : i + 1])[0] for i in range(len(x))]
    np.testing.assert_array_equal(one_by_one, scores)
    times = -(-100 // len(x))  # more than the network takes at once
    many = np.concatenate([x] * times)
    np.testing.assert_array_equal(made.score_samples(many), np.tile(scores, times))


@settings(max_examples=30, deadline=None)
@given(images())
def test_scoring_leaves_images_as_they_are_however_they_lie_in_memory(x):
    made = fitted_to(x)
    before, scores = x.copy(), made.score_samples(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(made.score_samples(np.asfortranarray(x)), scores)
    strided = np.repeat(x, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(made.score_samples(strided), scores)
    np.testing.assert_array_equal(made.score_samples(x.tolist() if x.dtype == float else x), scores)


@settings(max_examples=30, deadline=None)
@given(images())
def test_labels_p_values_and_responses_are_in_their_ranges(x):
    made = fitted_to(x)
    p, labels = made.p_value(x), made.predict(x)
    assert ((p >= 0) & (p <= 1)).all() and set(labels) <= {-1, 1}
    assert ((labels == -1) == (made.decision_function(x) < 0)).all()
    assert (p[labels == -1] <= 0.1).all()
    scores = made.scores(x)
    assert ((scores["simplified"] >= 0) & (scores["simplified"] <= 1)).all()
    np.testing.assert_allclose(made.responses(x).sum(-1), 1, rtol=1e-5)


anything = hnp.arrays(
    st.one_of(
        hnp.integer_dtypes(),
        hnp.unsigned_integer_dtypes(),
        hnp.floating_dtypes(),
        hnp.complex_number_dtypes(),
        hnp.boolean_dtypes(),
        hnp.unicode_string_dtypes(max_len=3),
        hnp.datetime64_dtypes(),
    ),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
)


@settings(max_examples=200, deadline=None)
@given(anything)
def test_arrays_are_images_or_refused_by_name(x):
    try:
        checked = check_images(x)
    except ValueError as error:
        named = (str(x.shape), str(x.dtype), "[-1, 1]", "hold NaN")
        assert any(name in str(error) for name in named)
    else:
        assert checked.ndim == 4 and checked.size
        assert checked.dtype in (np.uint8, np.float32) and np.isfinite(checked).all()


# ------------------------------------------------------------------------- model files of strangers


@cache
def model_file():
    """A saved detector, as {member: bytes}."""
    state = detector((8, 8, 1), "uint8").__getstate__()
    with zipfile.ZipFile(io.BytesIO(state["archive"])) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_json(path, change, **more):
    """The saved detector with its detector.json changed by a function."""
    saved = json.loads(model_file()["detector.json"])
    saved = change(saved) or saved
    return written(path, model_file() | {"detector.json": json.dumps(saved)}, **more)


def test_models_of_the_format_before_are_read(tmp_path):
    def older(saved):
        names, saved["format"] = saved["settings"], 2
        names["score"] = names.pop("score_name")
        names["scored"] = names.pop("scored_transformations")

    loaded = TransformationDetector.load(with_json(tmp_path / "m.keras", older))
    assert loaded.settings_.score_name == "dirichlet"
    assert loaded.settings_.scored_transformations == "all"


def refused(path, message="is not a saved detector"):
    with pytest.raises(ValueError, match=message):
        TransformationDetector.load(path)


def test_the_saved_detector_is_whole(tmp_path):
    x = np.zeros((3, 8, 8, 1), np.uint8)
    loaded = TransformationDetector.load(written(tmp_path / "m.keras", model_file()))
    expected = detector((8, 8, 1), "uint8").decision_function(x)
    np.testing.assert_array_equal(loaded.decision_function(x), expected)


class Mischief:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


LAMBDA = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {
        "layers": [
            {
                "module": "keras.layers",
                "class_name": "Lambda",
                "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wA="}}},
            }
        ]
    },
}


def test_a_model_file_runs_no_code(tmp_path):
    """Keras's own description of the network, where code can hide, is never read."""
    done = tmp_path / "done"
    members = model_file() | {
        "config.json": json.dumps(LAMBDA).encode(),
        "metadata.json": pickle.dumps(Mischief(done)),
        "evil.pkl": pickle.dumps(Mischief(done)),
        "../../evil.py": b"",
    }
    loaded = TransformationDetector.load(written(tmp_path / "m.keras", members))
    assert np.isfinite(loaded.score_samples(np.zeros((1, 8, 8, 1), np.uint8))).all()
    for name in ("detector.json", "model.weights.h5"):
        evil = model_file() | {name: pickle.dumps(Mischief(done))}
        refused(written(tmp_path / "m.keras", evil))
    assert not done.exists() and not (tmp_path.parent.parent / "evil.py").exists()


def changes(**values):
    return lambda saved: saved.update(values)


def settings_of(**values):
    return lambda saved: saved["settings"].update(values)


@pytest.mark.parametrize(
    "change, message",
    [
        (settings_of(depth=10**6), "depth 1000000"),
        (settings_of(depth=994), "depth 994, .* make over"),
        (settings_of(widen_factor=10**6), "widen factor 1000000 .* make over"),
        (settings_of(widen_factor=-1), "widen_factor is -1"),
        (settings_of(depth=12), "depth 12"),
        (settings_of(depth="10"), "depth is '10'"),
        (settings_of(transformations="none"), "transformations is 'none'"),
        (
            settings_of(transformations=[[False, 0, 0, 0]] * 10**5),
            "100000 transformations make over",
        ),
        (settings_of(transformations="full", translation=10**9), "translations of up to"),
        (settings_of(batch_size=float("nan")), "batch_size is nan"),
        (settings_of(surprise=1), "surprise"),
        (settings_of(seed=-1), "seed|non-negative"),
        (changes(image_shape=[10**6, 10**6, 3]), "depth 16, widen factor 1 .* make over"),
        (changes(image_shape=[32, 32, 10**9]), "would exhaust memory"),
        (
            lambda saved: (
                saved["settings"].update(depth=10) or saved.update(image_shape=[10**6] * 3)
            ),
            "would exhaust memory",
        ),
        (
            lambda saved: saved["settings"].update(hidden_layers=10**7),
            "10000000 hidden layers .* make over",
        ),
        (lambda saved: saved["settings"].update(score_name="density"), "density.npy"),
        (changes(image_shape=[8, 8]), "unpack"),
        (changes(image_shape=[0, 8, 1]), "image_shape is 0"),
        (changes(image_shape=[16, 16, 3]), "not a saved detector"),
        (changes(image_dtype="object"), "object"),
        (changes(alpha=[[1.0]]), "reshape"),
        (changes(alpha=[[float("nan")] * 8] * 8), "must be finite"),
        (changes(alpha="x" * 64), "could not convert"),
        (changes(calibration_scores=[float("inf")] * 99), "must be finite"),
        (changes(calibration_scores=[]), "held-out"),
        (changes(false_alarm_rate=7), "false alarm rate is 7"),
        (changes(seconds=[1]), "items"),
        (lambda saved: [saved], "indices"),
        (lambda saved: 5, "subscriptable"),
    ],
)
def test_absurd_settings_are_refused(tmp_path, change, message):
    refused(with_json(tmp_path / "m.keras", change), message)


@pytest.mark.parametrize(
    "reference, message",
    [
        (np.ones((5, 8, 3), np.float16), r"shape \(5, 8, 3\), is not of 8 x 64"),
        (np.full((5, 8, 64), np.nan, np.float16), "is not of 8 x 64 finite features"),
        (np.array([{}]), "allow_pickle"),
    ],
)
def test_references_that_make_no_density_are_refused(tmp_path, reference, message):
    saved, buffer = json.loads(model_file()["detector.json"]), io.BytesIO()
    saved["settings"]["score_name"] = "density"
    np.save(buffer, reference)
    members = {"detector.json": json.dumps(saved), "density.npy": buffer.getvalue()}
    refused(written(tmp_path / "m.keras", model_file() | members), message)


def test_references_of_more_rows_than_there_are_take_no_memory(tmp_path):
    saved, buffer = json.loads(model_file()["detector.json"]), io.BytesIO()
    saved["settings"]["score_name"] = "density"
    header = {"descr": "<f2", "fortran_order": False, "shape": (10**12, 8, 64)}
    np.lib.format.write_array_header_1_0(buffer, header)
    members = {"detector.json": json.dumps(saved), "density.npy": buffer.getvalue() + bytes(64)}
    refused(written(tmp_path / "m.keras", model_file() | members), "announces .* is smaller")


def test_archives_and_weights_that_would_swell_are_refused(tmp_path):
    path = tmp_path / "m.keras"
    bomb = model_file() | {"detector.json": b" " * 50_000_000}
    refused(written(path, bomb, zipfile.ZIP_DEFLATED), "would unpack to 5")
    refused(written(path, {"detector.json": b"[" * 100_000}), "recursion|not a saved detector")

    def weights(fill):
        buffer = io.BytesIO(model_file()["model.weights.h5"])
        with h5py.File(buffer, "a") as file:
            fill(file["layers/dense/vars"])
        return model_file() | {"model.weights.h5": buffer.getvalue()}

    def huge(group):
        del group["1"]
        group.create_dataset("1", (10**12,), "f4", chunks=(1000,), compression="gzip")

    refused(written(path, weights(huge)), "1000000077904 weights are stored for a network of 779")

    def missing(group):
        del group["1"]

    refused(written(path, weights(missing)), "weights are stored for a network of")

    def moved(group):
        group.move("1", "2")

    refused(written(path, weights(moved)))


def test_weights_outside_the_file_are_not_read(tmp_path):
    path, secret = tmp_path / "m.keras", tmp_path / "secret"
    np.arange(8, dtype="f4").tofile(secret)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["1"] = np.arange(8, dtype="f4")

    def raw(group):
        group.create_dataset("1", (8,), "f4", external=[(str(secret), 0, 32)])

    def linked(group):
        group["1"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "1")

    def virtual(group):
        layout = h5py.VirtualLayout((8,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "1", (8,))
        group.create_virtual_dataset("1", layout)

    for fill in (raw, linked, virtual):
        buffer = io.BytesIO(model_file()["model.weights.h5"])
        with h5py.File(buffer, "a") as file:
            del file["layers/dense/vars/1"]
            fill(file["layers/dense/vars"])
        members = model_file() | {"model.weights.h5": buffer.getvalue()}
        refused(written(path, members), "a link that leads elsewhere|lie in another file")


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_damaged_model_files_are_refused_or_load(tmp_path, data):
    """Random bytes; and the file cut, or with some of its bytes changed."""
    path = tmp_path / "m.keras"
    whole = (
        detector((8, 8, 1), "uint8").__getstate__()["archive"] if data.draw(st.booleans()) else b""
    )
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 5)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content) + data.draw(st.binary(max_size=100)))
    load_or_refuse(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=3), children)
    ),
    max_leaves=8,
)
PLACES = [
    *(("settings", name) for name in TransformationDetector().get_settings()),
    *((name,) for name in ("format", "settings", "image_shape", "image_dtype", "alpha")),
    *((name,) for name in ("seconds", "found", "details", "calibration_scores")),
    ("false_alarm_rate",),
]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(PLACES), json_values)
@example(("settings", "transformations"), [[]])
@example(("settings", "dropout_rate"), 1e300)
@example(("settings", "weight_decay"), "x")
def test_a_model_file_with_any_value_anywhere_is_refused_or_loads(tmp_path, place, value):
    def change(saved):
        *outer, last = place
        (saved[outer[0]] if outer else saved)[last] = value

    load_or_refuse(with_json(tmp_path / "m.keras", change))


def load_or_refuse(path):
    try:
        loaded = TransformationDetector.load(path)
    except ValueError as error:
        assert "m.keras is not a saved detector" in str(error)
    else:
        assert loaded.alpha_.shape == (8, 8)
