"""Out-of-distribution images of a labelled data set (section 5.5): CIFAR-10 against others.

    python multiclass_experiment.py                         the paper's recipe, for a GPU
    python multiclass_experiment.py --recipe one_cycle      30 epochs of WRN-16-2 by Muon
    python multiclass_experiment.py --depth 10 --widen-factor 4 --epochs 4 --limit-test 1000

Two networks are trained. The paper's has two heads on one wide residual network, for the categories
and for the 72 transformations; its score is the simplified score of the transformations. A network
with the categories alone, trained by the same recipe on the same images, gives the maximum softmax
probability and ODIN's score; so does the first network's head of categories (odin_two_headed). The
first sees each image under one of the 72 transformations drawn at random; the other under the flips
and shifts by up to 4 pixels that are usual for classifiers.

Training leaves its state in <results-dir>/multiclass/ every few minutes, and the same command goes
on from there; the trained networks stay there, so that another --out only scores. The scores of
each --out are one file, and a file that exists is not made again.
"""

if __name__ == "__main__":
    from utils import startup

    startup.start()  # first: what follows takes seconds to load

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from models.two_headed import RECIPES, Classifier, TwoHeaded
from utils.commands import (
    experiment_parser,
    number_above_zero,
    run_command,
    seed_number,
    whole_number,
)
from utils.datasets import load_dataset, load_test_images, random_part
from utils.device import PRECISIONS, made_with, resolve_precision
from utils.files import claim, replacing
from utils.results import ResultError, check_made_so, files_named, read_details, write_run
from utils.tables import markdown, number

AREAS = ("AUROC", "AUPR-In", "AUPR-Out")
"""Those of `evaluate`: the images of CIFAR-10 are the positive class of AUPR-In, the others that of
AUPR-Out, as Liang et al. define them."""

PUBLISHED = Path(__file__).with_name("utils") / "published_multiclass.csv"


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment of a command line; returns the exit status."""
    options = parse_arguments(arguments)
    return run_command(command, options, stopped="stopped; the same command goes on from here")


def command(options: argparse.Namespace) -> None:
    """The results that are missing, and the table."""
    if not options.report:
        run(options)
    print(f"\n{report(options.results_dir / 'multiclass')}")


def run(options: argparse.Namespace) -> None:
    """Train both networks, score the test sets, and write a file for each --out without one."""
    print(f"results go to {options.results_dir / 'multiclass'}/")
    odin = {"temperature": options.temperature, "perturbation": options.perturbation}
    how = options.recipe | odin | {"seed": options.seed, "precision": options.precision}
    how |= {"verbose": options.verbose}
    detectors = {"two_headed": TwoHeaded(**how), "one_headed": Classifier(**how)}
    detectors["one_headed"].check_settings()
    details = made_with() | {
        "recipe": recipe_name(options),
        "seed": options.seed,
        "precision": resolve_precision(options.precision),
        "accuracy": {},
        "seconds": {"scoring": 0.0},
        "settings": {"odin": odin, "maximum_softmax": {"temperature": 1.0, "perturbation": 0.0}},
    }
    todo = [out for out in options.out if not is_done(out, options, details)]
    if not todo:
        return
    data = load_dataset("cifar10", options.data_dir)
    sets = {"in": data.x_test} | {out: load_test_images(out, options.data_dir) for out in todo}
    sets = {name: random_part(x, options.limit_test, options.seed) for name, x in sets.items()}
    y_in = random_part(data.y_test, options.limit_test, options.seed)
    x, belongs = np.concatenate(list(sets.values())), np.repeat([*sets], [*map(len, sets.values())])
    x_train, y_train = data.x_train[: options.limit_train], data.y_train[: options.limit_train]
    scores, seconds = {}, details["seconds"]
    for name, detector in detectors.items():
        path = path_of(name, options, ".checkpoint.keras")
        made = ", ".join(details[key] for key in ("backend", "device", "precision"))
        print(f"\n{name}, Keras on {made}", flush=True)
        with claim(path):
            detector.fit(x_train, y_train, checkpoint=path)
        details["accuracy"][name] = detector.accuracy(sets["in"], y_in)
        scores |= detector.scores(x)
        seconds[f"{name}_training"] = round(detector.seconds_["training"], 1)
        seconds["scoring"] += round(detector.seconds_["scoring"], 1)
    details |= {"n_train": len(x_train), "n_in": len(y_in)}
    for out in todo:
        chosen = np.isin(belongs, ["in", out])
        write_run(
            path_of(out, options),
            belongs[chosen] == "in",
            {name: values[chosen] for name, values in scores.items()},
            details | {"out": out, "n_out": len(sets[out])},
        )
        print(f"wrote {path_of(out, options)}", flush=True)


def path_of(name: str, options: argparse.Namespace, suffix: str = ".npz") -> Path:
    """`<results-dir>/multiclass/<name>_wrn_<depth>_<widen factor>_<seed><suffix>`."""
    wrn = f"wrn_{options.recipe['depth']}_{options.recipe['widen_factor']}_{options.seed}"
    return options.results_dir / "multiclass" / f"{name}_{wrn}{suffix}"


def recipe_name(options: argparse.Namespace) -> str:
    """`paper`, or the network and all that is reduced of the paper's recipe."""
    made, paper = options.recipe, Classifier().get_params()
    changes = {
        "epochs": made["epochs"] if made["epochs"] != paper["epochs"] else None,
        "training images": options.limit_train,
        "test images a set": options.limit_test,
    }
    changed = ["one_cycle"] * (made["schedule"] == "one_cycle")
    changed += [f"{value:g} {name}" for name, value in changes.items() if value is not None]
    if made == paper and not changed:
        return "paper"
    return ", ".join([f"reduced: WRN-{made['depth']}-{made['widen_factor']}", *changed])


def is_done(out: str, options: argparse.Namespace, details: dict) -> bool:
    """Whether the result's file exists; ResultError where another recipe made it."""
    path = path_of(out, options)
    if not path.exists():
        return False
    wanted = {name: details[name] for name in ("recipe", "backend", "precision", "settings")}
    check_made_so(path, read_details(path), wanted)
    return True


def report(folder: Path) -> str:
    """The table of all results in a folder, in Markdown, also written there as table.md.

    Raises ResultError where there are no results.
    """
    published = pd.read_csv(PUBLISHED).set_index(["out", "method"]).map(number)
    rows = []
    for path in files_named(folder, r"[a-z0-9_]+_wrn_\d+_\d+_\d+"):
        details = read_details(path)
        for method, areas in details["metrics"].items():
            key = (details["out"], method)
            row = {"out": details["out"], "method": method, "recipe": details["recipe"]}
            row |= {"seed": details["seed"]} | dict(zip(AREAS, areas.values(), strict=True))
            two_headed = method == "transformations" or method.endswith("two_headed")
            row["accuracy"] = details["accuracy"]["two_headed" if two_headed else "one_headed"]
            row |= {name: number(100 * row[name]) for name in (*AREAS, "accuracy")}
            theirs = published.loc[key] if key in published.index else []
            rows.append(row | {"published": " / ".join(theirs)})
    if not rows:
        raise ResultError(f"no results in {folder}; run the experiment first")
    text = markdown(pd.DataFrame(rows))
    with replacing(folder / "table.md") as partial:
        title = "# CIFAR-10 against other test images, in percent"
        partial.write_text(f"{title}\n\n{text}\n", encoding="utf-8")
    return text


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = experiment_parser(__doc__)
    add = parser.add_argument
    text = (
        "the other images: tiny_imagenet, or data sets of 32x32 images, such as cifar100 and "
        "fashion_mnist, separated by commas (default: tiny_imagenet)"
    )
    names = {"type": lambda text: [name.strip() for name in text.split(",")]}
    add("--out", default=["tiny_imagenet"], help=text, **names)
    add("--recipe", choices=RECIPES, default="paper", help="default: paper")
    add("--depth", type=whole_number, help="6n + 4 (default: 16)")
    add("--widen-factor", type=whole_number, help="default: 8, of one_cycle 2")
    text = "default: 200, of one_cycle 30; the schedule shrinks with it"
    add("--epochs", type=number_above_zero, help=text)
    add("--limit-train", type=whole_number, help="train on the first N images")
    add("--limit-test", type=whole_number, help="score a random N of each test set")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    add("--temperature", type=number_above_zero, default=1000.0, help="ODIN's (default: 1000)")
    add("--perturbation", type=float, default=0.0014, help="ODIN's (default: 0.0014)")
    add("--seed", type=seed_number, default=0, help="default: 0")
    add("--report", action="store_true", help="only make the table from the files that are there")
    add("--verbose", type=int, choices=(0, 1), default=1, help="0 shows no progress (default: 1)")
    options = parser.parse_args(arguments)
    given = {name: vars(options)[name] for name in ("depth", "widen_factor", "epochs")}
    given = {name: value for name, value in given.items() if value is not None}
    options.recipe = Classifier(**RECIPES[options.recipe] | given).get_params()
    return options


if __name__ == "__main__":
    sys.exit(main())
