import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest

import experiments
import models.transformation_detector
from baselines import METHODS
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from tests.conftest import create_small_network
from tests.test_datasets import small_arrays
from utils import runs
from utils.datasets import LAYOUTS, Layout, random_part
from utils.detector import Detector
from utils.device import PRECISIONS, peak_memory, reset_peak_memory
from utils.results import read_details, read_run
from utils.runs import Method
from utils.settings import choice, setting, whole_number

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--epochs", "2", "--limit-train", "60", "--limit-test", "80", "--precision", "float32"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@dataclass(eq=False, repr=False, kw_only=True)
class Brightness(Detector):
    """Scores at most max_test images, by how near their brightness is to the training images'."""

    max_test: int = setting(100, whole_number())

    def _fit(self, x, checkpoint, callbacks):
        self.mean_ = x.mean()

    def _scores(self, x):
        return {"own": -np.abs(x.mean((1, 2, 3)) - self.mean_)}


@dataclass(eq=False, repr=False, kw_only=True)
class Precise(Brightness):
    precision: str = setting("auto", choice(*PRECISIONS))


def make_quick(patch):
    """The method with a small network and 8 transformations."""
    module, method = models.transformation_detector, METHODS["transformations"]
    patch.setattr(module, "create_wide_residual_network", create_small_network)
    patch.setitem(method.recipes, "small", {"transformations": "simple", "widen_factor": 1})


@pytest.fixture
def quick(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture
def brightness(monkeypatch):
    """A method that takes no time."""
    monkeypatch.setitem(METHODS, "brightness", Method(Brightness, runs=1))


def run(tmp_path, *arguments):
    return experiments.main([*arguments, *QUICK, "--results-dir", str(tmp_path)])


def test_runs_tables_and_nothing_twice(tmp_path, capsys, quick):
    assert run(tmp_path, "--classes", "4,0", "--runs", "2") == 0
    files = sorted((tmp_path / "digits").glob("*.npz"))
    expected = [f"digits_transformations_{c}_{r}.npz" for c in (0, 4) for r in (0, 1)]
    assert [file.name for file in files] == expected
    assert not list((tmp_path / "digits").glob("*checkpoint*"))
    details = read_details(files[1])
    assert details["seed"] == 1 and details["n_train"] == 60 and details["n_test"] == 80
    assert details["recipe"] == "small, 2 epochs, 60 training images, 80 test images"
    assert details["reduced"] and details["device"] and details["versions"]["keras"]
    assert set(details["seconds"]) == {"training", "alpha", "scoring"}
    assert details["found"]["training_samples"] == 2 * 60 * 8
    table = pd.read_csv(tmp_path / "digits" / "table.csv", dtype={"class": str})
    assert table["class"].tolist() == ["0", "4"] * 3 and (table["runs"] == 2).all()
    before = {file: file.stat().st_mtime_ns for file in files}
    capsys.readouterr()
    assert run(tmp_path, "--classes", "4,0", "--runs", "2") == 0
    assert "4 runs, 4 of them done already" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in files}


def test_the_seed_decides_the_scores(tmp_path, quick):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / folder, "--classes", "3", "--seed", str(seed))
    scores = []
    for folder in "abc":
        with np.load(tmp_path / folder / "digits" / "digits_transformations_3_0.npz") as file:
            scores.append(file["scores_dirichlet"])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-2)
    # the same part of the test set whatever the seed of training would be another experiment:
    assert not np.allclose(scores[0], scores[2], rtol=0.1)


KILL = """
import os, signal, sys
import pytest
import experiments, utils.files
from tests.test_experiments import make_quick
make_quick(pytest.MonkeyPatch())
from models.transformation_detector import TransformationDetector
from utils.runs import TimeEstimate

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def write_half(file, **arrays):
    file.write(b"PK half a file")
    file.flush()
    kill()

if sys.argv[1] == "training":
    TimeEstimate.on_train_batch_end = lambda self, batch, logs=None: batch < 2 or kill()
elif sys.argv[1] == "scoring":
    TransformationDetector.scores = kill
else:
    utils.files.np.savez_compressed = write_half
experiments.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        run(folder, "--classes", "6")
    with np.load(folder / "digits" / "digits_transformations_6_0.npz") as file:
        return file["scores_dirichlet"]


@pytest.mark.parametrize("phase", ["training", "scoring", "writing"])
def test_a_killed_run_leaves_nothing_broken_and_can_be_finished(
    phase, tmp_path, unbroken, quick, monkeypatch
):
    arguments = ["--classes", "6", *QUICK, "--results-dir", str(tmp_path)]
    killed = subprocess.run(
        [sys.executable, "-c", KILL, phase, *arguments], cwd=ROOT, env=ENVIRONMENT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("digits*.npz"))
    checkpoint = tmp_path / "digits" / "digits_transformations_6_0.checkpoint.keras"
    assert checkpoint.exists() == (phase != "training")  # which is over before its first is due
    if checkpoint.exists():
        monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert run(tmp_path, "--classes", "6") == 0
    files = {file.name for file in (tmp_path / "digits").iterdir() if file.name[0] != "."}
    assert files == {"digits_transformations_6_0.npz", "table.csv", "table.md", "roc.png"}
    with np.load(tmp_path / "digits" / "digits_transformations_6_0.npz") as file:
        np.testing.assert_allclose(file["scores_dirichlet"], unbroken, rtol=1e-2)


def test_results_of_another_recipe_are_not_mixed_in(tmp_path, capsys, brightness):
    arguments = ["--methods", "brightness", "--classes", "5"]
    assert run(tmp_path, *arguments) == 0
    for change, message in (
        (["--recipe", "paper"], "was made with recipe 'small, 60 training images, 80 test images'"),
        (["--seed", "1"], "was made with seed 0, not 1"),
    ):
        assert run(tmp_path, *arguments, *change) == 2
        error = capsys.readouterr().err
        assert message in error and "--results-dir" in error


def test_runs_of_another_backend_or_precision_are_not_taken_for_done(
    tmp_path, capsys, monkeypatch, brightness
):
    command = ["--methods", "brightness", "--classes", "5", "--results-dir", str(tmp_path)]
    assert experiments.main(command) == 0
    monkeypatch.setattr(runs, "backend", lambda: "torch")
    assert experiments.main(command) == 2
    assert "was made with backend" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(METHODS, "brightness", Method(Precise, runs=1))
    monkeypatch.setattr(runs, "resolve_precision", lambda _: "mixed_bfloat16")
    assert experiments.main(command) == 2
    error = capsys.readouterr().err
    assert "was made with precision 'float32', not 'mixed_bfloat16'" in error


def test_the_runs_of_a_clusters_own_devices_are_done(tmp_path, capsys, monkeypatch):
    """The machine that asks computes in float32, those that did the work in bfloat16."""
    monkeypatch.setitem(METHODS, "brightness", Method(Precise, runs=1))
    command = ["--methods", "brightness", "--classes", "5", "--results-dir", str(tmp_path)]
    monkeypatch.setattr("utils.device._computes_bfloat16", lambda: True)
    assert experiments.main(command) == 0
    monkeypatch.setattr("utils.device._computes_bfloat16", lambda: False)
    elsewhere = ["--scheduler", "tcp://nowhere:1"]  # which is not asked where all is done
    assert experiments.main([*command, *elsewhere]) == 0
    assert "1 runs, 1 of them done already" in capsys.readouterr().out
    for more in ([], [*elsewhere, "--precision", "float32"]):
        assert experiments.main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert "was made with precision 'mixed_bfloat16', not 'float32'" in error


def test_what_cannot_run_is_said_before_anything_is_run(tmp_path, capsys):
    command = ["--methods", "all", "--results-dir", str(tmp_path)]
    assert experiments.main([*command, "--recipe", "fast"]) == 2
    assert "raw_ocsvm has no recipe 'fast'; it has paper, small" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Failing(Brightness):
    """Fails on a class of so many images, as a training that diverges does."""

    fails_with = None

    def _fit(self, x, checkpoint, callbacks):
        super()._fit(x, checkpoint, callbacks)
        if len(x) == self.fails_with:
            raise ValueError("training diverged")


def test_a_run_that_fails_is_listed_and_the_others_go_on(tmp_path, capsys, monkeypatch, digits):
    lengths = [(digits.y_train == c).sum() for c in range(3)]
    monkeypatch.setattr(Failing, "fails_with", lengths[1])
    monkeypatch.setitem(METHODS, "brightness", Method(Failing, runs=1))
    command = ["--methods", "brightness", "--classes", "0,1,2", "--results-dir", str(tmp_path)]
    assert experiments.main(command) == 1
    shown = capsys.readouterr()
    assert shown.err == "failed: brightness, 1, run 0: ValueError: training diverged\n"
    assert [path.name for path in sorted((tmp_path / "digits").glob("digits_*.npz"))] == [
        "digits_brightness_0_0.npz",
        "digits_brightness_2_0.npz",
    ]


def test_failures_are_listed_where_nothing_was_finished(tmp_path, capsys, monkeypatch, digits):
    monkeypatch.setattr(Failing, "fails_with", (digits.y_train == 1).sum())
    monkeypatch.setitem(METHODS, "brightness", Method(Failing, runs=1))
    command = ["--methods", "brightness", "--classes", "1", "--results-dir", str(tmp_path)]
    assert experiments.main(command) == 1
    assert "failed: brightness, 1, run 0: ValueError" in capsys.readouterr().err


def test_a_recipe_that_has_changed_since_is_not_taken_for_the_same(
    tmp_path, capsys, monkeypatch, brightness
):
    command = ["--methods", "brightness", "--classes", "1", "--results-dir", str(tmp_path)]
    assert experiments.main(command) == 0
    monkeypatch.setitem(METHODS["brightness"].recipes, "small", {"max_test": 50})
    assert experiments.main(command) == 2
    assert "was made with max_test 100, not 50" in capsys.readouterr().err


def test_a_full_disk_ends_the_sweep(tmp_path, capsys, monkeypatch, brightness):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_run", full)
    command = ["--methods", "brightness", "--classes", "0,1", "--results-dir", str(tmp_path)]
    assert experiments.main(command) == 2
    shown = capsys.readouterr()
    assert "No space left on device" in shown.err and "[2/2]" not in shown.out


def test_a_run_that_another_command_makes_is_left_to_it(tmp_path, capsys, brightness):
    path = tmp_path / "digits" / "digits_brightness_1_0.npz"
    code = (
        f"from utils.files import claim\nwith claim({str(path)!r}): print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        command = ["--methods", "brightness", "--classes", "0,1", "--results-dir", str(tmp_path)]
        assert experiments.main(command) == 0
        assert "1, run 0: left to the command that is making it" in capsys.readouterr().out
        assert not path.exists()
        other.kill()
    assert experiments.main(command) == 0
    assert path.exists() and not list(tmp_path.rglob(".*_1_0.npz.lock"))


def test_new_runs_go_to_a_folder_of_their_own_and_stand_beside_others(
    tmp_path, capsys, monkeypatch, brightness
):
    monkeypatch.chdir(tmp_path)
    command = ["--methods", "brightness", "--classes", "0"]
    assert experiments.main([*command, "--results-dir", "theirs"]) == 0
    assert experiments.main([*command, "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    assert "runs go to runs/" in shown and "(1)" in shown
    assert experiments.main([*command, "--seed", "1", "--beside", "theirs"]) == 0
    table = pd.read_csv(Path("runs", "digits", "table.csv"))
    assert table["folder"].tolist() == ["runs", "theirs"] and (table["runs"] == 1).all()
    rows = [line for line in capsys.readouterr().out.splitlines() if "brightness" in line]
    assert ["runs" in rows[-2], "theirs" in rows[-1]] == [True, True]


def test_options_that_a_method_has_no_use_for_do_not_reduce_it(tmp_path, capsys, brightness):
    command = ["--methods", "brightness", "--classes", "0", "--recipe", "paper", "--epochs", "10"]
    assert experiments.main([*command, "--results-dir", str(tmp_path)]) == 0
    assert "brightness has no epochs: --epochs is moot" in capsys.readouterr().out
    assert not read_details(tmp_path / "digits" / "digits_brightness_0_0.npz")["reduced"]


def test_options_replace_the_recipes_settings():
    command = ["--recipe", "fast", "--epochs", "0.5", "--batch-size", "7", "--precision", "float32"]
    options = experiments.parse_arguments(command)
    settings = METHODS["transformations"].detector(options).get_params()
    expected = RECIPES["fast"] | {"epochs": 0.5, "batch_size": 7, "precision": "float32"}
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/**/*_transformations_*.npz")), ids=str)
def test_the_recipes_are_those_of_the_results(path):
    """A recipe that changes would stand in RESULTS.md with numbers of another."""
    details = read_details(path)
    renamed = METHODS["transformations"].renamed
    made = {renamed.get(name, name): value for name, value in details["settings"].items()}
    name, *changes = details["recipe"].split(", ")
    recipe = TransformationDetector(**RECIPES[name]).get_settings()
    changed = {"epochs"} if changes else set()
    for key in recipe.keys() & made.keys() - {"seed", "verbose", "precision"} - changed:
        assert made[key] == recipe[key], key


def test_results_to_stand_beside_are_there(tmp_path, capsys):
    command = ["--results-dir", str(tmp_path), "--report", "--beside", str(tmp_path / "reslts")]
    assert experiments.main(command) == 2
    assert "reslts is no folder" in capsys.readouterr().err


def test_a_class_that_is_named_twice_is_run_once():
    assert experiments.chosen_classes("cat, 1,0", ["dog", "cat"]) == [1, 0]


def test_a_runs_memory_is_its_own(tmp_path, brightness):
    if not reset_peak_memory():
        pytest.skip("this system cannot measure it")
    large = np.ones(2**28, np.uint8)  # 256 MiB, given back before the run
    del large
    command = ["--methods", "brightness", "--classes", "0", "--results-dir", str(tmp_path)]
    before = peak_memory()
    assert experiments.main(command) == 0
    details = read_details(tmp_path / "digits" / "digits_brightness_0_0.npz")
    assert 2**26 < details["peak_memory_bytes"] < before - 2**27


def test_the_time_of_the_whole_is_told_while_the_first_run_trains(
    tmp_path, capsys, monkeypatch, quick
):
    monkeypatch.setattr(runs.TimeEstimate.__init__, "__defaults__", (1, 0.0))
    run(tmp_path, "--classes", "1,2")
    out = capsys.readouterr().out
    assert "minutes for the 2 runs of transformations left" in out
    assert "minutes for the 1 runs of transformations left" in out


@pytest.mark.parametrize("more, told", [((), [(2, 2), (0, 2)] * 2), (("x:1",), [(0, 1)] * 4)])
def test_of_several_at_once_the_first_of_a_kind_tells_the_time(tmp_path, monkeypatch, more, told):
    asked = []

    def run_jobs(function, tasks, jobs, scheduler):
        asked.extend(how for _, *how in tasks)
        yield from ((task, runs.Outcome("")) for task in tasks)

    monkeypatch.setattr("utils.jobs.run_jobs", run_jobs)
    how = ["--scheduler", *more] if more else ["--jobs", "2"]
    arguments = ["--classes", "1,2", "--methods", "dagmm,dsebm", *how]
    experiments.main([*arguments, "--results-dir", str(tmp_path)])
    assert list(map(tuple, asked)) == told


@pytest.mark.parametrize("jobs, rounds, done", [(1, 50, 1), (4, 13, 1), (4, 13, 9000)])
def test_the_estimate_is_the_sum_of_its_parts(capsys, jobs, rounds, done):
    class Detector:
        batch_size = 100

        def training_samples(self, n):
            return 3 * 72 * n

        def scoring_passes(self, n, n_scored):
            return 72 * (n + n_scored)

    told = runs.TimeEstimate("it", Detector(), 5000, 10_000, 50, jobs, after_seconds=-1)
    told.set_model(SimpleNamespace(optimizer=SimpleNamespace(iterations=done)))
    clock = iter(np.arange(0.0, 100.0))  # a batch of 100 a second
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.time, "perf_counter", lambda: next(clock))
        for batch in range(3):
            told.on_train_batch_end(batch)
    hours = (rounds * (1_080_000 + 72 * 15_000 / 4) / 100 - done) / 3600
    out = capsys.readouterr().out
    assert f"100 images/s: about {hours:.1f} hours for the 50 runs of it left" in out
    assert "--runs 1" in out and out.count("hours") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--classes", "eleven"], "unknown class 'eleven'; known are 0..9"),
        (["--methods", "magic"], "unknown method 'magic'; known are transformations"),
        (["--seed", "2147483647", "--runs", "2"], "seed is 2147483648"),
        (["--dataset", "cifar"], "unknown data set 'cifar'; known are digits, cifar10"),
        (["--dataset", "cifar10", "--data-dir", "nowhere", "--report"], "no runs of cifar10"),
        (["--dataset", "cats_vs_dogs", "--data-dir", "nowhere"], "cats_vs_dogs.npz is missing"),
    ],
)
def test_mistakes_give_one_line(arguments, message, tmp_path, capsys):
    assert experiments.main([*arguments, "--results-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


TABLE_1 = {"cifar10": (32, 10), "cifar100": (32, 20), "fashion_mnist": (32, 10)}
TABLE_1 |= {"cats_vs_dogs": (64, 2)}
"""Sides and numbers of classes."""


@pytest.fixture
def table_1(tmp_path, monkeypatch):
    """A folder with small arrays for each of Table 1's data sets; two methods that take no time."""
    for name in TABLE_1:
        np.savez(tmp_path / f"{name}.npz", **small_arrays(name, n=40))
    monkeypatch.setitem(METHODS, "brightness", Method(Brightness, runs=1, hours=0.5))
    slow = Method(Brightness, runs=2, hours=50.0, datasets=("cifar10",))
    monkeypatch.setitem(METHODS, "slow", slow)
    return ["--data-dir", str(tmp_path), "--results-dir", str(tmp_path), "--classes", "1,0"]


def test_all_of_table_1_is_one_queue_the_shortest_first(table_1, tmp_path, capsys):
    command = [*table_1, "--dataset", "all", "--methods", "slow,brightness"]
    assert experiments.main(command) == 0
    out = capsys.readouterr().out
    assert "cifar10, cifar100, fashion_mnist, cats_vs_dogs: 12 runs, 0 of them done" in out
    ended = [line for line in out.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in ended] == [f"[{i}/12" for i in range(1, 13)]
    assert all("AUROC in %" in line for line in ended)
    left = [re.search(r"; about \d+ (minutes|hours) left$", line) for line in ended]
    assert all(left[:-1]) and left[-1] is None
    runs = [tuple(line.split("] ")[1].split(":")[0].split(", ")[:2]) for line in ended]
    hours = {"brightness": 0.5, "slow": 50.0}
    times = [hours[m] * TABLE_1[name][0] ** 2 / TABLE_1[name][1] for name, m in runs]
    assert times == sorted(times) and len(set(times)) == 4
    assert [name for name, method in runs if method == "slow"] == ["cifar10"] * 4
    for name in ("cifar100", "fashion_mnist", "cats_vs_dogs"):
        assert f"slow is not in Table 1 on {name}, and is left out" in out
        assert f"\n{name}: AUROC in %" in out and (tmp_path / name / "table.md").exists()
    assert experiments.main([*command, "--scheduler", "tcp://localhost:1"]) == 0  # never asked
    assert "12 runs, 12 of them done already" in capsys.readouterr().out
    named = [*table_1[:-1], "frog", "--dataset", "all", "--methods", "slow", "--runs", "1"]
    assert experiments.main(named) == 0  # cifar10 alone, which has frogs
    assert "[1/1] cifar10, slow, frog, run 0: AUROC" in capsys.readouterr().out


def test_a_method_runs_where_the_paper_lacks_it_if_the_data_set_is_named(table_1, capsys):
    names = "cifar100, fashion_mnist,cifar100"
    assert experiments.main([*table_1, "--dataset", names, "--methods", "slow", "--runs", "1"]) == 0
    out = capsys.readouterr().out
    assert "cifar100, fashion_mnist: 4 runs" in out and "left out" not in out
    assert "] fashion_mnist, slow, t-shirt, run 0: AUROC" in out


def test_all_data_sets_that_are_missing_are_named_at_once(table_1, tmp_path, capsys, monkeypatch):
    def load_data(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(keras.datasets.cifar100, "load_data", load_data)
    for name in ("cifar100", "cats_vs_dogs"):
        (tmp_path / f"{name}.npz").unlink()
    assert experiments.main([*table_1, "--dataset", "all", "--methods", "brightness"]) == 2
    shown = capsys.readouterr()
    assert "AUROC" not in shown.out and not list(tmp_path.glob("*/*"))
    first, second = shown.err.splitlines()
    assert "cifar100.npz is missing" in first and "no route to host" in first and "put " in first
    assert (
        "cats_vs_dogs.npz is missing" in second and "utils.datasets cats_vs_dogs FOLDER" in second
    )


def test_tables_are_made_where_there_are_runs_and_the_others_named(table_1, tmp_path, capsys):
    assert experiments.main([*table_1, "--dataset", "cifar10", "--methods", "brightness"]) == 0
    capsys.readouterr()
    assert experiments.main([*table_1, "--dataset", "cifar100,cifar10", "--report"]) == 2
    shown = capsys.readouterr()
    assert "\ncifar10: AUROC in %" in shown.out and "no runs of cifar100 in" in shown.err


def test_a_new_data_set_is_a_row_and_its_file(tmp_path, capsys, monkeypatch, brightness):
    monkeypatch.setitem(LAYOUTS, "mine", Layout((8, 8, 1), ["good", "odd"]))
    command = ["--dataset", "mine", "--methods", "brightness", "--data-dir", str(tmp_path)]
    command += ["--results-dir", str(tmp_path)]
    assert experiments.main(command) == 2
    assert "mine.npz is missing, and this data set cannot be downloaded" in capsys.readouterr().err
    np.savez(tmp_path / "mine.npz", **small_arrays("mine", n=20))
    assert experiments.main(command) == 0
    table = pd.read_csv(tmp_path / "mine" / "table.csv")
    assert table["class"].tolist() == ["good", "odd", "average"]
    assert table["recipe"].eq("paper").all() and table["published"].isna().all()


def test_the_time_left_is_that_of_what_was_made_scaled(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(experiments.time, "perf_counter", lambda: now[0])
    left = experiments.TimeLeft([0.1, 0.1, 0.3, 2.5])
    assert left.after(0.1, made=False) == ""  # another command makes it
    now[0] = 600.0
    assert left.after(0.1, made=True) == "; about 5 hours left"  # 2.8 where 0.1 is 10 minutes
    now[0] = 1200.0
    assert left.after(0.3, made=True) == "; about 2 hours left"
    assert left.after(2.5, made=True) == ""
    left = experiments.TimeLeft([1.0, 2.0])
    now[0] += 90.0
    assert left.after(1.0, made=True) == "; about 3 minutes left"
    left = experiments.TimeLeft([1.0] * 6, jobs=2)
    now[0] += 600.0
    assert left.after(1.0, made=True) == ""  # the other is about to end, too
    assert left.after(1.0, made=True) == "; about 20 minutes left"


def test_classes_by_name_and_number():
    names = ["airplane", "automobile", "bird"]
    assert experiments.chosen_classes("all", names) == [0, 1, 2]
    assert experiments.chosen_classes("bird, 0", names) == [2, 0]


@pytest.mark.parametrize("options, scored", [([], 100), (["--limit-test", "80"], 80)])
def test_a_method_may_score_a_part_of_the_test_set(options, scored, tmp_path, brightness, digits):
    arguments = ["--methods", "brightness", "--classes", "0", "--recipe", "paper", *options]
    assert experiments.main([*arguments, "--runs", "2", "--results-dir", str(tmp_path)]) == 0
    part = random_part(np.arange(len(digits.y_test)), scored, 0)  # the same in each run
    x, mean = digits.x_test[part], digits.x_train[digits.y_train == 0].mean()
    for number in range(2):
        path = tmp_path / "digits" / f"digits_brightness_0_{number}.npz"
        normal, scores, details = read_run(path)
        assert details["n_test"] == scored and details["reduced"] == bool(options)
        np.testing.assert_array_equal(normal, digits.y_test[part] == 0)
        expected = -np.abs(x.mean((1, 2, 3)) - mean)
        np.testing.assert_allclose(scores["own"], expected, rtol=1e-4, atol=1e-4)


def test_every_method_has_the_papers_recipe_and_a_small_one():
    for method in METHODS.values():
        assert method.recipes["paper"] == {} and "small" in method.recipes


def test_test_images_of_one_kind_are_refused_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(METHODS, "brightness", Method(Brightness, runs=1))
    monkeypatch.setattr(Brightness, "_fit", lambda *_: pytest.fail("trained"))
    command = ["--methods", "brightness", "--classes", "0", "--limit-test", "10"]
    assert experiments.main([*command, "--results-dir", str(tmp_path)]) == 1
    message = "of the 10 test images 0 are normal, and both kinds are needed: give a larger --limit"
    assert message in capsys.readouterr().err
