"""One run: a method trained on a class of a data set, and its scores as a file."""

import functools
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras

from utils.backend import backend
from utils.claims import ClaimedError, claim
from utils.datasets import TABLE_1, load_dataset, random_part
from utils.detector import Detector
from utils.device import made_with, peak_memory, reset_peak_memory, resolve_precision
from utils.estimate import TimeEstimate
from utils.results import Run, check_made_so, read_details, write_run

load = functools.lru_cache(maxsize=1)(load_dataset)
"""`load_dataset`, which keeps the last one."""


@dataclass(frozen=True)
class Method:
    """How to make a method's detector, and how the paper ran it.

    runs: how many of each class. recipes: settings by name. hindsight: the detector chooses
    settings by the test labels, as the paper lets the one-class SVMs do, through
    `score_in_hindsight(x, normal)`. backends: Keras's, on which it trains. datasets: those
    that the paper has it on. hours: about what a class of CIFAR-10 takes, to
    compare methods; large: how many times as long a pixel takes in images over 32x32. tells_work:
    it has `training_samples` and `scoring_passes`. renamed: settings of older files by new names.
    """

    create: Callable[..., Detector]
    runs: int
    recipes: dict[str, dict] = field(default_factory=lambda: {"paper": {}, "small": {}})
    hindsight: bool = False
    backends: tuple[str, ...] = ("tensorflow", "torch", "jax")
    datasets: tuple[str, ...] = TABLE_1
    hours: float = 1.0
    large: float = 1.0
    tells_work: bool = False
    renamed: dict[str, str] = field(default_factory=dict)

    def has(self, setting: str) -> bool:
        """Whether the detector has a setting of that name."""
        return setting in self.create().get_params()

    def detector(self, recipe: str, changes: dict, **more) -> Detector:
        """A detector of the recipe, with the changes of settings that it has."""
        changes = {name: value for name, value in changes.items() if self.has(name)}
        return self.create(**self.recipes[recipe] | changes | more)

    def check(self, name: str, recipe: str, changes: dict) -> None:
        """ValueError where the method of that name cannot run so."""
        if recipe not in self.recipes:
            raise ValueError(f"{name} has no recipe {recipe!r}; it has {', '.join(self.recipes)}")
        if backend() not in self.backends:
            choice = " or ".join(self.backends)
            raise ValueError(f"{name} does not run on {backend()}: set KERAS_BACKEND={choice}")
        settings = self.detector(recipe, changes).check_settings()
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
    """A run to be made, and how.

    name: for people. changes: settings that replace the recipe's where the method has them. seed:
    that of run 0, and of the part of the test set. limit_train: the first so many images of the
    class; limit_test: a random so many to score. hours: see Method.
    """

    run: Run
    name: str
    method: Method
    recipe: str
    changes: dict
    seed: int
    limit_train: int | None
    limit_test: int | None
    data_dir: Path
    hours: float

    def detector(self, verbose: int = 1) -> Detector:
        """The run's detector, untrained."""
        seed = self.seed + self.run.number
        return self.method.detector(self.recipe, self.changes, seed=seed, verbose=verbose)

    def identity(self) -> dict:
        """What a run's file must agree in with what is asked for."""
        changes = {
            "epochs": self.changes.get("epochs") if self.method.has("epochs") else None,
            "batch size": self.changes.get("batch_size") if self.method.has("batch_size") else None,
            "training images": self.limit_train,
            "test images": self.limit_test,
        }
        changed = [f"{value:g} {name}" for name, value in changes.items() if value is not None]
        settings = self.detector().get_params()
        return {
            "recipe": ", ".join([self.recipe, *changed]),
            "seed": settings["seed"],
            "backend": backend(),
            "precision": resolve_precision(settings.get("precision", "float32")),
        }

    def is_done(self) -> bool:
        """Whether the run's file exists; ResultError where it was made in another way."""
        if not self.run.path.exists():
            return False
        details = read_details(self.run.path)
        check_made_so(self.run.path, details, self.identity())
        made = {self.method.renamed.get(k, k): v for k, v in details["settings"].items()}
        now = json.loads(json.dumps(self.detector().get_settings()))
        for name in now.keys() & made.keys() - {"seed", "verbose", "precision", "n_jobs"}:
            check_made_so(self.run.path, made, {name: now[name]})
        return True

    def make(self, remaining: int = 0) -> dict[str, float]:
        """Train on the class, score the test set, write the run's file; returns the AUROCs.

        remaining: how many runs to tell the time of while it trains; 0 is quiet.
        """
        identity, made, memory_is_known = self.identity(), made_with(), reset_peak_memory()
        run, data = self.run, load(self.run.dataset, self.data_dir)
        detector = self.detector(verbose=int(remaining > 0))
        x = data.x_train[data.y_train == run.class_index][: self.limit_train]
        limit = min(filter(None, [self.limit_test, detector.max_test]), default=None)
        x_test = random_part(data.x_test, limit, self.seed)
        normal = random_part(data.y_test, limit, self.seed) == run.class_index
        callbacks = []
        if remaining and self.method.tells_work:
            callbacks = [TimeEstimate(run.method, detector, len(x), len(x_test), remaining)]
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
        aurocs = write_run(run, normal, scores, made | identity | details)
        run.checkpoint.unlink(missing_ok=True)
        return aurocs


def attempt(task: Task, remaining: int = 0) -> Outcome:
    """A run, unless another process makes it or has made it; a failure is an outcome too.

    remaining: see `Task.make`. Raises OSError, which the other runs would meet as well.
    """
    start = time.perf_counter()
    try:
        with claim(task.run.path):
            if task.is_done():
                return Outcome(f"{task.name}: done already")
            aurocs = task.make(remaining)
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
