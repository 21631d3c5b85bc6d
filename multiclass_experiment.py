"""Out-of-distribution images of a labelled data set (section 5.5): CIFAR-10 against others.

    python multiclass_experiment.py                                      the paper's, for a GPU
    python multiclass_experiment.py --depth 10 --widen-factor 4 --epochs 4 --limit-test 1000

Two networks are trained. The paper's has two heads on one wide residual network, for the categories
and for the 72 transformations; its score is the simplified score of the transformations. A network
with the categories alone, trained by the same recipe on the same images, gives the maximum softmax
probability and ODIN's score. The one sees each image under one of the 72 transformations drawn at
random; the other under the flips and shifts by up to 4 pixels that are usual for classifiers.

Training leaves its state in <results-dir>/multiclass/ every few minutes, and the same command goes
on from there; the trained networks stay there, so that another --out only scores. The scores of
each --out are one file, and a file that exists is not made again.
"""

if __name__ == "__main__":
    from utils import startup

    startup.start()  # first: what follows takes seconds to load

import argparse
import itertools
import json
import math
import os
import re
import sys
import time
import zlib
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops

from baselines.odin import ODIN
from models.layers import scale_images
from models.wide_residual_network import (
    create_two_headed_wide_residual_network,
    create_wide_residual_network,
)
from transformations import TransformationSet, Transformer, TransformLayer, all_transformed
from utils.backend import backend, keras_defaults
from utils.batches import pair_batches, predict
from utils.claims import claim
from utils.commands import number_above_zero, run_command, seed_number, whole_number
from utils.datasets import load_dataset, load_test_images, random_part
from utils.device import (
    PRECISIONS,
    device_name,
    made_with,
    resolve_precision,
    scoring_batch,
    use_xla,
)
from utils.files import read_npz, replacing, write_npz
from utils.metrics import evaluate
from utils.optimizers import SGD
from utils.results import ResultError, check_made_so
from utils.training import Checkpoint, fit_steps

PUBLISHED = Path(__file__).with_name("utils") / "published_multiclass.csv"

METHODS = ("transformations", "odin", "maximum_softmax")


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment of a command line; returns the exit status."""
    options = parse_arguments(arguments)
    return run_command(command, options, stopped="stopped; the same command goes on from here")


def command(options: argparse.Namespace) -> None:
    """The results that are missing, and the table."""
    if not options.report:
        run(options)
    print(f"\n{report(options.results_dir / 'multiclass')}")


@keras_defaults()
def run(options: argparse.Namespace) -> None:
    """Train both networks, score the test sets, and write a file for each --out without one."""
    print(f"results go to {options.results_dir}/multiclass/")
    made = made_with()
    odin = {"temperature": options.temperature, "perturbation": options.perturbation}
    ODIN(None, **odin).check_settings()
    todo = [out for out in options.out if not is_done(out, options)]
    if not todo:
        return
    data = load_dataset("cifar10", options.data_dir)
    sets = {out: load_test_images(out, options.data_dir, data.x_test.shape[1:]) for out in todo}
    sets = {out: random_part(x, options.limit_test, options.seed) for out, x in sets.items()}
    x, y = data.x_train[: options.limit_train], data.y_train[: options.limit_train]
    x_in = random_part(data.x_test, options.limit_test, options.seed)
    y_in = random_part(data.y_test, options.limit_test, options.seed)
    n_categories = len(data.class_names)
    scorers, details = {}, {"accuracy": {}, "seconds": {}, "settings": {}}

    two_headed, seconds = trained_network(x, y, n_categories, True, options)
    details["seconds"]["two_headed_training"] = round(seconds, 1)
    details["accuracy"]["two_headed"] = accuracy(two_headed, x_in, y_in)
    scorers["transformations"] = lambda x: simplified_scores(two_headed, x)

    one_headed, seconds = trained_network(x, y, n_categories, False, options)
    details["seconds"]["one_headed_training"] = round(seconds, 1)
    details["accuracy"]["one_headed"] = accuracy(one_headed, x_in, y_in)
    precise = one_headed
    if resolve_precision(options.precision) != "float32":
        precise = create_network(x.shape[1:], n_categories, False, options, dtype="float32")
        precise.set_weights(one_headed.get_weights())
    for name, settings in (
        ("odin", odin),
        ("maximum_softmax", {"temperature": 1.0, "perturbation": 0.0}),
    ):
        scorers[name] = ODIN(precise, **settings).fit(x_in).score_samples
        details["settings"][name] = settings

    start = time.perf_counter()
    scores_in = {name: scorers[name](x_in) for name in METHODS}
    seconds_in = time.perf_counter() - start
    for out, x_out in sets.items():
        start = time.perf_counter()
        arrays = {"normal": np.arange(len(x_in) + len(x_out)) < len(x_in)}
        for name in METHODS:
            arrays[f"scores_{name}"] = np.concatenate([scores_in[name], scorers[name](x_out)])
        details["seconds"]["scoring"] = round(seconds_in + time.perf_counter() - start, 1)
        details |= made | {
            "out": out,
            "recipe": recipe_name(options),
            "seed": options.seed,
            "precision": resolve_precision(options.precision),
            "n_train": len(x),
            "n_in": len(x_in),
            "n_out": len(x_out),
        }
        write_npz(result_path(out, options), arrays | {"details": np.array(json.dumps(details))})
        print(f"wrote {result_path(out, options)}", flush=True)


# --------------------------------------------------------------------------------------- training


def trained_network(
    x: np.ndarray, y: np.ndarray, n_categories: int, two_headed: bool, options: argparse.Namespace
) -> tuple[keras.Model, float]:
    """The network of the options, trained on images x with categories y, and the seconds it took.

    Goes on from the network's checkpoint, and leaves it.
    """
    precision = resolve_precision(options.precision)
    network = create_network(x.shape[1:], n_categories, two_headed, options, dtype=precision)
    name = f"{network.name}_{options.seed}.checkpoint.keras"
    path = options.results_dir / "multiclass" / name
    print(f"\n{network.name}, Keras on {backend()}, {device_name()}, {precision}", flush=True)
    with claim(path):
        seconds = train_network(
            network,
            x,
            y,
            two_headed_transformations() if two_headed else augmentations(),
            epochs=options.epochs,
            seed=options.seed,
            checkpoint=path,
            verbose=options.verbose,
        )
    return network, seconds


def create_network(input_shape, n_categories, two_headed, options, *, dtype) -> keras.Model:
    """The two-headed network, or the one with the categories alone, from images to logits."""
    settings = {
        "depth": options.depth,
        "widen_factor": options.widen_factor,
        "final_activation": None,
        "seed": options.seed,
        "dtype": dtype,
    }
    if not two_headed:
        return create_wide_residual_network(input_shape, n_categories, **settings)
    k = two_headed_transformations().n_transforms
    return create_two_headed_wide_residual_network(input_shape, n_categories, k, **settings)


def two_headed_transformations() -> TransformationSet:
    """The paper's 72."""
    return Transformer()


def augmentations(shift: int = 4) -> TransformationSet:
    """What a classifier usually sees of an image: flipped or not, shifted by up to 4 pixels.

    The publication of the wide residual network trains so (Zagoruyko & Komodakis, 2016).
    """
    shifts = range(-shift, shift + 1)
    return TransformationSet(list(itertools.product((False, True), shifts, shifts, (0,))))


def train_network(
    network: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    transformations: TransformationSet,
    *,
    epochs: float = 200,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 180.0,
    callbacks: list[keras.callbacks.Callback] = (),
    verbose: int = 1,
) -> float:
    """Train on images x (n, h, w, c) with categories y (n,); returns the seconds it took.

    An epoch shows each image once, in an order and under a transformation drawn at random. A
    network whose outputs are a dict of "categories" and "transformations" learns both, by the sum
    of their cross-entropies; any other one the categories alone. SGD as PyTorch defines it, with
    Nesterov's momentum and the learning rate of `step_schedule`. The defaults are section 5.5's.

    checkpoint: a file that holds the state, written anew every checkpoint_seconds and after each
    epoch; where it exists, training goes on from there, to the weights that it would have ended
    with. ValueError where it is of another training.
    """
    k = transformations.n_transforms
    steps_per_epoch = math.ceil(len(x) / batch_size)
    total_steps = max(1, round(epochs * steps_per_epoch))
    images = keras.Input(x.shape[1:], dtype=str(x.dtype))
    t = keras.Input((), dtype="int32")
    transformed = TransformLayer(transformations.transformations)([images, t])
    trainer = keras.Model([images, t], network(scale_images(transformed)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    two_headed = isinstance(trainer.output, dict)
    trainer.compile(
        SGD(step_schedule(learning_rate, total_steps), momentum=momentum, nesterov=True),
        loss={name: loss for name in trainer.output} if two_headed else loss,
        metrics={name: ["accuracy"] for name in trainer.output} if two_headed else ["accuracy"],
        jit_compile=use_xla(),
    )

    def labels(image, t):
        categories = y[image]
        return {"categories": categories, "transformations": t} if two_headed else categories

    settings = {"network": network.name, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    settings |= {"learning_rate": learning_rate, "momentum": momentum, "images": x.shape}
    settings |= {"mean": float(x.mean()), "transformations": _checksum(transformations.to_list())}
    settings |= {"precision": network.layers[1].dtype_policy.name}
    state = Checkpoint(checkpoint, checkpoint_seconds, json.dumps(settings, sort_keys=True))
    fit_steps(
        trainer,
        lambda epoch: pair_batches(x, random_pairs(len(x), k, seed, epoch), k, batch_size, labels),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        checkpoint=state,
        learning_rate=learning_rate,
        callbacks=callbacks,
        verbose=verbose,
    )
    return state.seconds


def _checksum(value):
    return zlib.crc32(json.dumps(value).encode())


def step_schedule(
    learning_rate: float, total_steps: int, drops: tuple = (0.3, 0.6, 0.8), factor: float = 0.2
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate times factor from each of the drops on, which are shares of all steps.

    The defaults are epochs 60, 120 and 160 of 200.
    """
    # Keras gives the earlier value up to and including a boundary, steps counting from 0.
    boundaries = [round(drop * total_steps) - 1 for drop in drops]
    values = [learning_rate * factor**i for i in range(len(drops) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


def random_pairs(n: int, n_transforms: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's shuffle of n images, each with one random t: int32, image * n_transforms + t."""
    rng = np.random.default_rng((seed, epoch))
    return (rng.permutation(n) * n_transforms + rng.integers(n_transforms, size=n)).astype(np.int32)


# ---------------------------------------------------------------------------------------- scoring


def simplified_scores(network: keras.Model, x: np.ndarray) -> np.ndarray:
    """The simplified score (section 4.2) of the transformations' head: (n, h, w, c) to (n,)."""
    transformations = two_headed_transformations()
    k = transformations.n_transforms
    images = keras.Input(x.shape[1:], dtype=str(x.dtype))
    every = all_transformed(images, transformations.index_maps(*x.shape[1:3]))
    log_p = ops.log_softmax(network(scale_images(every))["transformations"], axis=-1)
    right = ops.diagonal(ops.reshape(log_p, (-1, k, k)), axis1=1, axis2=2)
    scorer = keras.Model(images, right)
    scorer.compile(jit_compile=use_xla())
    log_p = predict(scorer, x, max(1, scoring_batch() // k))
    return np.exp(log_p.astype(np.float64)).mean(axis=1)


def accuracy(network: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """The share of images x whose category the network finds, untransformed."""
    images = keras.Input(x.shape[1:], dtype=str(x.dtype))
    outputs = network(scale_images(images))
    logits = outputs["categories"] if isinstance(outputs, dict) else outputs
    classifier = keras.Model(images, logits)
    predicted = predict(classifier, x, scoring_batch()).argmax(1)
    return float((predicted == y).mean())


# ---------------------------------------------------------------------------------------- results


def result_path(out: str, options: argparse.Namespace) -> Path:
    """`<results-dir>/multiclass/<out>_wrn_<depth>_<widen factor>_<seed>.npz`."""
    name = f"{out}_wrn_{options.depth}_{options.widen_factor}_{options.seed}.npz"
    return options.results_dir / "multiclass" / name


def recipe_name(options: argparse.Namespace) -> str:
    """`paper`, or the network and all that is reduced of the paper's recipe."""
    network = f"WRN-{options.depth}-{options.widen_factor}"
    changes = {
        "epochs": options.epochs if options.epochs != 200 else None,
        "training images": options.limit_train,
        "test images a set": options.limit_test,
    }
    changed = [f"{value:g} {name}" for name, value in changes.items() if value is not None]
    if not changed and network == "WRN-16-8":
        return "paper"
    return ", ".join(["reduced: " + network, *changed])


def is_done(out: str, options: argparse.Namespace) -> bool:
    """Whether the result's file exists; ResultError where another recipe made it."""
    path = result_path(out, options)
    if not path.exists():
        return False
    made = read_result(path)[1]
    made["odin"] = made["settings"]["odin"]
    wanted = {
        "recipe": recipe_name(options),
        "odin": {"temperature": options.temperature, "perturbation": options.perturbation},
        "backend": backend(),
        "precision": resolve_precision(options.precision),
    }
    check_made_so(path, made, wanted)
    return True


def read_result(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """A result's arrays and how it was made."""
    try:
        arrays = read_npz(path)
        return arrays, json.loads(str(arrays.pop("details")))
    except (ValueError, KeyError) as error:
        raise ResultError(f"{path} is no result of this experiment ({error}); delete it") from error


def report(folder: Path) -> str:
    """The table of all results in a folder, in Markdown, also written there as table.md.

    AUPR-In has the images of CIFAR-10 as the positive class, AUPR-Out the others, as Liang et al.
    define them. Raises ResultError where there are no results.
    """
    published = pd.read_csv(PUBLISHED).set_index(["out", "method"])
    lines = [
        "| out | method | recipe | seed | AUROC | AUPR-In | AUPR-Out | published | accuracy |",
        "|" + "---|" * 9,
    ]
    name = re.compile(r"[a-z0-9_]+_wrn_\d+_\d+_\d+\.npz")  # exactly: a copy is no result
    for path in sorted(path for path in folder.glob("*.npz") if name.fullmatch(path.name)):
        arrays, details = read_result(path)
        for method in METHODS:
            found = evaluate(arrays["normal"], arrays[f"scores_{method}"])
            areas = [found["auroc"], found["aupr_normal"], found["aupr_anomaly"]]
            key, theirs = (details["out"], method), ""
            if key in published.index:
                theirs = " / ".join(f"{value:.1f}" for value in published.loc[key])
            network = "two_headed" if method == "transformations" else "one_headed"
            areas.append(details["accuracy"][network])
            *areas, accurate = [f"{100 * value:.1f}" for value in areas]
            cells = [*key, details["recipe"], str(details["seed"]), *areas, theirs, accurate]
            lines.append(f"| {' | '.join(cells)} |")
    if len(lines) == 2:
        raise ResultError(f"no results in {folder}; run the experiment first")
    text = "\n".join(lines)
    with replacing(folder / "table.md") as partial:
        title = "# CIFAR-10 against other test images, in percent"
        partial.write_text(f"{title}\n\n{text}\n", encoding="utf-8")
    return text


# ------------------------------------------------------------------------------------ command line


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--out",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=["tiny_imagenet"],
        help="the other images: tiny_imagenet, or data sets of 32x32 images, such as cifar100 and "
        "fashion_mnist, separated by commas (default: tiny_imagenet)",
    )
    add("--depth", type=whole_number, default=16, help="6n + 4 (default: 16)")
    add("--widen-factor", type=whole_number, default=8, help="default: 8")
    add(
        "--epochs",
        type=number_above_zero,
        default=200,
        help="default: 200; the schedule shrinks with it",
    )
    add("--limit-train", type=whole_number, help="train on the first N images")
    add("--limit-test", type=whole_number, help="score a random N of each test set")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    add("--temperature", type=number_above_zero, default=1000.0, help="ODIN's (default: 1000)")
    add("--perturbation", type=float, default=0.0014, help="ODIN's (default: 0.0014)")
    add("--seed", type=seed_number, default=0, help="default: 0")
    add("--data-dir", type=Path, default=Path("data"), help="where data sets lie (default: data)")
    add("--results-dir", type=Path, default=Path("runs"), help="default: runs")
    add("--report", action="store_true", help="only make the table from the files that are there")
    add("--verbose", type=int, choices=(0, 1), default=1, help="0 shows no progress (default: 1)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
