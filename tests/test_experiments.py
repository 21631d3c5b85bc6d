import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import experiments
from utils.detector import Detector
from utils.results import read_details

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--epochs", "0.2", "--limit-train", "60", "--limit-test", "80", "--precision", "float32"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def run(tmp_path, *arguments):
    return experiments.main([*arguments, *QUICK, "--results-dir", str(tmp_path)])


def test_runs_tables_and_nothing_twice(tmp_path, capsys):
    assert run(tmp_path, "--classes", "4,0", "--runs", "2") == 0
    files = sorted((tmp_path / "digits").glob("*.npz"))
    expected = [f"digits_transformations_{c}_{r}.npz" for c in (0, 4) for r in (0, 1)]
    assert [file.name for file in files] == expected
    assert not list((tmp_path / "digits").glob("*checkpoint*"))
    details = read_details(files[1])
    assert details["seed"] == 1 and details["n_train"] == 60 and details["n_test"] == 80
    assert details["recipe"] == "small, 0.2 epochs, 60 training images, 80 test images"
    assert details["reduced"] and details["device"] and details["versions"]["keras"]
    assert set(details["seconds"]) == {"training", "alpha", "scoring"}
    assert details["found"]["training_samples"] == round(0.2 * 60 * 72)
    table = pd.read_csv(tmp_path / "digits" / "table.csv", dtype={"class": str})
    assert table["class"].tolist() == ["0", "4"] * 3 and (table["runs"] == 2).all()
    before = {file: file.stat().st_mtime_ns for file in files}
    capsys.readouterr()
    assert run(tmp_path, "--classes", "4,0", "--runs", "2") == 0
    assert "4 runs, 4 of them already in" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in files}


def test_the_seed_decides_the_scores(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / folder, "--classes", "3", "--seed", str(seed))
    scores = []
    for folder in "abc":
        with np.load(tmp_path / folder / "digits" / "digits_transformations_3_0.npz") as file:
            scores.append(file["scores_dirichlet"])
    np.testing.assert_array_equal(scores[0], scores[1])
    # the same part of the test set whatever the seed of training would be another experiment:
    assert not np.array_equal(scores[0], scores[2])


KILL = """
import os, signal, sys
import experiments, utils.datasets
from models.transformation_detector import TransformationDetector

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def write_half(file, **arrays):
    file.write(b"PK half a file")
    file.flush()
    kill()

if sys.argv[1] == "training":
    experiments.TimeEstimate.on_train_batch_end = lambda self, batch, logs=None: batch < 4 or kill()
elif sys.argv[1] == "scoring":
    TransformationDetector.score_variants = kill
else:
    utils.datasets.np.savez_compressed = write_half
experiments.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder, "--classes", "6")
    with np.load(folder / "digits" / "digits_transformations_6_0.npz") as file:
        return file["scores_dirichlet"]


@pytest.mark.parametrize("phase", ["training", "scoring", "writing"])
def test_a_killed_run_leaves_nothing_broken_and_can_be_finished(phase, tmp_path, unbroken):
    arguments = ["--classes", "6", *QUICK, "--results-dir", str(tmp_path)]
    killed = subprocess.run(
        [sys.executable, "-c", KILL, phase, *arguments], cwd=ROOT, env=ENVIRONMENT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("*.npz"))
    assert run(tmp_path, "--classes", "6") == 0
    files = {file.name for file in (tmp_path / "digits").iterdir()}
    assert files == {"digits_transformations_6_0.npz", "table.csv", "table.md", "roc.png"}
    with np.load(tmp_path / "digits" / "digits_transformations_6_0.npz") as file:
        np.testing.assert_array_equal(file["scores_dirichlet"], unbroken)


def test_results_of_another_recipe_are_not_mixed_in(tmp_path, capsys):
    run(tmp_path, "--classes", "5")
    assert run(tmp_path, "--classes", "5", "--recipe", "paper") == 2
    error = capsys.readouterr().err
    assert "was made by recipe 'small, 0.2 epochs" in error and "--results-dir" in error


def test_the_time_of_the_whole_is_told_while_the_first_run_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiments.TimeEstimate.__init__, "__defaults__", (0.0,))
    run(tmp_path, "--classes", "1,2")
    out = capsys.readouterr().out
    assert "hours for the 2 runs left" in out and "hours for the 1 runs left" in out


def test_the_estimate_is_the_sum_of_its_parts(capsys):
    class Detector:
        batch_size = 100

        def training_samples(self, n):
            return 3 * 72 * n

        def scoring_passes(self, n, n_scored):
            return 72 * (n + n_scored)

    estimate = experiments.TimeEstimate(Detector(), 5000, 10_000, remaining=50, after_seconds=-1)
    clock = iter(np.arange(0.0, 100.0))  # a batch of 100 a second
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.time, "perf_counter", lambda: next(clock))
        for batch in range(3):
            estimate.on_train_batch_end(batch)
    hours = 50 * (1_080_000 + 72 * 15_000 / 4) / 100 / 3600
    out = capsys.readouterr().out
    assert f"100 images/s: about {hours:.1f} hours for the 50 runs left" in out
    assert "--runs 1" in out and out.count("hours") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--classes", "eleven"], "unknown class 'eleven'; known are 0..9"),
        (["--methods", "magic"], "unknown method 'magic'; known are transformations"),
        (["--dataset", "cifar10", "--data-dir", "nowhere", "--report"], "no runs of cifar10"),
        (["--dataset", "cats_vs_dogs", "--data-dir", "nowhere"], "cats_vs_dogs.npz is missing"),
    ],
)
def test_mistakes_give_one_line(arguments, message, tmp_path, capsys):
    assert experiments.main([*arguments, "--results-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_classes_by_name_and_number():
    names = ["airplane", "automobile", "bird"]
    assert experiments.chosen_classes("all", names) == [0, 1, 2]
    assert experiments.chosen_classes("bird, 0", names) == [2, 0]


class Brightness(Detector):
    """Scores at most max_test images, by how near their brightness is to the training images'."""

    def __init__(self, max_test=100, seed=0):
        self.max_test, self.seed = max_test, seed

    def fit(self, x, y=None):
        self.mean_, self.seconds_ = x.mean(), {"training": 0.0}
        return self

    def score_samples(self, x):
        return -np.abs(x.mean((1, 2, 3)) - self.mean_)


@pytest.mark.parametrize("options, scored", [([], 100), (["--limit-test", "80"], 80)])
def test_a_method_may_score_a_part_of_the_test_set(options, scored, tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.METHODS, "brightness", experiments.Method(Brightness, runs=1))
    arguments = ["--methods", "brightness", "--classes", "0", "--recipe", "paper", *options]
    assert experiments.main([*arguments, "--results-dir", str(tmp_path)]) == 0
    details = read_details(tmp_path / "digits" / "digits_brightness_0_0.npz")
    assert details["n_test"] == scored and details["reduced"] == bool(options)


def test_every_method_has_the_papers_recipe_and_a_small_one():
    for method in experiments.METHODS.values():
        assert method.recipes["paper"] == {} and "small" in method.recipes
