"""Find the odd ones out among one's own images.

From a folder of good images to a list and a picture of the odd ones:

    python detect.py fit GOOD_IMAGES/ --output model.keras
    python detect.py score IMAGES/ --model model.keras --output scores.csv --report report.html
    python detect.py evaluate --normal GOOD/ --anomalous ODD/ --model model.keras
    python detect.py demo NEW_FOLDER    all of it in three minutes, on images that need no download

`fit` needs normal images only, a few hundred at least: a network learns to tell how each of them
was turned. In an image unlike them it finds other features, and `score` says so by a p-value: the
smaller, the more anomalous. A fifth of the good images is held out from training to tell how small
a p-value is. `evaluate` measures, where the answer is known, how well that works.

Exit status: 0 done, 1 an image was flagged (with score --exit-code only), 2 an error, 130 stopped.
"""

if __name__ == "__main__":
    from utils import startup

    startup.start()  # first: what follows takes seconds to load

import argparse
import inspect
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from models.image_scorer import ImageScorer, text_histogram, told_apart
from models.onnx_export import write_onnx
from models.pace import Pace
from models.recipes import RECIPES
from models.transformation_detector import SCORES, TransformationDetector
from utils.commands import (
    file_path,
    number_above_zero,
    run_command,
    seed_number,
    share,
    whole_number,
)
from utils.datasets import random_part, write_digits
from utils.files import check_writable, claim
from utils.folders import Folder, arrivals, listed, read_folder, report_skipped
from utils.images import MAX_PIXELS, REGIONS, ImageError, is_grey, printable, to_grey
from utils.metrics import evaluate as evaluate_scores
from utils.report import MAPPED, write_report
from utils.threshold import anomaly_scores, min_held_out, share_interval, threshold_statement

METRICS = {
    "auroc": "AUROC",
    "aupr_normal": "AUPR, normal is positive",
    "aupr_anomaly": "AUPR, anomaly is positive",
}

ALIKE = 0.5
"""Grey levels by which images should differ, as the mean of the pixels' standard deviations."""

JUDGED = 200
"""Held-out squares on which rotations are told apart, at the end of a fit."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    options = parse_arguments(arguments)
    return run_command(options.command, options)


def fit(options: argparse.Namespace) -> int:
    """Learn what the images of a folder have in common, and write a model.

    Give normal images only, several hundred or more, of any size and format: folders, with their
    sub-folders, or files. The false alarm rate is the share of normal images that may be flagged.
    A fit that was stopped goes on, from up to three minutes before, when the same command is given.

    --region says what is used of images that are no squares: the square at the centre, the whole
    image squeezed to a square, or tiles: overlapping squares, of which the most anomalous counts.

    python detect.py fit photos/good --output model.keras
    """
    checkpoint = options.output.with_name(f".{options.output.stem}.checkpoint.keras")
    for path in (options.output, checkpoint):
        check_writable(path, ".keras")
    tempfile.gettempdir()  # raises where there is none, in which Keras saves
    min_held_out(options.false_alarm_rate)  # refuses an absurd rate before the folder is read
    how = {"max_pixels": options.max_pixels, "region": options.region, "verbose": options.verbose}
    folder = read_folder(options.images, options.size, **how)
    if random_part(folder.images, 1000, seed=0).std(axis=0).mean() < ALIKE:
        folder.remarks.append("warning: the images are nearly all alike: scores mean nothing")
    for remark in folder.remarks:
        print(remark, flush=True)
    held_out, training = divided(folder, options)
    kind, prepare = ("grey", to_grey) if is_grey(folder.images) else ("colour", np.asarray)
    print(
        f"training on {len(training.paths)} {kind} images of {options.size}x{options.size} pixels, "
        f"{len(held_out.paths)} held out; recipe {options.recipe}",
        flush=True,
    )
    given = {"epochs": options.epochs, "score_name": options.score}
    settings = RECIPES[options.recipe] | {k: v for k, v in given.items() if v is not None}
    if options.minutes or (options.epochs is None and settings.get("schedule") == "one_cycle"):
        settings["schedule"] = "paced"
    detector = TransformationDetector(**settings, seed=options.seed, verbose=options.verbose)
    x, x_held_out = prepare(training.images), prepare(held_out.images)
    pace = Pace(x_held_out, minutes=options.minutes)
    if checkpoint.exists():
        print(f"going on from {printable(checkpoint)}")
    with claim(options.output):
        detector.fit(x, checkpoint=checkpoint, callbacks=[pace])
        scores = detector.score_samples(x_held_out)
        detector.calibrate_by(scores[held_out.lowest(scores)], options.false_alarm_rate)
        detector.details_.update(recipe=options.recipe, white=folder.white, region=options.region)
        if options.region == "tiles":
            detector.details_["tiles"] = int(folder.tiles().max())
        detector.save(options.output)
        checkpoint.unlink(missing_ok=True)
    lines = [*findings(detector, x_held_out), f"wrote {printable(options.output)}"]
    print("\n".join(lines), flush=True)
    report_skipped(folder)
    return 0


def divided(folder: Folder, options: argparse.Namespace) -> tuple[Folder, Folder]:
    """The images of a folder that are held out and those to train on, each image once.

    A copy of a training image must not be held out. ValueError where too few are held out.
    """
    squares = np.split(folder.images, folder.first[1:])
    first_copies = {image.tobytes(): i for i, image in reversed(list(enumerate(squares)))}
    different = sorted(first_copies.values())
    if len(different) < len(squares):
        print(f"{len(squares) - len(different)} images are copies of others and are left out")
    n, needed = len(different), min_held_out(options.false_alarm_rate)
    n_held_out = round(options.held_out * n)
    if not needed <= n_held_out < n:
        several = itertools.count(max(n, int((needed - 1) / options.held_out)))
        enough = next(k for k in several if needed <= round(options.held_out * k) < k)
        raise ValueError(
            f"{n} different images, of which {n_held_out} are held out: a false alarm rate of "
            f"{options.false_alarm_rate:g} needs {needed} of them. Give at least "
            f"{enough} images, or another --held-out or --false-alarm-rate"
        )
    order = np.random.default_rng(options.seed).permutation(different)
    return folder.part(np.sort(order[:n_held_out])), folder.part(np.sort(order[n_held_out:]))


def findings(detector: TransformationDetector, held_out: np.ndarray) -> list[str]:
    """What fit says at its end of the held-out images (n, h, w, c)."""
    scores = detector.calibration_scores_
    recognised, chance = told_apart(detector, random_part(held_out, JUDGED, seed=0))
    lines = [
        f"\nhow {len(scores)} held-out normal images scored, in standard deviations below their "
        f"median:\n{text_histogram(anomaly_scores(scores, scores))}",
        f"\nhow they were turned is recognised in {recognised:.0%} ({chance:.0%} by chance)",
        threshold_statement(len(scores), detector.false_alarm_rate_),
    ]
    if recognised < 1.5 * chance:
        lines.append(
            "warning: turns are recognised hardly better than by chance. The method has no grip on "
            "images that look the same however they are turned, or training was too short"
        )
    return lines


def score(options: argparse.Namespace) -> int:
    """Score images and flag the anomalies: files, folders, a list of them, or all that arrive.

    The CSV file has a row an image, the most anomalous first: its path; its p-value, which for a
    normal image is at most q with a probability of at most q; its anomaly score, in standard
    deviations of held-out normal images below their median; whether it is flagged, its p-value
    being at most the false alarm rate; and its raw score, higher = more normal. The report is one
    HTML file that shows the images and what the network confused; it needs no network to open.

    --watch prints a line of JSON for each image in a folder as it arrives, until stopped.

    python detect.py score photo.png photos/new --model model.keras --report report.html
    """
    if sum(map(bool, (options.images, options.files, options.watch))) != 1:
        raise ValueError("give images or folders, or --files LIST, or --watch FOLDER: one of these")
    outputs = [path for path in (options.output, options.maps, options.report) if path]
    if options.watch and (outputs or options.exit_code):
        raise ValueError("--watch goes without --output, --report, --maps and --exit-code")
    if options.output:
        check_writable(options.output, ".csv")
    if options.report:
        check_writable(options.report, ".html")
    scorer = load(options)
    if options.maps:
        if not scorer.has_maps:
            raise ValueError("this model is of an older version, and has no maps: fit it anew")
        options.maps.mkdir(exist_ok=True)
        check_writable(options.maps / "map.png", ".png")
        if any(options.maps.glob("[0-9][0-9][0-9][0-9]_*.png")):
            name = printable(options.maps)
            raise ValueError(f"{name} holds maps already: empty it, or name another folder")
    if options.watch:
        return watch(options.watch, scorer)
    sources = listed(options.files) if options.files else options.images
    folder = scorer.read(sources, strict=not options.files)
    scored = scorer.score(folder)
    if options.output:
        scored.write_csv(options.output)
    n, flagged = len(scored.table), scored.table["is_anomaly"].sum()
    expected = f"{scorer.expected * n:.{1 if scorer.expected * n >= 1 else 2}f}"
    maps = {}
    if options.maps or (options.report and scorer.has_maps):
        maps = scored.maps(max(MAPPED, flagged if options.maps else 0))
    if options.maps:
        scored.write_maps(options.maps, maps)
    if options.report:
        write_report(options.report, scored.report(maps))
    lines = [
        *folder.remarks,
        f"\nthe most anomalous:\n{scored.as_text()}\n",
        f"{flagged} of {n} images are flagged; {expected} would be, were all normal",
        scorer.statement,
        *(f"wrote {printable(path)}" for path in outputs),
    ]
    print(json.dumps(scored.values()) if options.json else "\n".join(lines), flush=True)
    report_skipped(folder)
    return int(options.exit_code and flagged > 0)


def watch(folder: Path, scorer: ImageScorer) -> int:
    """Prints a line of JSON for each image that arrives in a folder; never ends by itself."""
    scorer.detector.verbose = 0
    for path in arrivals(folder):
        try:
            (row,) = scorer.score(scorer.read([path], strict=False)).values()["images"]
        except ImageError as error:
            row = {"path": os.fspath(path), "error": str(error)}
        print(json.dumps(row), flush=True)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Measure a model on normal images and on anomalies that it has not seen.

    AUROC: the chance that a random normal image scores higher than a random anomaly. AUPR: the
    area under the precision-recall curve. Then, of both kinds, the share flagged.

    python detect.py evaluate --normal photos/good-test --anomalous photos/odd --model model.keras
    """
    scorer = load(options)
    folders = [scorer.read(sources) for sources in (options.normal, options.anomalous)]
    tables = [scorer.score(folder).table for folder in folders]
    n_normal, n_odd = map(len, tables)
    scores = np.concatenate([table["score"] for table in tables])
    metrics = evaluate_scores(np.repeat([True, False], [n_normal, n_odd]), scores)
    remarks = [remark for folder in folders for remark in folder.remarks]
    lines = [*remarks, f"\n{n_normal} normal images, {n_odd} anomalies"]
    values = {"normal": n_normal, "anomalous": n_odd, "remarks": remarks}
    for name, label in METRICS.items():
        values[name] = metrics[name]
        lines.append(f"{label:27} {100 * metrics[name]:6.2f} %")
    for label, table in zip(("normal images", "anomalies"), tables, strict=True):
        percent, low, high = share_interval(int(table["is_anomaly"].sum()), len(table))
        values[f"{label} flagged"] = {"percent": percent, "interval": [low, high]}
        interval = f"(95 % interval: {low:.1f} to {high:.1f} %)"
        lines.append(f"{f'{label} flagged':27} {percent:6.2f} %  {interval}")
    lines.append(scorer.statement)
    print(json.dumps(values) if options.json else "\n".join(lines), flush=True)
    for folder in folders:
        report_skipped(folder)
    return 0


def demo(options: argparse.Namespace) -> int:
    """Show fit, score and evaluate on handwritten digits: fours are normal, others are not.

    Writes a new folder with the images, the model, the table and the report.
    """
    folder = options.folder
    write_digits(folder)
    model, report = folder / "model.keras", folder / "report.html"
    good, mixed, normal, odd = (folder / name for name in ("good", "mixed", "normal", "odd"))
    for arguments in (
        ["fit", good, "--output", model, "--recipe", "small"],
        ["score", mixed, "--model", model, "--output", folder / "scores.csv", "--report", report],
        ["evaluate", "--normal", normal, "--anomalous", odd, "--model", model],
    ):
        print("\n$ python detect.py", *arguments, flush=True)
        made = parse_arguments([os.fspath(each) for each in arguments] + ["--quiet"])
        made.command(made)
    print(f"\nopen in a browser: {printable(report.resolve())}")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a model as an ONNX graph, for programs without Keras.

    From images, as uint8 (n, h, w, c) of the model's size, to scores and p-values. It computes in
    float32: where fit took bfloat16, its scores differ a little from those of `score`.

    python detect.py export model.keras --output model.onnx
    """
    check_writable(options.output, ".onnx")
    write_onnx(options.output, TransformationDetector.load(options.model, precision="float32"))
    print(f"wrote {printable(options.output)}")
    return 0


def load(options: argparse.Namespace) -> ImageScorer:
    """The model of a command."""
    return ImageScorer(options.model, options.false_alarm_rate, options.max_pixels, options.verbose)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. What a command's --help says is its function's docstring."""
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="detect.py", description=__doc__, **form)
    commands = parser.add_subparsers(required=True)

    def command(function):
        text = inspect.getdoc(function) or ""  # none under python -OO
        summary = text.partition("\n")[0]
        made = commands.add_parser(function.__name__, help=summary, description=text, **form)
        made.set_defaults(command=function)
        return made.add_argument

    def add_common(add, rate):
        add("--quiet", dest="verbose", action="store_false", help="no progress bars")
        text = "larger images are skipped, as made to exhaust memory (default: 89 million)"
        add("--max-pixels", type=whole_number, default=MAX_PIXELS, metavar="N", help=text)
        text = "default: 0.05" if rate else "another one than fit was given"
        add("--false-alarm-rate", type=share, default=rate, metavar="RATE", help=text)

    def add_model(add):
        add("--model", type=file_path, required=True, help="what fit wrote")
        add("--json", action="store_true", help="print JSON instead of text")
        add_common(add, None)

    add = command(fit)
    add("images", nargs="+", type=file_path, metavar="GOOD_IMAGES", help="folders, or files")
    add("--output", type=file_path, required=True, help="the model to write, ending in .keras")
    add("--size", type=int, choices=(32, 64), default=32, help="pixels a side (default: 32)")
    add("--region", choices=REGIONS, default="centre", help="what is used (default: centre)")
    recipes = "best_short (default), which takes mirrored and slightly shifted images for normal; "
    recipes += "fast, where these are the anomalies; best, ten times as long; small or best_small "
    recipes += "for a first try; or the paper's, which takes hours"
    add("--recipe", choices=RECIPES, default="best_short", help=recipes)
    add("--epochs", type=number_above_zero, help="train so long; without --minutes, to the end")
    add("--minutes", type=number_above_zero, metavar="M", help="how long it may take")
    add("--score", choices=SCORES, help="default: the recipe's")
    held_out = "the share that is not trained on and chooses the threshold (default: 0.2)"
    add("--held-out", type=share, default=0.2, metavar="SHARE", help=held_out)
    add("--seed", type=seed_number, default=0, help="default: 0")
    add_common(add, 0.05)

    add = command(score)
    add("images", nargs="*", type=file_path, metavar="IMAGES", help="files or folders")
    add("--files", type=file_path, metavar="LIST", help="a file of paths, one a line; - is stdin")
    add("--watch", type=file_path, metavar="FOLDER", help="score images as they arrive there")
    add("--output", type=file_path, help="the table to write, ending in .csv")
    add("--report", type=file_path, help="the report to write, ending in .html")
    text = f"write those flagged, but {MAPPED} at least, with what is odd in red; holds no maps yet"
    add("--maps", type=file_path, metavar="FOLDER", help=text)
    add("--exit-code", action="store_true", help="exit with status 1 where an image is flagged")
    add_model(add)

    add = command(evaluate)
    add("--normal", nargs="+", type=file_path, required=True, metavar="DIR", help="not used by fit")
    add("--anomalous", nargs="+", type=file_path, required=True, metavar="DIR")
    add_model(add)

    add = command(export)
    add("model", type=file_path, help="what fit wrote")
    add("--output", type=file_path, required=True, help="the graph to write, ending in .onnx")

    add = command(demo)
    add("folder", type=file_path, metavar="NEW_FOLDER", help="to write images, model and report to")
    commands.metavar = " | ".join(commands.choices)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
