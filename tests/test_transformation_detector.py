import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.special import logsumexp

import models.transformation_detector
from models.augmentation import random_views
from models.transformation_detector import TransformationDetector
from tests.conftest import assert_resumed, watched
from transformations import TransformationSet
from utils.batches import epoch_pairs
from utils.density import UnitDensity
from utils.detector import to_unit_range
from utils.dirichlet import estimate_alpha, normality_score, simplified_score
from utils.metrics import auroc
from utils.optimizers import Muon

SMALL = {
    "transformations": "simple",
    "widen_factor": 1,
    "schedule": "one_cycle",
    "learning_rate": 4e-3,
    "precision": "float32",
    "verbose": 0,
}


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.fixture(scope="module")
def fours(digits):
    return digits.x_train[digits.y_train == 4][:, ::2, ::2]


@pytest.fixture(scope="module")
def tested(digits):
    """Other fours, half of them turned, which makes anomalies of them."""
    x = digits.x_test[digits.y_test == 4][:, ::2, ::2].copy()
    x[::2] = np.rot90(x[::2], axes=(1, 2))
    return x, np.arange(len(x)) % 2 == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tmp_path_factory.mktemp("training") / "fours.checkpoint.keras"


@pytest.fixture(scope="module")
def detector(fours, checkpoint):
    return TransformationDetector(**SMALL, epochs=4).fit(fours, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def rotation_detector(fours, detector, checkpoint):
    """The same network: the checkpoint is that of the end of the training."""
    settings = SMALL | {
        "score_name": "rotation",
        "scored_transformations": "unflipped",
        "alpha_images": 30,
    }
    counter = Counter()
    rotation_detector = TransformationDetector(**settings, epochs=4)
    rotation_detector.fit(fours, checkpoint=checkpoint, callbacks=[counter])
    assert counter.steps == 0
    return rotation_detector


@pytest.fixture(scope="module")
def density_detector(fours):
    """Rotations of random views, and the density of features."""
    own = {"transformations": "rotations", "augmentation": "views", "score_name": "density"}
    return TransformationDetector(**SMALL | own, hidden_layers=1, epochs=10).fit(fours)


class Counter(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1


def test_tells_fours_from_turned_ones(detector, rotation_detector, tested):
    x, normal = tested
    scores = detector.scores(x) | {"unflipped": rotation_detector.score_samples(x)}
    for name in ("dirichlet", "simplified", "rotation", "unflipped"):
        assert auroc(normal, scores[name]) > 0.9


def test_scores_follow_from_the_networks_logits(detector, tested, fours):
    """Alpha and both scores, from plain forward passes over every transformed image."""

    def responses(x):
        logits = []
        for i in range(8):
            moved = detector.transformer_.transform_batch(x, np.full(len(x), i))
            scaled = 2 * (moved.astype("float32") / 255) - 1
            logits.append(keras.ops.convert_to_numpy(detector.network_(scaled, training=False)))
        logits = np.stack(logits, axis=1).astype(np.float64)
        return logits - logsumexp(logits, axis=-1, keepdims=True)

    log_p = responses(fours)
    alpha = estimate_alpha(np.exp(log_p).mean(0), log_p.mean(0))
    np.testing.assert_allclose(detector.alpha_, alpha, rtol=1e-3)
    log_p = responses(tested[0])
    scores = detector.scores(tested[0])
    expected = normality_score(detector.alpha_, log_p)
    np.testing.assert_allclose(scores["dirichlet"], expected, rtol=1e-3)
    expected = [np.mean([np.exp(one[i, i]) for i in range(8)]) for one in log_p]
    np.testing.assert_allclose(scores["simplified"], expected, rtol=1e-4)
    np.testing.assert_allclose(simplified_score(log_p), expected, rtol=1e-12)


def test_the_rotation_score_is_the_dirichlet_score_of_summed_responses(
    rotation_detector, detector, tested, fours
):
    """From the (flip, rotation) responses of the same network, scored under all transformations."""
    x, _ = tested
    found = rotation_detector.scores(x)
    assert list(found) == ["rotation", "dirichlet", "simplified"]

    chosen = np.sort(np.random.default_rng(0).choice(len(fours), 30, replace=False))
    # transformation i is flip i // 4, rotation i % 4; unflipped are the first four
    training, scored = (
        p[:, :4, :4].astype("f8") + p[:, :4, 4:].astype("f8")
        for p in map(detector.responses, (fours[chosen], x))
    )
    alpha = estimate_alpha(training.mean(0), np.log(training).mean(0))
    np.testing.assert_allclose(rotation_detector.rotation_alpha_, alpha, rtol=1e-3)
    np.testing.assert_allclose(
        found["rotation"], ((alpha - 1) * np.log(scored)).sum((1, 2)), rtol=1e-3
    )
    diagonal = detector.responses(x)[:, range(4), range(4)]
    np.testing.assert_allclose(found["simplified"], diagonal.mean(-1), rtol=1e-4)


def test_unflipped_images_are_half_the_work(rotation_detector, detector):
    assert rotation_detector.alpha_.shape == (4, 8) and detector.alpha_.shape == (8, 8)
    assert rotation_detector.scoring_passes(100, 50) == (30 + 50) * 4
    assert detector.scoring_passes(100, 50) == 150 * 8
    assert rotation_detector.responses(np.zeros((3, 8, 8, 1), np.uint8)).shape == (3, 8, 8)


def test_the_density_score_is_that_of_the_features(density_detector, fours, tested):
    """Against the network cut before its head, on images that NumPy turns."""
    x, normal = tested
    network = density_detector.network_
    body = keras.Model(network.input, network.get_layer("features").output)

    def read(images):
        turned = [np.rot90(to_unit_range(images), k, axes=(1, 2)) for k in range(4)]
        return np.stack([numpy(body(each)) for each in turned], axis=1)

    scores = density_detector.scores(x)
    assert list(scores) == ["density", "dirichlet", "simplified", "rotation"]
    expected = UnitDensity(read(fours)).score(read(x))
    np.testing.assert_allclose(scores["density"], expected, rtol=1e-2, atol=0.3)
    assert np.std(expected) > 3
    assert auroc(normal, scores["density"]) > 0.9
    assert density_detector.anomaly_map(x[:2]).shape == (2, 8, 8)


def test_training_transforms_random_views(fours, monkeypatch, small_network):
    """The seed, the epoch and the batch decide which; without augmentation, the images are fed."""
    fed = []

    def keep(trainer, batches, **how):
        fed.append([batches(epoch)(index)[0] for epoch, index in [(0, 0), (0, 1), (1, 0)]])
        raise KeyboardInterrupt

    monkeypatch.setattr("models.transformation_detector.fit_steps", keep)
    for augmentation, seed in [("views", 3), ("views", 3), ("views", 4), ("none", 3)]:
        settings = SMALL | {"augmentation": augmentation, "seed": seed, "batch_size": 16}
        with pytest.raises(KeyboardInterrupt):
            TransformationDetector(**settings, epochs=1).fit(fours)
    first, again, other, plain = fed
    for (epoch, index), (images, t), (same, _), (others, _), (originals, _) in zip(
        [(0, 0), (0, 1), (1, 0)], first, again, other, plain, strict=True
    ):
        rng = np.random.default_rng((3, epoch, index))
        np.testing.assert_array_equal(images, random_views(originals, rng))
        np.testing.assert_array_equal(images, same)
        assert images.dtype == originals.dtype and len(t) == 16
        assert (images != originals).any() and (images != others).any()


def test_without_rotations_there_is_no_rotation_score(fours, small_network):
    pair = TransformationSet([(False, 0, 0, 0), (True, 0, 0, 0)])
    with pytest.raises(ValueError, match="needs transformations with different rotations"):
        TransformationDetector(pair, score_name="rotation").fit(fours)
    detector = TransformationDetector(**SMALL | {"transformations": pair}, epochs=0.5)
    detector.fit(fours[:20])
    assert list(detector.scores(fours[:3])) == ["dirichlet", "simplified"]


def test_scores_do_not_depend_on_what_is_scored_along(detector, digits):
    x = digits.x_test[:100, ::2, ::2]
    scores = detector.score_samples(x)
    assert scores.dtype == np.float64 and scores.shape == (100,)
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_allclose(detector.score_samples(x[order]), scores[order], rtol=1e-5)
    np.testing.assert_allclose(detector.score_samples(x[7:8]), scores[7:8], rtol=1e-5)


def test_float_images_score_as_their_bytes_do(fours, small_network):
    def scaled(x):
        return 2 * (x / 255) - 1

    other = TransformationDetector(**SMALL, epochs=0.5).fit(scaled(fours[:40]))
    same = TransformationDetector(**SMALL, epochs=0.5).fit(fours[:40])
    np.testing.assert_allclose(
        other.score_samples(scaled(fours[40:60])), same.score_samples(fours[40:60]), rtol=2e-2
    )


def test_every_pair_once_an_epoch_in_an_order_of_its_own():
    one, two = epoch_pairs(7, 8, seed=3, epoch=0), epoch_pairs(7, 8, seed=3, epoch=1)
    np.testing.assert_array_equal(np.sort(one), np.arange(56))
    np.testing.assert_array_equal(np.sort(two), np.arange(56))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, epoch_pairs(7, 8, seed=3, epoch=0))
    assert not np.array_equal(one, epoch_pairs(7, 8, seed=4, epoch=0))
    # the same on every backend and version: these are the first pairs of (seed 3, epoch 0)
    np.testing.assert_array_equal(one[:6], [22, 0, 3, 37, 51, 2])


@pytest.mark.parametrize("epochs, steps", [(1, 5), (2, 10), (0.5, 2), (2.2, 11), (0.001, 1)])
def test_epochs_may_be_fractions(fours, epochs, steps, small_network):
    detector = TransformationDetector(**SMALL, epochs=epochs, batch_size=32)
    counter = Counter()
    detector.fit(fours[:20], callbacks=[counter])
    assert counter.steps == steps


@pytest.mark.parametrize("n, samples, steps", [(20, 320, 10), (20, 80, 2), (40, 320, 10)])
def test_samples_are_independent_of_the_number_of_images(fours, n, samples, steps, small_network):
    detector = TransformationDetector(**SMALL, samples=samples, batch_size=32)
    counter = Counter()
    detector.fit(fours[:n], callbacks=[counter])
    assert counter.steps == steps
    assert detector.training_samples(n) == detector.record_["training_samples"] == samples
    assert detector.details_["epochs"] == samples / (8 * n)


def test_defaults_are_the_papers():
    for side, depth, widen, shift in ((32, 10, 4, 8), (64, 16, 8, 16)):
        detector = TransformationDetector(precision="float32")
        detector._begin((side, side, 3), "uint8")
        detector._build()
        assert detector.network_.name == f"wrn_{depth}_{widen}"
        assert detector.transformer_.n_transforms == 72
        assert detector.transformer_.transformations[4].ty == -shift
        assert detector.training_samples(5000) == 1_080_000
        assert (detector.batch_size, detector.learning_rate) == (128, 1e-3)


def test_settings_reach_the_network_and_the_optimiser(fours):
    class Kept(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.optimizer = self.model.optimizer

    kept, more = Kept(), {"weight_decay": 0.0, "hidden_layers": 1, "dropout_rate": 0.1}
    how = {"transformations": "rotations", "widen_factor": 1, "samples": 128, "verbose": 0}
    detector = TransformationDetector(**how, **more, optimizer="muon", learning_rate=2e-3)
    detector.fit(fours[:32], callbacks=[kept])
    assert type(kept.optimizer) is Muon
    assert float(kept.optimizer.learning_rate) == pytest.approx(2e-3)
    kinds = [type(each).__name__ for each in detector.network_.layers]
    assert kinds.count("Dense") == 2 and "Dropout" in kinds and not detector.network_.losses


@pytest.mark.parametrize("name", ["detector", "rotation_detector", "density_detector"])
def test_saved_and_loaded_scores_are_equal_bit_for_bit(name, tested, tmp_path, request):
    detector = request.getfixturevalue(name)
    path = tmp_path / "fours.keras"
    detector.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["fours.keras"]
    loaded = TransformationDetector.load(path)
    x, _ = tested
    expected, found = detector.scores(x), loaded.scores(x)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert loaded.get_settings() == detector.get_settings()


def test_a_model_that_is_replaced_while_it_is_read_is_refused(detector, tmp_path, monkeypatch):
    """Its alpha and threshold would be the old one's, its weights the new one's."""
    path, build = tmp_path / "a.keras", TransformationDetector._build

    def replaced(self):
        shutil.copy(path, tmp_path / "b.keras")
        os.replace(tmp_path / "b.keras", path)
        build(self)

    detector.save(path)
    monkeypatch.setattr(TransformationDetector, "_build", replaced)
    with pytest.raises(ValueError, match=r"a\.keras.*it was replaced while it was read"):
        TransformationDetector.load(path)


def test_custom_transformations_survive_saving(fours, tmp_path):
    pair = TransformationSet([(False, 0, 0, 0), (False, 0, 3, 0)])
    detector = TransformationDetector(**SMALL | {"transformations": pair}, epochs=0.5)
    detector.fit(fours[:40])
    detector.save(tmp_path / "pair.keras")
    loaded = TransformationDetector.load(tmp_path / "pair.keras")
    assert loaded.transformer_.transformations == pair.transformations
    np.testing.assert_array_equal(
        loaded.score_samples(fours[40:49]), detector.score_samples(fours[40:49])
    )


def test_scores_agree_across_backends(detector, tested, tmp_path):
    others = {"tensorflow", "torch", "jax"} - {keras.backend.backend()}
    others = [name for name in sorted(others) if importlib.util.find_spec(name)]
    if not others:
        pytest.skip("only one of tensorflow, torch and jax is installed")
    detector.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", tested[0])
    code = (
        "import numpy as np; from models.transformation_detector import TransformationDetector\n"
        "scores = TransformationDetector.load('model.keras').score_samples(np.load('x.npy'))\n"
        "np.save('scores.npy', scores)"
    )
    for name in others:
        environment = os.environ | {"KERAS_BACKEND": name, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
        np.testing.assert_allclose(
            np.load(tmp_path / "scores.npy"), detector.score_samples(tested[0]), rtol=1e-3
        )


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("optimizer, augmentation", [("adam", "none"), ("muon", "views")])
def test_training_that_was_killed_goes_on_as_the_unbroken(
    optimizer, augmentation, fours, tmp_path, small_network, fed
):
    """7 steps of 2 epochs of 10: within an epoch, after its checkpoint."""
    checkpoint, left = tmp_path / "run.checkpoint.keras", tmp_path / "left.checkpoint.keras"
    unbroken, resumed = watched(7, checkpoint), watched(7)
    for file, watch, every in ((checkpoint, unbroken, 0), (left, resumed, 100)):
        fed.append([])
        settings = SMALL | {"optimizer": optimizer, "augmentation": augmentation}
        detector = TransformationDetector(**settings, epochs=2, batch_size=64)
        detector.fit(fours[:80], checkpoint=file, checkpoint_seconds=every, callbacks=[watch])
    assert resumed.steps == 20 - 7
    epochs = [epoch_pairs(80, 8, seed=0, epoch=epoch) for epoch in range(2)]
    assert_resumed(unbroken, resumed, fed, epochs, n_done=7 * 64)


def test_a_checkpoint_of_other_settings_is_refused(fours, tmp_path, small_network):
    checkpoint = tmp_path / "run.checkpoint.keras"
    TransformationDetector(**SMALL, epochs=0.1).fit(fours[:20], checkpoint=checkpoint)
    with pytest.raises(
        ValueError, match=r"run\.checkpoint\.keras is the checkpoint of .*delete it"
    ):
        TransformationDetector(**SMALL, epochs=0.2).fit(fours[:20], checkpoint=checkpoint)


def test_memory_while_scoring_does_not_grow_with_the_images(detector):
    """Responses come one batch at a time, of a size that does not depend on the images' number."""
    sizes = []
    for n in (200, 301):
        batches = list(detector.log_responses(np.zeros((n, 8, 8, 1), np.uint8)))
        assert sum(len(log_p) for _, log_p in batches) == n
        sizes += [len(log_p) for _, log_p in batches[:-1]]
    assert len(set(sizes)) == 1 and sizes[0] * 8 <= 576


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((0, 16, 16, 1), np.uint8), "n > 0"),
        (np.zeros((16, 16, 1), np.uint8), r"shape \(n, h, w, c\)"),
        (np.zeros((2, 16, 16, 1), np.int32), "int32, expected uint8"),
        (np.full((2, 16, 16, 1), 255.0), "must lie in"),
        (np.full((2, 16, 16, 1), np.nan), "hold NaN"),
        (np.zeros((2, 16, 12, 1), np.uint8), "square"),
    ],
)
def test_images_that_make_no_sense_are_named(x, message):
    with pytest.raises(ValueError, match=message):
        TransformationDetector(**SMALL).fit(x)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"transformations": "all"},
            "transformations is 'all', expected one of full, simple, rotations",
        ),
        ({"score_name": "best"}, "score_name is 'best'"),
        ({"transformations": TransformationSet([(True, 0, 0, 0)])}, "has one alone"),
        (
            {"scored_transformations": "some"},
            "scored_transformations is 'some', expected one of all, unflipped",
        ),
        ({"depth": 0}, "depth is 0"),
        ({"widen_factor": 0}, "widen_factor is 0"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5, expected a whole number"),
        ({"alpha_images": 0}, "alpha_images is 0"),
        ({"samples": -1}, "samples is -1"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd', expected one of adam, muon"),
        ({"augmentation": "crops"}, "augmentation is 'crops', expected one of none, views"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"epochs": 0}, "epochs is 0, expected a number above 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"depth": 12}, "depth 12"),
    ],
)
def test_settings_that_make_no_sense_are_named(fours, settings, message):
    with pytest.raises(ValueError, match=message):
        TransformationDetector(**SMALL | settings).fit(fours)


def test_what_fit_accepts_can_be_loaded_whatever_the_device(monkeypatch):
    """The paper's network at 256x256: fewer images at once; and refused before any training."""
    for passes, side, images in ((144, 64, 2), (576, 64, 8), (144, 256, 1), (576, 256, 1)):
        monkeypatch.setattr(models.transformation_detector, "scoring_batch", lambda n=passes: n)
        detector = TransformationDetector()
        detector._begin((side, side, 3), "uint8")
        assert detector._images_at_once(72) == images
    with pytest.raises(ValueError, match="would exhaust memory: resize them"):
        TransformationDetector(verbose=0).fit(np.zeros((1, 512, 512, 3), np.uint8))


def test_scoring_needs_training_and_like_images(detector):
    with pytest.raises(RuntimeError, match="call fit"):
        TransformationDetector().score_samples(np.zeros((1, 16, 16, 1), np.uint8))
    with pytest.raises(ValueError, match="trained on"):
        detector.score_samples(np.zeros((1, 32, 32, 1), np.uint8))
    with pytest.raises(ValueError, match="float32, this detector was trained on uint8"):
        detector.score_samples(np.zeros((1, 8, 8, 1), np.float32))


def test_files_that_are_no_detector_are_refused(detector, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.keras"):
        detector.save(tmp_path / "model.h5")
    with pytest.raises(FileNotFoundError):
        TransformationDetector.load(tmp_path / "none.keras")
    path = tmp_path / "bad.keras"
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="is not a saved detector"):
        TransformationDetector.load(path)
    detector.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a saved detector"):
        TransformationDetector.load(path)
    with pytest.raises(ValueError, match=r"^precision 'half' is not one of auto, float32"):
        TransformationDetector.load(path, precision="half")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("detector.json", json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        TransformationDetector.load(path)


def test_images_that_are_all_the_same_are_warned_of(fours, small_network):
    detector = TransformationDetector(**SMALL, samples=64)
    for x in (fours[:1], fours[[3, 3, 3]], np.zeros_like(fours[:5])):
        with pytest.warns(UserWarning, match="the same: the scores will mean nothing"):
            detector.fit(x)
    detector.fit(fours[:2])


def test_the_mean_image_is_kept_for_anomaly_maps(fours, detector, tmp_path):
    expected = np.rint(fours.mean(0))
    np.testing.assert_array_equal(detector.details_["mean_image"], expected)
    detector.save(tmp_path / "a.keras")
    loaded = TransformationDetector.load(tmp_path / "a.keras")
    maps = loaded.anomaly_map(fours[:2])
    assert maps.shape == (2, 8, 8) and maps.dtype == np.float64
    np.testing.assert_allclose(maps, detector.anomaly_map(fours[:2]), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="images have shape"):
        loaded.anomaly_map(fours[:2, :4])


@pytest.mark.parametrize("fast", [True, False])
def test_a_saved_detector_keeps_the_precision_that_auto_took(fours, tmp_path, monkeypatch, fast):
    """Its thresholds are those of scores in that precision, wherever it is loaded."""
    detector = TransformationDetector(**SMALL | {"precision": "auto"}, samples=64)
    monkeypatch.setattr("utils.device._computes_bfloat16", lambda: fast)
    detector._begin(fours.shape[1:], "uint8")
    detector._build()
    k = detector.transformer_.n_transforms
    detector.alpha_ = np.ones((len(detector.scored_indices_), k))
    detector.rotation_alpha_ = np.ones((len(detector.scored_indices_), 4))
    detector.seconds_, detector.details_ = {"training": 1.0}, {}
    detector.save(tmp_path / "m.keras")
    monkeypatch.setattr("utils.device._computes_bfloat16", lambda: not fast)
    loaded = TransformationDetector.load(tmp_path / "m.keras")
    assert loaded.precision_ == ("mixed_bfloat16" if fast else "float32")
