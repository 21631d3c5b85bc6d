"""One-vs-all anomaly detection (section 5): data set x method x class x run -> results, tables.

    python experiments.py                       digits, which needs no download
    python experiments.py --dataset cifar10     the paper's experiment

A run is one file; asking for a run whose file exists does nothing, so that the same command
finishes what was interrupted. --jobs runs several at once, on this machine or on a Dask cluster.
Tables, CSV and ROC plots are made from the files at the end, or by --report.
"""

import argparse
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from baselines.adgan import ADGAN
from baselines.dagmm import DAGMM
from baselines.deep_svdd import DeepSVDD
from baselines.dsebm import DSEBM
from baselines.ocsvm import CAEOCSVM, RawOCSVM
from models.transformation_detector import RECIPES, TransformationDetector
from utils.backend import PRECISIONS, backend, commit, device_name, peak_memory, versions
from utils.datasets import DATASETS, DatasetError, load_dataset, random_part
from utils.detector import Detector
from utils.jobs import BACKENDS, run_jobs
from utils.results import ResultError, Run, read_details, report, write_run


@dataclass(frozen=True)
class Method:
    """A row of the methods' table: how to make the detector, and how the paper ran it.

    runs: how many of each class. recipes: settings by name. resumable: `fit` takes a checkpoint and
    Keras callbacks. hindsight: the detector chooses settings by the test labels, as the paper lets
    the one-class SVMs do, through `score_in_hindsight(x, normal)`.
    """

    create: Callable[..., Detector]
    runs: int
    recipes: dict[str, dict] = field(default_factory=lambda: {"paper": {}, "small": {}})
    resumable: bool = False
    hindsight: bool = False


def _small(**settings):
    """The paper's recipe, and the settings for digits that finish in under a minute a class."""
    return {"paper": {}, "small": settings}


METHODS = {
    "transformations": Method(TransformationDetector, runs=5, recipes=RECIPES, resumable=True),
    "raw_ocsvm": Method(RawOCSVM, runs=1, hindsight=True),
    "cae_ocsvm": Method(CAEOCSVM, runs=1, hindsight=True),
    "deep_svdd": Method(
        DeepSVDD,
        runs=5,
        recipes=_small(epochs=20, batch_size=32, learning_rate=1e-3),
    ),
    "dagmm": Method(DAGMM, runs=5, recipes=_small(epochs=100, batch_size=32)),
    "dsebm": Method(DSEBM, runs=5, recipes=_small(epochs=60, batch_size=32, learning_rate=1e-2)),
    "adgan": Method(
        ADGAN,
        runs=1,
        recipes=_small(latent_dim=32, n_seeds=1, epochs=1, batch_size=32, learning_rate=2e-3),
    ),
}

DEFAULT_RECIPES = {"digits": "small"}
"""Elsewhere the paper's. digits, not in the paper, takes what finishes in minutes on two cores."""


def main(arguments: list[str] | None = None) -> int:
    """Run the experiments of a command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        if not options.report:
            run_all(options)
        print(f"\n{options.dataset}: AUROC in %, one class against the others\n")
        print(report(options.results_dir, options.dataset))
        print(f"\ntable.csv, table.md and roc.png are in {options.results_dir / options.dataset}/")
    except (DatasetError, ResultError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run_all(options: argparse.Namespace) -> None:
    """Every run asked for that has no file yet."""
    data = load_dataset(options.dataset, options.data_dir)
    runs = [
        Run(options.results_dir, options.dataset, method, class_index, run)
        for method in chosen_methods(options.methods)
        for run in range(METHODS[method].runs if options.runs is None else options.runs)
        for class_index in chosen_classes(options.classes, data.class_names)
    ]
    todo = [run for run in runs if not is_done(run, options)]
    print(
        f"{options.dataset}: {len(runs)} runs, {len(runs) - len(todo)} of them already in "
        f"{options.results_dir}/; Keras on {backend()}"
    )
    if options.jobs > 1 or options.joblib_backend != "loky":
        run_in_workers(todo, options)
        return
    print(device_name())
    for position, run in enumerate(todo):
        name = data.class_names[run.class_index]
        print(f"\n[{position + 1}/{len(todo)}] {run.method}, {name}, run {run.run}", flush=True)
        print(run_one(run, data, options, remaining=len(todo) - position), flush=True)
        keras.utils.clear_session(free_memory=True)


def run_in_workers(todo: list[Run], options: argparse.Namespace) -> None:
    """The runs, several at once, each in a process of its own."""
    start, tasks = time.perf_counter(), [(run, options) for run in todo]
    jobs = (options.jobs, options.joblib_backend, options.scheduler)
    for done, text in enumerate(run_jobs(run_in_worker, tasks, *jobs), start=1):
        left = (time.perf_counter() - start) / done * (len(todo) - done)
        print(f"[{done}/{len(todo)}] {text}; about {left / 60:.0f} minutes left", flush=True)


def run_in_worker(run: Run, options: argparse.Namespace) -> str:
    """A run unless it has a file, as where the process that had finished it was lost."""
    data = load_dataset(options.dataset, options.data_dir)
    name = f"{run.method}, {data.class_names[run.class_index]}, run {run.run}"
    if is_done(run, options):
        return f"{name}: already done"
    text = run_one(run, data, options, verbose=0)
    keras.utils.clear_session(free_memory=True)
    return f"{name}: {text}"


def run_one(
    run: Run, data, options: argparse.Namespace, remaining: int = 1, verbose: int = 1
) -> str:
    """Train on the class, score the test set, write the run's file; returns what to print."""
    start = time.perf_counter()
    x = data.x_train[data.y_train == run.class_index][: options.limit_train]
    method = METHODS[run.method]
    seed = options.seed + run.run
    detector = method.create(**settings(method, options, verbose=verbose), seed=seed)
    limits = [options.limit_test, getattr(detector, "max_test", None)]
    limit = min((n for n in limits if n is not None), default=None)
    x_test = random_part(data.x_test, limit, options.seed)
    normal = random_part(data.y_test, limit, options.seed) == run.class_index
    run.path.parent.mkdir(parents=True, exist_ok=True)
    if method.resumable:
        estimate = [TimeEstimate(detector, len(x), len(x_test), remaining)] if verbose else []
        detector.fit(x, checkpoint=run.checkpoint, callbacks=estimate)
    else:
        detector.fit(x)
    if method.hindsight:
        variants = detector.score_in_hindsight(x_test, normal)
    else:
        variants = detector.score_variants(x_test)
    details = {
        "dataset": run.dataset,
        "method": run.method,
        "class_index": run.class_index,
        "class_name": data.class_names[run.class_index],
        "run": run.run,
        "seed": seed,
        "recipe": recipe_name(options),
        "reduced": recipe_name(options) != "paper",
        "settings": detector.get_settings(),
        "precision": getattr(detector, "precision_", "float32"),
        "n_train": len(x),
        "n_test": len(x_test),
        "seconds": {part: round(s, 1) for part, s in detector.seconds_.items()},
        "found": getattr(detector, "found_", {}),
        "peak_memory_bytes": peak_memory(),
        "backend": backend(),
        "device": device_name(),
        "versions": versions(),
        "commit": commit(),
    }
    aurocs = write_run(run, normal, variants, details)
    run.checkpoint.unlink(missing_ok=True)
    values = ", ".join(f"{name} {100 * value:.2f}" for name, value in aurocs.items())
    return f"AUROC in %: {values}; {time.perf_counter() - start:.0f} s"


def is_done(run: Run, options: argparse.Namespace) -> bool:
    """Whether the run's file exists; ResultError where another recipe made it."""
    if not run.path.exists():
        return False
    made = read_details(run.path)
    seed = options.seed + run.run
    if (made["recipe"], made["seed"]) != (recipe_name(options), seed):
        raise ResultError(
            f"{run.path} was made by recipe {made['recipe']!r} with seed {made['seed']}, not by "
            f"{recipe_name(options)!r} with seed {seed}; choose another --results-dir"
        )
    return True


def settings(method: Method, options: argparse.Namespace, verbose: int = 1) -> dict:
    """The detector's settings: the recipe's, then what the command line says of those it takes."""
    if options.recipe not in method.recipes:
        raise ValueError(
            f"recipe {options.recipe!r} is not one of this method's: {', '.join(method.recipes)}"
        )
    given = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "verbose": verbose,
    }
    taken = inspect.signature(method.create).parameters
    given = {name: v for name, v in given.items() if v is not None and name in taken}
    return method.recipes[options.recipe] | given


def recipe_name(options: argparse.Namespace) -> str:
    """The recipe and all that was changed of it: `paper` alone is a reproduction."""
    changes = {
        "epochs": options.epochs,
        "batch size": options.batch_size,
        "training images": options.limit_train,
        "test images": options.limit_test,
    }
    changed = [f"{value:g} {name}" for name, value in changes.items() if value is not None]
    return ", ".join([options.recipe, *changed])


class TimeEstimate(keras.callbacks.Callback):
    """Prints, once, what all remaining runs would take at the speed measured so far.

    Scoring, not measured yet, is taken as four times as fast as training: a training step also goes
    backward and updates the weights.
    """

    def __init__(self, detector, n_train, n_test, remaining, after_seconds=20.0):
        super().__init__()
        self.detector = detector
        self.n_train, self.n_test, self.remaining = n_train, n_test, remaining
        self.after_seconds = after_seconds
        self.batches, self.start, self.done = 0, None, False

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if self.start is None:  # the first batch is compilation
            self.start = now
            return
        self.batches += 1
        if self.done or now - self.start < self.after_seconds:
            return
        self.done = True
        speed = self.batches * self.detector.batch_size / (now - self.start)
        samples = self.detector.training_samples(self.n_train)
        passes = self.detector.scoring_passes(self.n_train, self.n_test)
        hours = self.remaining * (samples + passes / 4) / speed / 3600
        text = f"\n{speed:.0f} images/s: about {hours:.1f} hours for the {self.remaining} runs left"
        if hours > 1:
            text += (
                "; shorter with --runs 1, --classes NAME, --epochs 0.1, --limit-test 1000, or "
                "another --recipe"
            )
        print(text, flush=True)


def chosen_methods(text: str) -> list[str]:
    """The methods named, separated by commas, or all of them."""
    names = list(METHODS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return names


def chosen_classes(text: str, class_names: list[str]) -> list[int]:
    """The classes given by name or number, separated by commas, or all of them, in that order."""
    if text == "all":
        return list(range(len(class_names)))
    chosen = []
    for part in (part.strip() for part in text.split(",")):
        if part in class_names:  # first: the classes of the digits have numbers for names
            chosen.append(class_names.index(part))
        elif part.isdecimal() and int(part) < len(class_names):
            chosen.append(int(part))
        else:
            raise ValueError(
                f"unknown class {part!r}; known are 0..{len(class_names) - 1} or "
                f"{', '.join(class_names)}"
            )
    return chosen


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="digits", help="default: digits")
    add("--data-dir", type=Path, default=Path("data"), help="where data sets lie (default: data)")
    add("--methods", default="transformations", help=f"all, or of {', '.join(METHODS)}")
    add("--classes", default="all", help="all, or names or numbers separated by commas")
    add(
        "--runs",
        type=positive_int,
        help="runs of each class (default: as in the paper, 5 for transformations; digits: 1)",
    )
    add("--results-dir", type=Path, default=Path("results"), help="default: results")
    add("--seed", type=int, default=0, help="seed of run 0; run r has seed + r (default: 0)")
    add("--recipe", choices=RECIPES, help="default: paper; digits: small")
    add("--epochs", type=positive_float, help="epochs over all transformed images, e.g. 0.1")
    add("--batch-size", type=positive_int)
    add("--limit-train", type=positive_int, help="train on the first N images of the class")
    add("--limit-test", type=positive_int, help="score a random N of the test images")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    add("--jobs", type=positive_int, default=1, help="runs at once, each with its cores and GPU")
    add("--joblib-backend", choices=BACKENDS, default="loky", help="what runs them: default loky")
    add("--scheduler", help="of a Dask cluster, such as tcp://host:8786, for --joblib-backend dask")
    add("--report", action="store_true", help="only make the tables from the files that are there")
    options = parser.parse_args(arguments)
    if options.recipe is None:
        options.recipe = DEFAULT_RECIPES.get(options.dataset, "paper")
    if options.runs is None and options.dataset == "digits":
        options.runs = 1
    return options


def positive_int(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def positive_float(text: str) -> float:
    """A number above 0, for argparse."""
    value = float(text)
    if not (value > 0 and np.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
