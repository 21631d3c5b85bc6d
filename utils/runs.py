"""One run: a method trained on a class of a data set, and its scores as a file."""

import argparse
import functools
import json
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import keras

from utils.backend import backend
from utils.datasets import LAYOUTS, TABLE_1, load_dataset, random_part
from utils.detector import Detector
from utils.device import made_with, peak_memory, reset_peak_memory, resolve_precision
from utils.files import ClaimedError, claim
from utils.results import Run, check_made_so, read_details, write_run

OVERRIDES = ("epochs", "batch_size", "precision")
"""Options that replace a setting of the recipe, in methods that have it."""

load = functools.lru_cache(maxsize=1)(load_dataset)
"""`load_dataset`, which keeps the last one."""


@dataclass(frozen=True)
class Method:
    """How to make a method's detector, and how the paper ran it.

    runs: how many of each class. recipes: settings by name. hindsight: the detector chooses
    settings by the test labels, as the paper lets the one-class SVMs do, through
    `score_in_hindsight(x, normal)`. datasets: those that the paper has it on. hours: about what a
    class of CIFAR-10 takes on a core with AVX2; large: how many times as long a pixel takes in
    images over 32x32. tells_work: the detector has `training_samples` and `scoring_passes`.
    renamed: old names of settings, and the new ones.
    """

    create: Callable[..., Detector]
    runs: int
    recipes: dict[str, dict] = field(default_factory=lambda: {"paper": {}, "small": {}})
    hindsight: bool = False
    datasets: tuple[str, ...] = TABLE_1
    hours: float = 1.0
    large: float = 1.0
    tells_work: bool = False
    renamed: dict[str, str] = field(default_factory=dict)

    def changes(self, options: argparse.Namespace) -> dict:
        """The settings that the command line gives, of those that the detector has."""
        names = self.create().get_params()
        given = {name: vars(options)[name] for name in OVERRIDES if name in names}
        return {name: value for name, value in given.items() if value is not None}

    def detector(self, options: argparse.Namespace, **more) -> Detector:
        """An untrained detector, by the recipe and the changes of a command line."""
        return self.create(**self.recipes[options.recipe] | self.changes(options) | more)

    def check(self, name: str, options: argparse.Namespace) -> None:
        """ValueError where the method of that name cannot run so."""
        if options.recipe not in self.recipes:
            raise ValueError(
                f"{name} has no recipe {options.recipe!r}; it has {', '.join(self.recipes)}"
            )
        last = options.seed + (options.runs or self.runs) - 1
        settings = self.detector(options, seed=last).check_settings()
        resolve_precision(settings.get("precision", "float32"))

    def hours_of(self, n: int, image_shape: tuple[int, int, int]) -> float:
        """About how long a run on n images of a class takes, in the units of `hours`."""
        pixels = image_shape[0] * image_shape[1] / 32**2
        return self.hours * n / 5000 * pixels * (self.large if pixels > 1 else 1)


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a run ended: text says it, failed is to be listed, made took its time."""

    text: str
    failed: bool = False
    made: bool = False


@dataclass(frozen=True)
class Task:
    """A run to be made, by the options of a command line; hours: see Method."""

    run: Run
    method: Method
    options: argparse.Namespace
    hours: float

    @property
    def name(self) -> str:
        """The run for people, with its data set where there are several."""
        run, class_name = self.run, LAYOUTS[self.run.dataset].class_names[self.run.class_index]
        name = f"{run.method}, {class_name}, run {run.number}"
        return name if self.options.dataset == run.dataset else f"{run.dataset}, {name}"

    def detector(self, verbose: int = 1) -> Detector:
        """The run's detector, untrained."""
        seed = self.options.seed + self.run.number
        return self.method.detector(self.options, seed=seed, verbose=verbose)

    def identity(self) -> dict:
        """What a run's file must agree in with what is asked for."""
        given, settings = self.method.changes(self.options), self.detector().get_params()
        changes = {
            "epochs": given.get("epochs"),
            "batch size": given.get("batch_size"),
            "training images": self.options.limit_train,
            "test images": self.options.limit_test,
        }
        changed = [f"{value:g} {name}" for name, value in changes.items() if value is not None]
        return {
            "recipe": ", ".join([self.options.recipe, *changed]),
            "seed": settings["seed"],
            "backend": backend(),
            "precision": resolve_precision(settings.get("precision", "float32")),
        }

    def is_done(self) -> bool:
        """Whether the run's file exists; ResultError where it was made in another way."""
        if not self.run.path.exists():
            return False
        details = read_details(self.run.path)
        wanted = self.identity()
        if self.options.scheduler and self.options.precision == "auto":
            del wanted["precision"]  # is that of the workers' devices
        check_made_so(self.run.path, details, wanted)
        made = {self.method.renamed.get(k, k): v for k, v in details["settings"].items()}
        now = json.loads(json.dumps(self.detector().get_settings()))
        for name in now.keys() & made.keys() - {"seed", "verbose", "precision", "n_jobs"}:
            check_made_so(self.run.path, made, {name: now[name]})
        return True

    def make(self, remaining: int = 0, jobs: int = 1) -> dict[str, float]:
        """Train on the class, score the test set, write the run's file; returns the AUROCs.

        remaining: how many runs to tell the time of while it trains; 0 is quiet. jobs: so many are
        made at once; several show no progress.
        """
        identity, made, memory_is_known = self.identity(), made_with(), reset_peak_memory()
        run, options = self.run, self.options
        shown = int(remaining > 0 and jobs == 1)
        data, detector = load(run.dataset, options.data_dir), self.detector(shown)
        x = data.x_train[data.y_train == run.class_index][: options.limit_train]
        limit = min(filter(None, [options.limit_test, detector.max_test]), default=None)
        x_test = random_part(data.x_test, limit, options.seed)
        normal = random_part(data.y_test, limit, options.seed) == run.class_index
        if normal.all() or not normal.any():
            raise ValueError(
                f"of the {len(normal)} test images {normal.sum()} are normal, and both kinds are "
                "needed: give a larger --limit-test"
            )
        callbacks = []
        if remaining and self.method.tells_work:
            sizes = len(x), len(x_test)
            callbacks = [TimeEstimate(run.method, detector, *sizes, remaining, jobs)]
        detector.fit(x, checkpoint=run.checkpoint, callbacks=callbacks)
        if self.method.hindsight:
            scores = detector.score_in_hindsight(x_test, normal)
        else:
            scores = detector.scores(x_test)
        details = {
            "dataset": run.dataset,
            "method": run.method,
            "class_index": run.class_index,
            "class_name": data.class_names[run.class_index],
            "run": run.number,
            "reduced": identity["recipe"] != "paper",
            "settings": detector.get_settings(),
            "n_train": len(x),
            "n_test": len(x_test),
            "seconds": {part: round(s, 1) for part, s in detector.seconds_.items()},
            "found": detector.record_,
            "peak_memory_bytes": peak_memory() if memory_is_known else None,
        }
        aurocs = write_run(run.path, normal, scores, made | identity | details)
        run.checkpoint.unlink(missing_ok=True)
        return aurocs


class TimeEstimate(keras.callbacks.Callback):
    """Prints, once, what the method's remaining runs would take at the speed measured so far.

    jobs: how many are made at once.

    Scoring, not measured yet, is taken as four times as fast as training: a training step also goes
    backward and updates the weights.
    """

    def __init__(self, method, detector, n_train, n_test, remaining, jobs=1, after_seconds=20.0):
        super().__init__()
        self.method, self.detector = method, detector
        self.n_train, self.n_test, self.remaining, self.jobs = n_train, n_test, remaining, jobs
        self.after_seconds = after_seconds
        self.batches, self.start, self.seen, self.done = 0, None, 0, False

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if self.start is None:  # the first batch is compilation
            self.start = now
            self.seen = int(self.model.optimizer.iterations) * self.detector.batch_size
            return
        self.batches += 1
        if self.done or now - self.start < self.after_seconds:
            return
        self.done = True
        speed = self.batches * self.detector.batch_size / (now - self.start)
        samples = self.detector.training_samples(self.n_train)
        passes = self.detector.scoring_passes(self.n_train, self.n_test)
        rounds = math.ceil(self.remaining / self.jobs)
        hours = max(0, rounds * (samples + passes / 4) - self.seen) / speed / 3600
        runs = f"the {self.remaining} runs of {self.method} left"
        about = f"{hours:.1f} hours" if hours >= 0.2 else f"{60 * hours:.1f} minutes"
        print(f"\n{speed:.0f} images/s: about {about} for {runs}", flush=True)
        if hours > 1:
            less = "--runs 1, --classes NAME, --epochs 0.1, --limit-test 1000"
            print(f"shorter with {less}, or another --recipe", flush=True)


def attempt(task: Task, remaining: int = 0, jobs: int = 1) -> Outcome:
    """A run, unless another process makes it or has made it; a failure is an outcome too.

    remaining, jobs: see `Task.make`. Raises OSError, which the other runs would meet as well.
    """
    start = time.perf_counter()
    try:
        with claim(task.run.path):
            if task.is_done():
                return Outcome(f"{task.name}: done already")
            aurocs = task.make(remaining, jobs)
    except ClaimedError:
        return Outcome(f"{task.name}: left to the command that is making it")
    except OSError:
        raise
    except Exception as error:
        if not isinstance(error, ValueError):  # not foreseen: show where
            traceback.print_exc()
        return Outcome(f"{task.name}: {type(error).__name__}: {error}", failed=True)
    finally:
        keras.utils.clear_session(free_memory=True)
    values = ", ".join(f"{score} {100 * value:.2f}" for score, value in aurocs.items())
    seconds = time.perf_counter() - start
    return Outcome(f"{task.name}: AUROC in %: {values}; {seconds:.0f} s", made=True)
