"""One-vs-all anomaly detection (section 5): data set x method x class x run -> results, tables.

    python experiments.py                                  digits, which needs no download
    python experiments.py --dataset cifar10                the paper's experiment
    python experiments.py --dataset all --methods all      all of Table 1

A run is one file in --results-dir; asking for a run whose file exists does nothing, so that the
same command finishes what was interrupted, and several commands share the work. --jobs runs several
at once, and --scheduler on a Dask cluster; the shortest come first. Tables, CSV and ROC plots are
made from the files at the end, or by --report.

Exit status: 0 done, or left to another command that is making it, 1 a run failed (the others are
made), 2 an error, 130 stopped.
"""

if __name__ in ("__main__", "__mp_main__"):  # also in the worker processes of --jobs
    from utils import startup

    startup.start()  # first: what follows takes seconds to load

import argparse
import itertools
import sys
import time
from collections.abc import Collection, Iterator

from baselines import METHODS
from models.recipes import RECIPES
from utils.backend import backend
from utils.commands import (
    experiment_parser,
    file_path,
    number_above_zero,
    run_command,
    seed_number,
    whole_number,
)
from utils.datasets import DATASETS, TABLE_1, DatasetError
from utils.device import PRECISIONS, device_name
from utils.results import ResultError, Run, report
from utils.runs import OVERRIDES, Outcome, Task, attempt, load


def main(arguments: list[str] | None = None) -> int:
    """Run the experiments of a command line; returns the exit status."""
    options = parse_arguments(arguments)
    return run_command(command, options, stopped="stopped; the same command goes on from here")


def command(options: argparse.Namespace) -> int:
    """The runs that are missing, then the tables; the exit status."""
    datasets = chosen(options.dataset, DATASETS, TABLE_1, "data set")
    for folder in options.beside:
        if not folder.is_dir():
            raise ValueError(f"--beside {folder} is no folder")
    failed = [] if options.report else make_runs(datasets, options)
    errors = []
    for name in datasets:
        try:
            table = report(options.results_dir, name, options.beside)
        except ResultError as error:
            errors.append(str(error))
        else:
            print(f"\n{name}: AUROC in %, one class against the others\n\n{table}")
            print(f"\ntable.csv, table.md and roc.png are in {options.results_dir / name}/")
    for outcome in failed:
        print(f"failed: {outcome.text}", file=sys.stderr)
    if errors and not failed:
        raise ResultError("\n".join(errors))
    return int(bool(failed))


def make_runs(datasets: list[str], options: argparse.Namespace) -> list[Outcome]:
    """Every run asked for that has no file yet, the shortest first; returns those that failed.

    Whatever can be known to be wrong with one of them is raised before the first.
    """
    print(f"runs go to {options.results_dir}/; Keras on {backend()}, {device_name()}")
    methods = chosen(options.methods, METHODS, METHODS, "method")
    check_methods(methods, datasets, options)
    tasks = all_tasks(methods, datasets, options)
    todo = sorted((task for task in tasks if not task.is_done()), key=lambda task: task.hours)
    done = len(tasks) - len(todo)
    print(f"{', '.join(datasets)}: {len(tasks)} runs, {done} of them done already")
    jobs = min(options.jobs, len(todo))  # so that no cores are left over
    # how many a cluster has at once is for it to say: no estimate
    time_left = TimeLeft([task.hours for task in todo], len(todo) if options.scheduler else jobs)
    ended = []
    for task, outcome in outcomes(todo, jobs, options.scheduler):
        ended.append(outcome)
        left = time_left.after(task.hours, outcome.made)
        print(f"[{len(ended)}/{len(todo)}] {outcome.text}{left}", flush=True)
    return [outcome for outcome in ended if outcome.failed]


class TimeLeft:
    """A plain estimate: what the runs that were made took, times what is left beside them.

    hours: what each run would take, in any unit. jobs: so many are made at once, and until as many
    are made there is no estimate: of all that begin together, the first would count for one alone.
    """

    def __init__(self, hours: list[float], jobs: int = 1):
        self.start, self.made, self.left = time.perf_counter(), 0.0, sum(hours)
        self.waiting = jobs

    def after(self, hours: float, made: bool) -> str:
        """The estimate for people after one more run, which another command may have made."""
        self.left -= hours
        self.made += hours * made
        self.waiting -= made
        if self.waiting > 0 or self.left < 1e-9:
            return ""
        minutes = (time.perf_counter() - self.start) / self.made * self.left / 60
        left = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
        return f"; about {left} left"


def outcomes(todo: list[Task], jobs: int, scheduler: str | None) -> Iterator[tuple[Task, Outcome]]:
    """The runs and how they ended: here one after the other, or several at once in processes."""
    if not todo:
        return
    kinds = [(task.run.dataset, task.run.method) for task in todo]
    remaining = [kinds[position:].count(kind) for position, kind in enumerate(kinds)]
    if jobs == 1 and not scheduler:
        for task, number in zip(todo, remaining, strict=True):
            print(f"\n{task.name}", flush=True)
            yield task, attempt(task, number)
        return
    from utils.jobs import run_jobs  # Dask, which takes a second to load

    if scheduler:  # how many runs it has at once is for it to say
        remaining = [0] * len(todo)
    else:  # the first of a kind tells the time of all
        remaining = [n * (n == kinds.count(k)) for n, k in zip(remaining, kinds, strict=True)]
    tasks = list(zip(todo, remaining, itertools.repeat(jobs)))
    for (task, *_), result in run_jobs(attempt, tasks, jobs, scheduler):
        if isinstance(result, OSError):
            raise result
        if isinstance(result, Exception):  # the process was lost again and again
            result = Outcome(f"{task.name}: {type(result).__name__}: {result}", failed=True)
        yield task, result


def check_methods(methods: list[str], datasets: list[str], options: argparse.Namespace) -> None:
    """ValueError where a method cannot run so; says which options it has no use for."""
    for name in methods:
        for dataset in datasets:
            METHODS[name].check(name, options_for(dataset, options))
        for option in OVERRIDES:
            given = vars(options)[option] not in (None, "auto")
            if given and option not in METHODS[name].changes(options):
                words = option.split("_")
                print(f"{name} has no {' '.join(words)}: --{'-'.join(words)} is moot")


def options_for(dataset: str, options: argparse.Namespace) -> argparse.Namespace:
    """The options as the data set has them: of digits, what takes minutes on two cores."""
    defaults = {"recipe": "small", "runs": 1} if dataset == "digits" else {"recipe": "paper"}
    given = {name: value for name, value in vars(options).items() if value is not None}
    return argparse.Namespace(**vars(options) | defaults | given)


def all_tasks(methods: list[str], datasets: list[str], options: argparse.Namespace) -> list[Task]:
    """The runs of all data sets. Raises DatasetError that names all of those that are missing."""
    tasks, missing = [], []
    for dataset in datasets:
        try:
            data = load(dataset, options.data_dir)
        except DatasetError as error:
            missing.append(str(error))
            continue
        here = options_for(dataset, options)
        size = len(data.x_train) / len(data.class_names), data.x_train.shape[1:]
        for name in methods:
            method = METHODS[name]
            if options.dataset == "all" and dataset not in method.datasets:
                print(f"{name} is not in Table 1 on {dataset}, and is left out")
                continue
            classes = chosen_classes(here.classes, data.class_names)
            for number, index in itertools.product(range(here.runs or method.runs), classes):
                run = Run(options.results_dir, data.name, name, index, number)
                tasks.append(Task(run, method, here, method.hours_of(*size)))
    if missing:
        raise DatasetError("\n".join(missing))
    return tasks


def chosen(
    text: str, known: Collection[str], everything: Collection[str], kind: str, listing: str = ""
) -> list[str]:
    """What is named of the known, separated by commas, each once; everything for `all`."""
    names = everything if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; known are {listing or ', '.join(known)}")
    return list(dict.fromkeys(names))


def chosen_classes(text: str, class_names: list[str]) -> list[int]:
    """The classes given by name or number, separated by commas, or all of them, in that order."""
    numbers = {str(number): number for number in range(len(class_names))}
    numbers |= {name: number for number, name in enumerate(class_names)}  # of digits, both
    listing = f"0..{len(class_names) - 1} or {', '.join(class_names)}"
    names = chosen(text, numbers, class_names, "class", listing)
    return list(dict.fromkeys(numbers[name] for name in names))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = experiment_parser(__doc__)
    add = parser.add_argument
    text = f"of {', '.join(DATASETS)}; or all, which is Table 1 (default: digits)"
    add("--dataset", default="digits", help=text)
    add("--methods", default="transformations", help=f"all, or of {', '.join(METHODS)}")
    add("--classes", default="all", help="all, or names or numbers separated by commas")
    add("--runs", type=whole_number, help="of each class (default: the paper's; of digits 1)")
    text = "other folders of results for the tables, such as results, which came with the code"
    add("--beside", type=file_path, nargs="+", default=[], metavar="DIR", help=text)
    add("--seed", type=seed_number, default=0, help="that of run r is r more (default: 0)")
    add("--recipe", choices=RECIPES, help="default: paper; digits: small")
    add("--epochs", type=number_above_zero, help="over all images, transformed or not, e.g. 0.1")
    add("--batch-size", type=whole_number)
    add("--limit-train", type=whole_number, help="train on the first N images of the class")
    add("--limit-test", type=whole_number, help="score a random N of the test images")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    add("--jobs", type=whole_number, default=1, help="runs at once, each with its cores and GPU")
    add("--scheduler", help="of a Dask cluster that takes the runs, such as tcp://host:8786")
    add("--report", action="store_true", help="only make the tables from the files that are there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
