"""One-vs-all anomaly detection (section 5): data set x method x class x run -> results, tables.

    python experiments.py                       digits, which needs no download
    python experiments.py --dataset cifar10     the paper's experiment

A run is one file in --results-dir; asking for a run whose file exists does nothing, so that the
same command finishes what was interrupted, and several commands share the work. --jobs runs several
at once, and --scheduler on a Dask cluster. Tables, CSV and ROC plots are made from the files at the
end, or by --report.

Exit status: 0 done, 1 a run failed (the others are made), 2 an error, 130 stopped.
"""

if __name__ in ("__main__", "__mp_main__"):  # also in the worker processes of --jobs
    from utils import startup

    startup.start()  # first: what follows takes seconds to load

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras

from baselines import METHODS, Method
from models.model_file import with_current_names
from models.recipes import RECIPES
from utils.backend import backend
from utils.claims import ClaimedError, claim
from utils.commands import number_above_zero, run_command, seed_number, whole_number
from utils.datasets import DATASETS, load_dataset, random_part
from utils.device import (
    PRECISIONS,
    device_name,
    made_with,
    peak_memory,
    reset_peak_memory,
    resolve_precision,
)
from utils.results import ResultError, Run, check_made_so, read_details, report, write_run

DEFAULT_RECIPES = {"digits": "small"}
"""Elsewhere the paper's. digits, not in the paper, takes what finishes in minutes on two cores."""

OVERRIDES = ("epochs", "batch_size", "precision")
"""Options that replace a setting of the recipe, in methods that have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the experiments of a command line; returns the exit status."""
    options = parse_arguments(arguments)
    return run_command(command, options, stopped="stopped; the same command goes on from here")


def command(options: argparse.Namespace) -> int:
    """The runs that are missing, then the tables; the exit status."""
    failed = [] if options.report else make_runs(options)
    try:
        table = report(options.results_dir, options.dataset, options.beside)
        print(f"\n{options.dataset}: AUROC in %, one class against the others\n\n{table}")
        print(f"\ntable.csv, table.md and roc.png are in {options.results_dir / options.dataset}/")
    except ResultError:
        if not failed:
            raise
    for outcome in failed:
        print(f"failed: {outcome.text}", file=sys.stderr)
    return int(bool(failed))


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a run ended: text says it, and failed, whether it is to be listed."""

    text: str
    failed: bool = False


def make_runs(options: argparse.Namespace) -> list[Outcome]:
    """Every run asked for that has no file yet; returns those that failed.

    Whatever can be known to be wrong with one of them is raised before the first.
    """
    print(f"runs go to {options.results_dir}/; Keras on {backend()}, {device_name()}")
    methods = chosen_methods(options.methods)
    for name in methods:
        check_method(name, options)
    data = load_dataset(options.dataset, options.data_dir)
    runs = [
        Run(options.results_dir, options.dataset, method, class_index, number)
        for method in methods
        for number in range(METHODS[method].runs if options.runs is None else options.runs)
        for class_index in chosen_classes(options.classes, data.class_names)
    ]
    todo = [run for run in runs if not is_done(run, options)]
    print(f"{options.dataset}: {len(runs)} runs, {len(runs) - len(todo)} of them done already")
    if options.jobs > 1 or options.scheduler:
        outcomes = in_workers(todo, options)
    else:
        outcomes = one_by_one(todo, data, options)
    return [outcome for outcome in outcomes if outcome.failed]


def check_method(name: str, options: argparse.Namespace) -> None:
    """ValueError where a method cannot run so; says which options it has no use for."""
    method = METHODS[name]
    if options.recipe not in method.recipes:
        raise ValueError(
            f"{name} has no recipe {options.recipe!r}; it has {', '.join(method.recipes)}"
        )
    if backend() not in method.backends:
        raise ValueError(
            f"{name} does not run on {backend()}: set KERAS_BACKEND={' or '.join(method.backends)}"
        )
    method.create(**settings(method, options)).check_settings()
    if "precision" in method.create().get_params():
        resolve_precision(options.precision)
    for option in OVERRIDES:
        given = getattr(options, option) not in (None, "auto")
        if given and option not in method.create().get_params():
            print(f"{name} has no {option.replace('_', ' ')}: --{option.replace('_', '-')} is moot")


def one_by_one(todo: list[Run], data, options: argparse.Namespace) -> Iterator[Outcome]:
    """The runs, one after the other, in this process."""
    for position, run in enumerate(todo):
        name = data.class_names[run.class_index]
        print(f"\n[{position + 1}/{len(todo)}] {run.method}, {name}, run {run.number}", flush=True)
        remaining = sum(other.method == run.method for other in todo[position:])
        outcome = attempt(run, data, options, remaining)
        print(outcome.text, flush=True)
        yield outcome


def in_workers(todo: list[Run], options: argparse.Namespace) -> Iterator[Outcome]:
    """The runs, several at once, each in a process of its own."""
    from utils.jobs import run_jobs  # Dask, which takes a second to load

    start, tasks = time.perf_counter(), [(run, options) for run in todo]
    results = run_jobs(in_worker, tasks, options.jobs, options.scheduler)
    for done, ((run, _), result) in enumerate(results, start=1):
        if isinstance(result, OSError):
            raise result
        if isinstance(result, Exception):  # the process was lost again and again
            result = Outcome(f"{run.path.stem}: {type(result).__name__}: {result}", failed=True)
        left = (time.perf_counter() - start) / done * (len(todo) - done)
        print(f"[{done}/{len(todo)}] {result.text}; about {left / 60:.0f} minutes left", flush=True)
        yield result


def in_worker(run: Run, options: argparse.Namespace) -> Outcome:
    """A run, in a worker process."""
    return attempt(run, load_dataset(options.dataset, options.data_dir), options, remaining=0)


def attempt(run: Run, data, options: argparse.Namespace, remaining: int) -> Outcome:
    """A run, unless another process makes it or has made it; a failure is an outcome too.

    remaining: how many runs to tell the time of while it trains; 0 is quiet. Raises OSError, which
    the other runs would meet as well.
    """
    name = f"{run.method}, {data.class_names[run.class_index]}, run {run.number}"
    start = time.perf_counter()
    try:
        with claim(run.path):
            if is_done(run, options):
                return Outcome(f"{name}: done already")
            aurocs = make_run(run, data, options, remaining)
    except ClaimedError:
        return Outcome(f"{name}: left to the command that is making it")
    except OSError:
        raise
    except Exception as error:
        if not isinstance(error, ValueError):  # not foreseen: show where
            traceback.print_exc()
        return Outcome(f"{name}: {type(error).__name__}: {error}", failed=True)
    finally:
        keras.utils.clear_session(free_memory=True)
    values = ", ".join(f"{score} {100 * value:.2f}" for score, value in aurocs.items())
    return Outcome(f"{name}: AUROC in %: {values}; {time.perf_counter() - start:.0f} s")


def make_run(run: Run, data, options: argparse.Namespace, remaining: int) -> dict[str, float]:
    """Train on the class, score the test set, write the run's file; returns the AUROCs."""
    made, memory_is_known = made_with(), reset_peak_memory()
    x = data.x_train[data.y_train == run.class_index][: options.limit_train]
    method = METHODS[run.method]
    more = {"seed": options.seed + run.number, "verbose": int(remaining > 0)}
    detector = method.create(**settings(method, options) | more)
    limits = [options.limit_test, detector.max_test]
    limit = min((n for n in limits if n is not None), default=None)
    x_test = random_part(data.x_test, limit, options.seed)
    normal = random_part(data.y_test, limit, options.seed) == run.class_index
    if method.resumable:
        estimate = [TimeEstimate(run.method, detector, len(x), len(x_test), remaining)]
        detector.fit(x, checkpoint=run.checkpoint, callbacks=estimate if remaining else [])
    else:
        detector.fit(x)
    if method.hindsight:
        scores = detector.score_in_hindsight(x_test, normal)
    else:
        scores = detector.scores(x_test)
    recipe = recipe_name(method, options)
    details = {
        "dataset": run.dataset,
        "method": run.method,
        "class_index": run.class_index,
        "class_name": data.class_names[run.class_index],
        "run": run.number,
        "seed": more["seed"],
        "recipe": recipe,
        "reduced": recipe != "paper",
        "settings": detector.get_settings(),
        "precision": detector.precision_,
        "n_train": len(x),
        "n_test": len(x_test),
        "seconds": {part: round(s, 1) for part, s in detector.seconds_.items()},
        "found": detector.record_,
        "peak_memory_bytes": peak_memory() if memory_is_known else None,
    }
    aurocs = write_run(run.path, normal, scores, details | made)
    run.checkpoint.unlink(missing_ok=True)
    return aurocs


def is_done(run: Run, options: argparse.Namespace) -> bool:
    """Whether the run's file exists; ResultError where it was made in another way."""
    if not run.path.exists():
        return False
    method = METHODS[run.method]
    computes = "precision" in method.create().get_params()
    wanted = {
        "recipe": recipe_name(method, options),
        "seed": options.seed + run.number,
        "backend": backend(),
        "precision": resolve_precision(options.precision) if computes else "float32",
    }
    details = read_details(run.path)
    check_made_so(run.path, details, wanted)
    made = with_current_names(details["settings"])
    now = json.loads(json.dumps(method.create(**settings(method, options)).get_settings()))
    for name in now.keys() & made.keys() - {"seed", "verbose", "precision", "n_jobs"}:
        check_made_so(run.path, made, {name: now[name]})
    return True


def settings(method: Method, options: argparse.Namespace) -> dict:
    """The detector's settings: the recipe's, then what the command line says of those it has."""
    has = method.create().get_params()
    given = {name: getattr(options, name) for name in OVERRIDES if name in has}
    return method.recipes[options.recipe] | {k: v for k, v in given.items() if v is not None}


def recipe_name(method: Method, options: argparse.Namespace) -> str:
    """The recipe and all that was changed of it: `paper` alone is a reproduction."""
    has = method.create().get_params()
    changes = {
        "epochs": options.epochs if "epochs" in has else None,
        "batch size": options.batch_size if "batch_size" in has else None,
        "training images": options.limit_train,
        "test images": options.limit_test,
    }
    changed = [f"{value:g} {name}" for name, value in changes.items() if value is not None]
    return ", ".join([options.recipe, *changed])


class TimeEstimate(keras.callbacks.Callback):
    """Prints, once, what the method's remaining runs would take at the speed measured so far.

    Scoring, not measured yet, is taken as four times as fast as training: a training step also goes
    backward and updates the weights.
    """

    def __init__(self, method, detector, n_train, n_test, remaining, after_seconds=20.0):
        super().__init__()
        self.method, self.detector = method, detector
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
        text = (
            f"\n{speed:.0f} images/s: about {hours:.1f} hours for the {self.remaining} runs of "
            f"{self.method} left"
        )
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
        type=whole_number,
        help="runs of each class (default: as in the paper, 5 for transformations; digits: 1)",
    )
    add("--results-dir", type=Path, default=Path("runs"), help="default: runs")
    add(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="other folders of results to show in the tables, such as results, which came with "
        "the code",
    )
    add(
        "--seed", type=seed_number, default=0, help="seed of run 0; run r has seed + r (default: 0)"
    )
    add("--recipe", choices=RECIPES, help="default: paper; digits: small")
    add("--epochs", type=number_above_zero, help="over all transformed images, e.g. 0.1")
    add("--batch-size", type=whole_number)
    add("--limit-train", type=whole_number, help="train on the first N images of the class")
    add("--limit-test", type=whole_number, help="score a random N of the test images")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    add("--jobs", type=whole_number, default=1, help="runs at once, each with its cores and GPU")
    add("--scheduler", help="of a Dask cluster that takes the runs, such as tcp://host:8786")
    add("--report", action="store_true", help="only make the tables from the files that are there")
    options = parser.parse_args(arguments)
    if options.recipe is None:
        options.recipe = DEFAULT_RECIPES.get(options.dataset, "paper")
    if options.runs is None and options.dataset == "digits":
        options.runs = 1
    return options


if __name__ == "__main__":
    # By its own name, so that worker processes find what they are to run.
    from experiments import main as command_line

    sys.exit(command_line())
