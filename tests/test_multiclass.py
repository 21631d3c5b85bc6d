import functools
import json
import shutil

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

import multiclass_experiment as experiment
from baselines.odin import odin
from models import two_headed
from models.two_headed import Classifier, TwoHeaded
from tests.conftest import assert_resumed, watched
from transformations import SimpleTransformer, Transformer
from utils.datasets import DatasetError, load_test_images
from utils.device import resolve_precision
from utils.optimizers import SGD, Muon, step_schedule
from utils.results import NEEDED, read_run

# ------------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_pytorchs(nesterov):
    """Against its rule in NumPy, and against PyTorch where that is installed."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=4), rng.normal(size=(9, 4))
    rates = [0.1] * 3 + [0.02] * 3 + [0.004] * 3
    w, v, expected = start.copy(), 0, []
    for rate, gradient in zip(rates, gradients, strict=True):
        v = 0.9 * v + gradient
        w = w - rate * (gradient + 0.9 * v if nesterov else v)
        expected.append(w)
    variable = keras.Variable(start, dtype="float32")
    sgd = SGD(0.1, momentum=0.9, nesterov=nesterov)
    found = []
    for rate, gradient in zip(rates, gradients, strict=True):
        sgd.learning_rate = rate
        sgd.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
        found.append(keras.ops.convert_to_numpy(variable.value).copy())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    try:
        import torch
    except ImportError:
        return
    parameter = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.SGD([parameter], 0.1, momentum=0.9, nesterov=nesterov)
    for rate, gradient in zip(rates, gradients, strict=True):
        theirs.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient)
        theirs.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected[-1], rtol=1e-12)


def test_the_learning_rate_drops_at_epochs_60_120_and_160_of_200():
    schedule = step_schedule(0.1, 200 * 391, *two_headed.DROPS)
    for epoch, before, after in ((60, 0.1, 0.02), (120, 0.02, 0.004), (160, 0.004, 0.0008)):
        assert float(schedule(epoch * 391 - 1)) == pytest.approx(before)
        assert float(schedule(epoch * 391)) == pytest.approx(after)
    assert float(schedule(0)) == pytest.approx(0.1)
    # in proportion where training is shorter, and where it is a single step
    short = step_schedule(0.1, 10, *two_headed.DROPS)
    assert [round(float(short(i)), 4) for i in (2, 3)] == [0.1, 0.02]
    assert float(step_schedule(0.1, 1, *two_headed.DROPS)(0)) <= 0.1


# -------------------------------------------------------------------------------------- training


def test_every_image_once_an_epoch_under_a_transformation_of_its_own():
    one, two = two_headed.random_pairs(500, 72, 3, 0), two_headed.random_pairs(500, 72, 3, 1)
    np.testing.assert_array_equal(one, two_headed.random_pairs(500, 72, 3, 0))
    for pairs in (one, two):
        np.testing.assert_array_equal(np.sort(pairs // 72), np.arange(500))
        assert np.bincount(pairs % 72, minlength=72).max() < 25  # 7 on average
    assert not np.array_equal(one // 72, two // 72)
    assert np.mean((one % 72)[np.argsort(one // 72)] == (two % 72)[np.argsort(two // 72)]) < 0.1


class History(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def glyphs(n, seed):
    """Noisy images that look different under all of the simple set; every other is a negative."""
    x = np.random.default_rng(seed).integers(0, 60, (n, 8, 8, 1), dtype=np.uint8)
    x[:, 1:7, 1:3] += 150
    x[:, 1:3, 3:5] += 150
    x[1::2] = 255 - x[1::2]
    return x, np.arange(n) % 2


class Simple(TwoHeaded):
    """With the simple transformations instead of all 72."""

    def _transformations(self):
        return SimpleTransformer()


def test_both_heads_learn(monkeypatch):
    monkeypatch.setattr("utils.training.LEAST_STEPS", 1)  # each epoch has a loss of its own
    x, y = glyphs(128, seed=100)
    history = History()
    how = {"depth": 10, "widen_factor": 1, "precision": "float32", "verbose": 0}
    detector = Simple(n_categories=2, epochs=8, batch_size=32, **how)
    detector.fit(x, y, callbacks=[history])
    losses = [logs["loss"] for logs in history.logs]
    assert losses[-1] < 0.6 * losses[0]
    assert history.logs[-1]["categories_accuracy"] > 0.7
    assert history.logs[-1]["transformations_accuracy"] > 0.6
    x, y = glyphs(48, seed=1)
    assert detector.accuracy(x, y) > 0.7
    applied = np.arange(48) // 6
    moved = SimpleTransformer().transform_batch(x, applied)
    logits = detector.network_(2 * (moved.astype("float32") / 255) - 1)["transformations"]
    assert np.mean(keras.ops.convert_to_numpy(logits).argmax(1) == applied) > 0.6


class Small(Simple):
    """One convolution and two heads, quickly built and trained."""

    def _create_network(self):
        layers, seed = keras.layers, self.seed
        seeds = [keras.initializers.GlorotUniform(seed + i) for i in range(3)]
        images = keras.Input((8, 8, 1))
        x = layers.Conv2D(4, 3, use_bias=False, kernel_initializer=seeds[0])(images)
        x = layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(x)))
        categories = layers.Dense(2, kernel_initializer=seeds[1])(x)
        transformations = layers.Dense(len(self.transformer_), kernel_initializer=seeds[2])(x)
        heads = {"categories": categories, "transformations": transformations}
        return keras.Model(images, heads, name="two_headed")


def test_resumed_training_goes_on_as_the_unbroken(tmp_path, fed):
    """What the next steps compute is as it was, but for rounding."""
    x, y = glyphs(150, seed=100)
    how = {"n_categories": 2, "epochs": 2, "batch_size": 32, "verbose": 0}
    checkpoint, left = tmp_path / "run.checkpoint.keras", tmp_path / "left.checkpoint.keras"
    unbroken, resumed = watched(3, checkpoint), watched(3)
    for file, every, watch in ((checkpoint, 0, unbroken), (left, 100, resumed)):
        fed.append([])
        Small(**how).fit(x, y, checkpoint=file, checkpoint_seconds=every, callbacks=[watch])
    assert (unbroken.steps, resumed.steps) == (10, 10 - 3)
    epochs = [two_headed.random_pairs(150, 8, 0, epoch) for epoch in range(2)]
    assert_resumed(unbroken, resumed, fed, epochs, n_done=3 * 32)
    with pytest.raises(ValueError, match="checkpoint of a training with other settings"):
        Small(**how | {"epochs": 4}).fit(x, y, checkpoint=left)
    with pytest.raises(ValueError, match="checkpoint of a training with other settings"):
        Small(**how).fit(x, 1 - y, checkpoint=left)


def test_one_cycle_trains_by_muon_whose_rate_rises_and_falls():
    class Optimizer(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.kept = self.model.optimizer

    x, y = glyphs(64, seed=100)
    optimizer = Optimizer()
    how = {"n_categories": 2, "epochs": 5, "batch_size": 32, "verbose": 0}
    detector = Small(schedule="one_cycle", learning_rate=0.01, **how)
    detector.fit(x, y, callbacks=[optimizer])
    assert isinstance(optimizer.kept, Muon) and int(optimizer.kept.iterations) == 10
    rates = [float(optimizer.kept._learning_rate(step)) for step in range(11)]
    assert rates[0] == pytest.approx(0.01 / 25) and rates[-1] == pytest.approx(0, abs=1e-6)
    assert np.argmax(rates) == 3 and max(rates) == pytest.approx(0.01)
    Small(**how).fit(x, y, callbacks=[optimizer])  # the paper's
    assert type(optimizer.kept) is SGD and optimizer.kept.nesterov
    assert optimizer.kept.momentum == 0.9
    rates = [float(optimizer.kept._learning_rate(step)) for step in range(10)]
    assert rates == pytest.approx([0.1] * 3 + [0.02] * 3 + [0.004] * 2 + [0.0008] * 2)


def test_a_classifier_is_trained_on_augmented_images(digits):
    transformations = two_headed.augmentations()
    assert len(transformations) == 2 * 9 * 9
    assert {(t.flip, t.k) for t in transformations.transformations} == {(False, 0), (True, 0)}
    history = History()
    x, y = digits.x_train[:100, ::2, ::2], digits.y_train[:100]
    detector = Classifier(depth=10, widen_factor=1, epochs=1, batch_size=50, verbose=0)
    detector.fit(x, y, callbacks=[history])
    assert set(history.logs[0]) == {"loss", "accuracy"}
    assert detector.transformer_.to_list() == transformations.to_list()


@pytest.mark.parametrize("y", [np.arange(99) % 10, np.arange(100) % 11, np.full(100, 0.5)])
def test_categories_that_do_not_fit_are_refused(digits, y):
    with pytest.raises(ValueError, match="expected 100 numbers under 10"):
        Classifier().fit(digits.x_train[:100], y)


# --------------------------------------------------------------------------------------- scoring


@functools.cache
def untrained(precision):
    """Images, and both detectors as they are before their first step."""
    x = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    how = {"depth": 10, "widen_factor": 1, "precision": precision, "verbose": 0}
    how |= {"temperature": 2.0, "perturbation": 0.01}
    detectors = [kind(**how) for kind in (TwoHeaded, Classifier)]
    for detector in detectors:
        detector._begin(x.shape[1:], "uint8")
        detector.transformer_ = detector._transformations()
        detector.network_ = detector._create_network()
    return x, detectors


def test_scores_are_the_mean_probability_of_the_right_transformation():
    x, (detector, _) = untrained("float32")
    transformations = Transformer()
    expected = np.zeros(len(x))
    for t in range(72):
        moved = transformations.transform_batch(x, np.full(len(x), t))
        logits = detector.network_(2 * (moved.astype("float32") / 255) - 1)["transformations"]
        expected += softmax(keras.ops.convert_to_numpy(logits), axis=1)[:, t] / 72
    scores = detector.score_samples(x)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_odin_scores_the_categories_of_either_network_in_float32(precision):
    x, detectors = untrained(precision)
    names = ["transformations", "odin_two_headed", "maximum_softmax_two_headed"]
    for detector, expected in zip(detectors, (names, ["odin", "maximum_softmax"]), strict=True):
        network = detector.categories()
        assert {layer.compute_dtype for layer in network.layers} == {"float32"}
        stored = detector.network_.get_weights()
        for one, other in zip(network.get_weights(), stored, strict=False):
            np.testing.assert_array_equal(one, other)
        scores = detector.scores(x)
        assert list(scores) == expected
        logits = keras.ops.convert_to_numpy(network(2 * (x.astype("float32") / 255) - 1))
        *_, perturbed, plain = scores.values()
        np.testing.assert_allclose(plain, log_softmax(logits, axis=1).max(1), rtol=1e-4)
        expected = odin(network, x, temperature=2.0, perturbation=0.01)
        np.testing.assert_allclose(perturbed, expected, rtol=1e-6)


METHODS = (
    "transformations",
    "odin_two_headed",
    "maximum_softmax_two_headed",
    "odin",
    "maximum_softmax",
)


@pytest.fixture
def data_dir(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    y = np.arange(20) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    np.savez(tmp_path / "tiny_imagenet.npz", x_test=x[::-1] // 2)
    return tmp_path


def test_the_command_trains_scores_and_reports_once(data_dir, capsys, monkeypatch):
    command = ["--depth", "10", "--widen-factor", "1", "--epochs", "2", "--limit-test", "5"]
    command += ["--data-dir", str(data_dir), "--results-dir", str(data_dir), "--verbose", "0"]
    assert experiment.main(command) == 0
    path = data_dir / "multiclass" / "tiny_imagenet_wrn_10_1_0.npz"
    normal, scores, details = read_run(path)
    np.testing.assert_array_equal(normal, [True] * 5 + [False] * 5)
    assert details["precision"] == resolve_precision("auto")
    assert details["settings"]["odin"] == {"temperature": 1000, "perturbation": 0.0014}
    table = capsys.readouterr().out
    for method in METHODS:
        row = next(line for line in table.splitlines() if f"| {method} " in line)
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[2] == "reduced: WRN-10-1, 2 epochs, 5 test images a set"
        assert float(cells[4]) == round(100 * roc_auc_score(normal, scores[method]), 1)
    assert "95.7 / 96.1 / 95.4" in table and "92.1 / 89.0 / 93.6" in table
    before = path.read_bytes()
    assert experiment.main(command) == 0
    assert path.read_bytes() == before
    path.unlink()  # each of several is a file of its own, from the networks that are there
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert experiment.main([*command, "--out", "tiny_imagenet,cifar10"]) == 0
    normal, again, _ = read_run(path)
    np.testing.assert_array_equal(normal, [True] * 5 + [False] * 5)
    for method, values in scores.items():
        np.testing.assert_allclose(again[method], values, rtol=1e-3, atol=1e-5)
    assert experiment.main([*command, "--perturbation", "0.002"]) == 2
    assert "choose another --results-dir" in capsys.readouterr().err


def test_options_reach_both_networks(data_dir, monkeypatch):
    made, seen = [], []

    class Stop(Exception):
        pass

    def noted(create):
        def fit(self, x, y, **_):
            made.append(self.get_params())
            seen.append((len(x), len(y)))
            if create is Classifier:
                raise Stop
            self.seconds_ = {"training": 0, "scoring": 0}

        nothing = {"accuracy": lambda *_: 1.0, "scores": lambda *_: {}}
        return type(create.__name__, (create,), {"fit": fit} | nothing)

    monkeypatch.setattr(experiment, "TwoHeaded", noted(TwoHeaded))
    monkeypatch.setattr(experiment, "Classifier", noted(Classifier))
    command = ["--seed", "7", "--precision", "float32", "--limit-train", "13", "--epochs", "3"]
    command += ["--data-dir", str(data_dir), "--results-dir", str(data_dir), "--depth", "10"]
    with pytest.raises(Stop):
        experiment.command(experiment.parse_arguments([*command, "--recipe", "one_cycle"]))
    assert seen == [(13, 13)] * 2
    for settings in made:
        assert (settings["seed"], settings["precision"], settings["epochs"]) == (7, "float32", 3)
        assert (settings["depth"], settings["schedule"]) == (10, "one_cycle")


def test_weight_decay_and_seed_reach_the_network():
    def network(**settings):
        detector = Classifier(depth=10, widen_factor=1, precision="float32", **settings)
        detector._begin((8, 8, 3), "uint8")
        return detector._create_network()

    assert not network(weight_decay=0.0).losses
    one, two = (float(sum(network(weight_decay=d).losses)) for d in (1e-4, 1e-3))
    assert two == pytest.approx(10 * one, rel=1e-4)
    a, b, c = (network(seed=seed).get_weights()[0] for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_the_areas_are_those_of_the_positive_class_that_their_name_says(tmp_path):
    rng = np.random.default_rng(0)
    normal = np.arange(3000) < 1000
    scores = rng.normal(size=3000) + normal
    folder = tmp_path / "multiclass"
    details = dict.fromkeys(NEEDED, "") | {"out": "cifar100", "recipe": "paper", "seed": 0}
    details["accuracy"] = {"two_headed": 0.5, "one_headed": 0.6}
    arrays = {f"scores_{method}": scores for method in METHODS}
    folder.mkdir()
    np.savez(
        folder / "cifar100_wrn_16_8_0.npz",
        normal=normal,
        details=np.array(json.dumps(details)),
        **arrays,
    )
    row = experiment.report(folder).splitlines()[2]
    auroc, aupr_in, aupr_out = (float(cell) for cell in row.split("|")[5:8])
    assert auroc == pytest.approx(100 * roc_auc_score(normal, scores), abs=0.051)
    expected = 100 * average_precision_score(normal, scores)
    assert aupr_in == pytest.approx(expected, abs=0.3)
    expected = 100 * average_precision_score(~normal, -scores)
    assert aupr_out == pytest.approx(expected, abs=0.3)


def test_other_test_images(data_dir, tmp_path):
    grey = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1)
    labels = np.array([0, 9])
    np.savez(tmp_path / "mnist.npz", x_train=grey, y_train=labels, x_test=grey, y_test=labels)
    found = load_test_images("mnist", tmp_path)
    assert found.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(found[:, 2:-2, 2:-2, 1], grey[..., 0])
    (data_dir / "tiny_imagenet.npz").unlink()
    with pytest.raises(DatasetError, match=r"tiny_imagenet\.npz and .* are missing"):
        load_test_images("tiny_imagenet", data_dir)
    folder = data_dir / "tiny_imagenet" / "images"
    folder.mkdir(parents=True)
    image = np.repeat(np.repeat(found[0], 2, axis=0), 2, axis=1)
    keras.utils.save_img(folder / "test_0.png", image, scale=False)
    np.testing.assert_array_equal(load_test_images("tiny_imagenet", data_dir), found[:1])
    test = data_dir / "tiny_imagenet" / "test" / "images"  # as the archive unpacks
    test.mkdir(parents=True)
    keras.utils.save_img(test / "test_0.JPEG", np.full((64, 64, 3), 8), scale=False)
    (data_dir / "tiny_imagenet" / "words.txt").write_text("n00001740 entity")
    assert (load_test_images("tiny_imagenet", data_dir) == 8).all()
    shutil.rmtree(data_dir / "tiny_imagenet" / "test")
    (data_dir / "tiny_imagenet" / "words.txt").unlink()
    (folder / "test_1.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"test_1\.png"):
        load_test_images("tiny_imagenet", data_dir)
    np.savez(data_dir / "tiny_imagenet.npz", x_test=image[None])
    with pytest.raises(DatasetError, match=r"shape \(1, 64, 64, 3\), expected"):
        load_test_images("tiny_imagenet", data_dir)


def test_odins_settings_are_refused_before_any_training(data_dir, capsys):
    command = ["--data-dir", str(data_dir), "--results-dir", str(data_dir), "--perturbation", "-1"]
    assert experiment.main(command) == 2
    assert "perturbation is -1.0, expected a number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, recipe",
    [
        ([], "paper"),
        (["--depth", "16", "--epochs", "200"], "paper"),
        (
            ["--epochs", "1.5", "--limit-train", "9"],
            "reduced: WRN-16-8, 1.5 epochs, 9 training images",
        ),
        (["--recipe", "one_cycle"], "reduced: WRN-16-2, one_cycle, 30 epochs"),
        (
            ["--recipe", "one_cycle", "--depth", "10", "--epochs", "200"],
            "reduced: WRN-10-2, one_cycle",
        ),
    ],
)
def test_recipes_are_named_by_what_is_reduced(command, recipe):
    assert experiment.recipe_name(experiment.parse_arguments(command)) == recipe


@pytest.mark.parametrize("option", ["--epochs", "--limit-train", "--limit-test"])
def test_what_makes_no_sense_is_named(option, capsys):
    with pytest.raises(SystemExit):
        experiment.main([option, "0"])
    assert f"argument {option}: '0' is no" in capsys.readouterr().err
