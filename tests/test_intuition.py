import functools
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter as scipy_gaussian_filter
from scipy.special import softmax

import intuition_experiments as experiment
from transformations import SimpleTransformer, TransformationSet
from utils.detector import to_unit_range
from utils.dirichlet import estimate_alpha


@pytest.fixture(scope="module")
def threes(digits):
    return digits.x_train[digits.y_train == 3][:, ::2, ::2]


@pytest.fixture(scope="module")
def detector(threes):
    return experiment.train(np.tile(threes, (4, 1, 1, 1)), SimpleTransformer(), epochs=10)


def test_the_ascent_takes_the_steps_that_its_docstring_says():
    """Against NumPy, on a linear network, whose gradient is taken by central differences."""
    rng = np.random.default_rng(3)
    pair = TransformationSet([(False, 0, 0, 0), (True, 1, 0, 0)])
    inputs = keras.Input((4, 5, 1))
    dense = keras.layers.Dense(2)
    network = keras.Model(inputs, dense(keras.layers.Flatten()((inputs + 1) / 2)))
    w = rng.normal(size=(20, 2))
    dense.set_weights([w, np.zeros(2)])

    def score(image):
        views = [pair.transform_batch(image[None], [i]).ravel() for i in (0, 1)]
        return np.mean([softmax(view @ w)[i] for i, view in enumerate(views)])

    def gradient(image):
        slope = np.empty_like(image)
        for at in np.ndindex(image.shape):
            up, down = image.copy(), image.copy()
            up[at], down[at] = up[at] + 1e-6, down[at] - 1e-6
            slope[at] = (score(up) - score(down)) / 2e-6
        return slope

    x = rng.random((3, 4, 5, 1))
    expected = []
    for image in x:
        for _ in range(3):
            slope = gradient(image)
            weight = abs(slope * image)
            slope[weight < np.quantile(weight, 0.7)] = 0
            image = scipy_gaussian_filter(image + 0.5 * slope, (0.4, 0.4, 0))
        image = np.clip(image, 0, 1)
        expected.append(np.where(image < np.quantile(image, 0.7), 0, image))
    found = experiment.ascend(network, x, pair, steps=3, step_size=0.5, quantile=0.7, sigma=0.4)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_ascent_raises_the_score(detector, digits):
    zeros = digits.x_test[digits.y_test == 0][:6, ::2, ::2] / np.float32(255)
    found = experiment.ascend(detector.network_, zeros, SimpleTransformer(), steps=20)
    before, after = (detector.scores(2 * x - 1)["simplified"] for x in (zeros, found))
    assert (after > before).all() and after.mean() > before.mean() + 0.1


def test_the_network_tells_threes_transformations_apart(detector, threes):
    log_p = responses(detector, threes)
    assert log_p.shape == (len(threes), 8, 8)
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-5)
    assert (log_p.argmax(-1) == np.arange(8)).mean() > 0.6


def responses(detector, x):
    return np.concatenate([each for _, each in detector.log_responses(to_unit_range(x))])


def test_the_network_is_the_authors(detector):
    sizes = [32 * 9 + 32, 4 * 32, 4 * 4 * 32 * 10 + 10, 4 * 10, 10 * 8 + 8]
    assert detector.network_.count_params() == sum(sizes)


def test_the_last_tenth_of_the_images_is_left_out(threes):
    pair, x = TransformationSet([(False, 0, 0, 0), (True, 0, 0, 0)]), threes[:40]
    changes = [x.copy(), x.copy()]
    changes[0][36:], changes[1][35] = 0, 255
    weights, *found = (
        experiment.train(each, pair, epochs=1).network_.get_weights()[0] for each in (x, *changes)
    )
    assert [np.allclose(weights, each, atol=1e-6) for each in found] == [True, False]


@pytest.fixture
def data_dir(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(80) % 10
    x = rng.integers(0, 256, (80, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return tmp_path


def test_a_run_measures_the_test_images_of_both_digits(threes, monkeypatch):
    """Both AUROCs, again from the network that the run trained; flipped threes are the eights."""
    normal = threes[90:]
    x_train, x_test = threes[:90], np.concatenate([normal, normal[:, :, ::-1]])
    x_train = np.tile(x_train, (4, 1, 1, 1))
    y_train, y_test = np.full(360, 3), np.repeat([3, 8], len(normal))
    data = SimpleNamespace(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    kept = []

    def train(*arguments, **settings):
        kept.append(original(*arguments, **settings))
        return kept[-1]

    original = experiment.train
    monkeypatch.setattr(experiment, "train", train)
    pair = TransformationSet([(False, 0, 0, 0), (True, 0, 0, 0)])
    row = experiment.run_pair(data, 3, 8, pair, epochs=10, seed=0)
    log_p = [responses(kept[0], x) for x in (x_train[:324], normal, normal[:, :, ::-1])]
    simplified = [np.exp(each[:, [0, 1], [0, 1]]).mean(1) for each in log_p]
    alpha = estimate_alpha(np.exp(log_p[0]).mean(0), log_p[0].mean(0))
    dirichlet = [((alpha - 1) * each).sum((1, 2)) for each in log_p]
    for name, (_, normal, anomaly) in {"simplified": simplified, "dirichlet": dirichlet}.items():
        wins = (normal[:, None] > anomaly) + 0.5 * (normal[:, None] == anomaly)
        assert row[name] == pytest.approx(100 * wins.mean(), abs=1e-2)
    assert row["dirichlet"] > 80


def test_the_command_runs_each_pair_once(data_dir, capsys, monkeypatch):
    made = []

    def run_pair(data, *arguments):
        made.append(arguments)
        return {"dirichlet": 90.0 + len(made), "simplified": 80.0 + len(made) ** 2, "seconds": 1.0}

    monkeypatch.setattr(experiment, "run_pair", run_pair)
    command = ["--pairs", "--seeds", "2", "--data-dir", str(data_dir)]
    command += ["--results-dir", str(data_dir / "results")]
    assert experiment.main(command) == 0
    path = data_dir / "results" / "intuition" / "pairs.csv"
    runs = pd.read_csv(path)
    assert len(runs) == len(made) == 8
    assert not runs[experiment.KEY].duplicated().any()
    table = experiment.summarise(path)
    assert table["published"].tolist() == [64.6, 95.7, 91.9, 91.9]
    for _, row in table.iterrows():
        same = (runs[experiment.KEY[:3]] == row[experiment.KEY[:3]]).all(axis=1)
        assert row["dirichlet"] == pytest.approx(runs.loc[same, "dirichlet"].mean())
        assert row["simplified_sem"] == pytest.approx(runs.loc[same, "simplified"].sem())
    table = " ".join(capsys.readouterr().out.split())
    assert "| 8 | 3 | identity; flip | 93.0 ± 2.0 |" in table
    assert experiment.main(command) == 0
    assert len(made) == 8
    pd.testing.assert_frame_equal(pd.read_csv(path), runs)
    own = ["--normal", "4", "--anomaly", "9", "--transformations", "0,0,0,0", "1,-3,2,1"]
    assert experiment.main(command[1:] + own) == 0
    assert (
        pd.read_csv(path)["transformations"].tolist()[8:]
        == ["identity | flip, translate (-3, +2), rotate 90"] * 2
    )
    assert experiment.main([*command, "--epochs", "1"]) == 0  # not as published
    reduced = experiment.summarise(path).query("epochs == 1")
    assert len(reduced) == 4 and reduced["published"].isna().all()
    assert not list(path.parent.glob(".*"))


def test_runs_of_unpadded_images_are_shown_and_not_taken_for_done(data_dir, capsys, monkeypatch):
    path = data_dir / "intuition" / "pairs.csv"
    path.parent.mkdir()
    row = f"8,3,identity | flip,10,0,69.5,70.9,42.2,{experiment.backend()}\n"
    header = "normal,anomaly,transformations,epochs,seed,dirichlet,simplified,seconds,backend\n"
    path.write_text(header + row)
    run_pair = {"dirichlet": 60.0, "simplified": 50.0, "seconds": 1.0}
    monkeypatch.setattr(experiment, "run_pair", lambda *arguments: run_pair)
    command = ["--normal", "8", "--anomaly", "3", "--seeds", "1", "--data-dir", str(data_dir)]
    assert experiment.main([*command, "--results-dir", str(data_dir)]) == 0
    assert pd.read_csv(path)["side"].tolist() == [28, 32]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for cells in ("69.5 | 70.9 | 1 | 64.6 | +4.9 | 28", "60.0 | 50.0 | 1 | 64.6 | -4.6 | 32"):
        assert f"| 8 | 3 | identity; flip | {cells} |" in lines


def test_the_command_draws_the_figure(data_dir, capsys, monkeypatch):
    ascend = functools.partial(experiment.ascend, steps=2)
    monkeypatch.setattr(experiment, "ascend", ascend)
    command = ["--figure", "--data-dir", str(data_dir)]
    assert experiment.main([*command, "--results-dir", str(data_dir)]) == 0
    assert (data_dir / "intuition" / "figure1.png").read_bytes()[:4] == b"\x89PNG"
    assert "of threes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, message",
    [
        (["--normal", "4"], "go together"),
        (["--normal", "4", "--anomaly", "4"], "both 4"),
        (["--transformations", "0,0,0,7"], "0,0,0,7"),
        (["--transformations", "0,0,0,2"], "goes with --normal"),
        (["--transformations", "0,32,0,0"], "smaller translations"),
        (["--seeds", "0"], "argument --seeds: '0' is no whole number above 0"),
        (["--sigma", "0"], "--sigma is 0.0"),
    ],
)
def test_what_makes_no_sense_is_named(command, message, capsys):
    with pytest.raises(SystemExit):
        experiment.main(command)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (b"normal,anomaly\n8,3\n", "lacks one of the columns"),
        (b"", "is damaged"),
        (b'normal,"anomaly\n8,3', "is damaged"),
        (b"\xff\xfe\0normal", "is damaged"),
    ],
)
def test_a_file_that_holds_no_runs_is_named(content, message, data_dir, capsys):
    folder = data_dir / "intuition"
    folder.mkdir()
    (folder / "pairs.csv").write_bytes(content)
    command = ["--pairs", "--data-dir", str(data_dir), "--results-dir", str(data_dir)]
    assert experiment.main(command) == 2
    assert f"pairs.csv {message}" in capsys.readouterr().err


def test_missing_images_are_named(tmp_path, capsys):
    (tmp_path / "mnist.npz").write_bytes(b"nothing")
    assert experiment.main(["--data-dir", str(tmp_path), "--results-dir", str(tmp_path)]) == 2
    assert "mnist.npz is damaged" in capsys.readouterr().err


def test_options_reach_the_pairs_and_the_figure(data_dir, monkeypatch):
    asked, real = [], experiment.train
    ascents, ascend = [], experiment.ascend

    def train(x, transformations, **how):
        asked.append(how)
        return real(x, transformations, **how | {"epochs": 1})

    def ascent(*arguments, **how):
        ascents.append(how)
        return ascend(*arguments, **how, steps=1)

    monkeypatch.setattr(experiment, "train", train)
    monkeypatch.setattr(experiment, "ascend", ascent)
    folders = ["--data-dir", str(data_dir), "--results-dir", str(data_dir)]
    pair = ["--normal", "4", "--anomaly", "9", "--seeds", "2", "--epochs", "3"]
    assert experiment.main([*folders, *pair]) == 0
    assert asked == [{"epochs": 3, "seed": 0}, {"epochs": 3, "seed": 1}]
    asked.clear()
    figure = ["--figure", "--figure-epochs", "2", "--figure-seed", "5", "--sigma", "0.7"]
    assert experiment.main([*folders, *figure]) == 0
    assert asked == [{"epochs": 2, "seed": 5}] and ascents == [{"sigma": 0.7}] * 2
