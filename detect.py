"""Find the odd ones out among one's own images.

Three commands, from a folder of good images to a list and a picture of the odd ones:

    python detect.py fit GOOD_IMAGES/ --output model.keras
    python detect.py score IMAGES/ --model model.keras --output scores.csv --report report.html
    python detect.py evaluate --normal GOOD/ --anomalous ODD/ --model model.keras

`fit` needs normal images only, a few hundred at least: a network learns to tell how each of them
was flipped, shifted and turned. On an image unlike them it makes mistakes, and `score` turns these
into a score (higher = more normal). A fifth of the good images is held out from training to choose
the threshold under which an image is called an anomaly. `evaluate` measures, where the answer is
known, how well that works.

Exit status: 0 done, 1 an image was flagged (with score --exit-code only), 2 an error, 130 stopped.
"""

if __name__ == "__main__":
    from utils import startup

    startup.start()  # first: what follows takes seconds to load

import argparse
import csv
import functools
import math
import sys
from pathlib import Path

import numpy as np
from scipy.stats import beta

from models.recipes import RECIPES
from models.transformation_detector import SCORES, TransformationDetector
from utils.claims import claim
from utils.commands import number_above_zero, run_command, seed_number, share, whole_number
from utils.detector import to_unit_range
from utils.files import check_writable, replacing
from utils.images import (
    FULL_WHITE,
    MAX_PIXELS,
    Folder,
    is_grey,
    printable,
    read_folder,
    read_image,
    spreadsheet_safe,
    to_grey,
)
from utils.metrics import evaluate as evaluate_scores
from utils.report import Report, write_report
from utils.threshold import false_alarm_interval, min_held_out, p_values

DEFAULT_RATE = 0.05

LISTED = 10
"""Skipped files, and most anomalous images, that the terminal lists."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    options = parse_arguments(arguments)
    return run_command(options.command, options)


def fit(options: argparse.Namespace) -> int:
    """Train on a folder, choose the threshold on held-out images of it, write the model."""
    check_writable(options.output, ".keras")
    needed = min_held_out(options.false_alarm_rate)
    folder = read(options.images, options.size, options)
    x = without_duplicates(folder.images)
    if is_grey(x):
        x = to_grey(x)
    order = np.random.default_rng(options.seed).permutation(len(x))
    n_held_out = round(options.held_out * len(x))
    if n_held_out < needed or n_held_out >= len(x):
        raise ValueError(
            f"{len(x)} different images, of which {n_held_out} are held out: a false alarm rate of "
            f"{options.false_alarm_rate:g} needs {needed} of them. Give at least "
            f"{math.ceil(needed / options.held_out)} images, or a larger --held-out or "
            "--false-alarm-rate"
        )
    held_out, training = x[np.sort(order[:n_held_out])], x[np.sort(order[n_held_out:])]
    kind = "grey" if x.shape[-1] == 1 else "colour"
    print(
        f"training on {len(training)} {kind} images of {options.size}x{options.size} pixels, "
        f"{n_held_out} held out; recipe {options.recipe}",
        flush=True,
    )
    given = {"epochs": options.epochs, "score_name": options.score}
    settings = RECIPES[options.recipe] | {k: v for k, v in given.items() if v is not None}
    detector = TransformationDetector(**settings, seed=options.seed, verbose=int(not options.quiet))
    checkpoint = options.output.with_name(f".{options.output.stem}.checkpoint.keras")
    if checkpoint.exists():
        print(f"going on from {printable(checkpoint)}")
    with claim(options.output):
        detector.fit(training, checkpoint=checkpoint)
        detector.calibrate(held_out, options.false_alarm_rate)
        detector.details_ |= {"recipe": options.recipe, "white": folder.white}
        detector.save(options.output)
        checkpoint.unlink(missing_ok=True)
    print(f"{threshold_statement(detector)}\nwrote {printable(options.output)}")
    report_skipped(folder)
    return 0


def score(options: argparse.Namespace) -> int:
    """Score a folder; write the CSV file and the report that are asked for."""
    for path, suffix in ((options.output, ".csv"), (options.report, ".html")):
        if path:
            check_writable(path, suffix)
    detector, white = load(options)
    folder = read(options.images, detector.image_shape_[0], options, white)
    x = prepare(folder.images, detector)
    scores = detector.score_samples(x)
    p = p_values(detector.calibration_scores_, scores)
    flagged = scores < detector.offset_
    order = np.argsort(scores, kind="stable")
    if options.output:
        with (
            replacing(options.output) as partial,
            open(partial, "w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(["path", "score", "p_value", "is_anomaly"])
            for i in order:
                path = spreadsheet_safe(folder.paths[i])
                writer.writerow([path, float(scores[i]), float(p[i]), bool(flagged[i])])
    if options.report:
        write_report(
            options.report,
            Report(
                folder=options.images,
                paths=folder.paths,
                images=folder.images,
                scores=scores,
                p_values=p,
                skipped=folder.skipped,
                threshold=detector.offset_,
                held_out_scores=detector.calibration_scores_,
                threshold_statement=threshold_statement(detector),
                transformations=detector.transformer_.transformations,
                read=functools.partial(read_image, white=white, max_pixels=options.max_pixels),
                responses=lambda chosen: detector.responses(x[chosen]),
                model=describe(detector, options.model),
            ),
        )
    print("\nthe most anomalous:   score   p-value")
    for i in order[:LISTED]:
        mark = "anomaly" if flagged[i] else "normal"
        print(f"{scores[i]:18.6g} {p[i]:9.4f}  {mark:8} {printable(folder.paths[i])}")
    expected = false_alarm_interval(len(detector.calibration_scores_), detector.false_alarm_rate_)
    print(
        f"\n{flagged.sum()} of {len(x)} images are flagged; if all were normal, about "
        f"{expected[0] * len(x):.0f} would be\n{threshold_statement(detector)}"
    )
    for path in filter(None, (options.output, options.report)):
        print(f"wrote {printable(path)}")
    report_skipped(folder)
    return int(options.exit_code and flagged.any())


def evaluate(options: argparse.Namespace) -> int:
    """Measure a model on a folder of normal images and a folder of anomalies."""
    detector, white = load(options)
    side = detector.image_shape_[0]
    folders = [read(path, side, options, white) for path in (options.normal, options.anomalous)]
    parts = [detector.score_samples(prepare(folder.images, detector)) for folder in folders]
    normal = np.repeat([True, False], [len(part) for part in parts])
    metrics = evaluate_scores(normal, np.concatenate(parts))
    print(f"\n{len(parts[0])} normal images, {len(parts[1])} anomalies")
    print(f"AUROC                       {100 * metrics['auroc']:6.2f} %")
    print(f"AUPR, normal is positive    {100 * metrics['aupr_normal']:6.2f} %")
    print(f"AUPR, anomaly is positive   {100 * metrics['aupr_anomaly']:6.2f} %")
    for label, part in zip(("normal images flagged", "anomalies flagged"), parts, strict=True):
        percent, low, high = share_interval(int((part < detector.offset_).sum()), len(part))
        print(f"{label:27} {percent:6.2f} %  (95 % interval: {low:.1f} to {high:.1f} %)")
    print(threshold_statement(detector))
    for folder in folders:
        report_skipped(folder)
    return 0


def read(path: Path, side: int, options: argparse.Namespace, white: int | None = None) -> Folder:
    """A folder's images, with a progress bar unless --quiet; says how grey levels were chosen."""
    folder = read_folder(
        path, side, white=white, max_pixels=options.max_pixels, verbose=int(not options.quiet)
    )
    if folder.white:
        text = f"{printable(path)}: in images of more than 8 bits, {folder.white} is white"
        print(text + f"; {folder.clipped} of them have pixels above it" * bool(folder.clipped))
    return folder


def load(options: argparse.Namespace) -> tuple[TransformationDetector, int]:
    """The model, and what is white in images of more than 8 bits.

    ValueError where it cannot score folders of images or has no threshold.
    """
    detector = TransformationDetector.load(options.model)
    detector.verbose = int(not options.quiet)
    height, width, channels = detector.image_shape_
    if height != width or channels not in (1, 3):
        raise ValueError(
            f"{printable(options.model)} was trained on images of shape {detector.image_shape_}; "
            "this command scores square ones with 1 or 3 channels: use the model from Python"
        )
    if options.false_alarm_rate is None:
        options.false_alarm_rate = getattr(detector, "false_alarm_rate_", DEFAULT_RATE)
    white = detector.details_.get("white") or FULL_WHITE  # trained on 8 bits, or by an old version
    if not (isinstance(white, int) and white > 0):
        raise ValueError(f"{printable(options.model)} says that white is {white!r}")
    return detector.set_false_alarm_rate(options.false_alarm_rate), white


def prepare(images: np.ndarray, detector: TransformationDetector) -> np.ndarray:
    """Bytes (n, h, w, 3) as the images that the detector was trained on."""
    x = to_grey(images) if detector.image_shape_[-1] == 1 else images
    return x if detector.image_dtype_ == "uint8" else to_unit_range(x)


def without_duplicates(images: np.ndarray) -> np.ndarray:
    """The images (n, h, w, c), each once: a copy of a training image must not be held out."""
    first = {image.tobytes(): i for i, image in reversed(list(enumerate(images)))}
    if len(first) < len(images):
        print(f"{len(images) - len(first)} images are copies of others and are left out")
    return images[sorted(first.values())]


def threshold_statement(detector: TransformationDetector) -> str:
    """What the threshold is and how far the rate of normal images flagged is known."""
    n = len(detector.calibration_scores_)
    expected, low, high = false_alarm_interval(n, detector.false_alarm_rate_)
    return (
        f"Threshold {detector.offset_:.6g}: {100 * expected:.1f} % of normal images are expected "
        f"under it (95 % interval: {100 * low:.1f} to {100 * high:.1f} %, by {n} held-out images)"
    )


def share_interval(count: int, n: int) -> tuple[float, float, float]:
    """count of n in percent, with the Clopper-Pearson 95 % confidence interval."""
    low = beta.ppf(0.025, count, n - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, n - count) if count < n else 1.0
    return 100 * count / n, 100 * float(low), 100 * float(high)


def describe(detector: TransformationDetector, path: Path) -> dict[str, str]:
    """How the model was made, as labels and texts for the report."""
    details, seconds = detector.details_, detector.seconds_
    height, width, channels = detector.image_shape_
    defaults = TransformationDetector(verbose=detector.verbose).get_settings()
    settings = detector.get_settings()
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    rows = {
        "model file": printable(path),
        "recipe": details.get("recipe", "none by name"),
        "images": f"{height}x{width} pixels, {'grey' if channels == 1 else 'colour'}",
        "trained on": f"{details.get('images')} images, {details.get('epochs')} epochs over their "
        f"{detector.transformer_.n_transforms} transformations",
        "threshold chosen on": f"{len(detector.calibration_scores_)} images held out from training",
        "network": f"{detector.network_.name}, {detector.network_.count_params():,} weights, "
        f"{detector.precision_}",
        "score": detector.settings_.score_name,
        "settings that differ from the paper's": ", ".join(f"{k}={v}" for k, v in changed.items()),
        "seconds": ", ".join(
            f"{part} {seconds[part]:.0f}" for part in ("training", "alpha") if part in seconds
        ),
        "device": details.get("device"),
        "versions": details.get("versions"),
    }
    return {label: str(text) for label, text in rows.items() if text}


def report_skipped(folder: Folder) -> None:
    """Lists on stderr the files that could not be read, with a count."""
    for path, reason in folder.skipped[:LISTED]:
        print(f"skipped {printable(path)}: {reason}", file=sys.stderr)
    if len(folder.skipped) > LISTED:
        print(f"... and {len(folder.skipped) - LISTED} more", file=sys.stderr)
    if folder.skipped:
        counts = f"{len(folder.skipped)} skipped, {len(folder.paths)} images read"
        print(counts, file=sys.stderr)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = _parser(argparse.ArgumentParser, prog="detect.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="fit | score | evaluate")

    command = _parser(
        commands.add_parser,
        "fit",
        help="learn what a folder of normal images has in common",
        description="Learn what the images of a folder have in common, and write a model.\n\n"
        "The folder should hold normal images only, several hundred or more, of any size and\n"
        "format, in sub-folders or not. Of each, the central square is used. A fit that was\n"
        "stopped goes on, from up to three minutes before, when the same command is given.",
        epilog="example:\n  python detect.py fit photos/good --output model.keras",
    )
    command.add_argument("images", type=Path, metavar="GOOD_IMAGES", help="a folder")
    add = command.add_argument
    add("--output", type=Path, required=True, help="the model to write, ending in .keras")
    add("--size", type=int, choices=(32, 64), default=32, help="pixels a side (default: 32)")
    add(
        "--recipe",
        choices=RECIPES,
        default="fast",
        help="fast: a narrow network, some minutes on two cores however many the images (default); "
        "paper: the published settings, for which an hour is little",
    )
    add(
        "--epochs",
        type=number_above_zero,
        help="over all transformed images (default: the recipe's)",
    )
    add(
        "--score",
        choices=SCORES,
        help="dirichlet: the paper's; simplified: the mean probability of what was done; "
        "rotation: of the rotation alone, better after little training (default: the recipe's)",
    )
    add_rate(
        add, "the share of normal images that may be flagged (default: 0.05)", default=DEFAULT_RATE
    )
    add(
        "--held-out",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="the share of the images that choose the threshold and are not trained on "
        "(default: 0.2)",
    )
    add("--seed", type=seed_number, default=0, help="default: 0")
    command.set_defaults(command=fit)

    command = _parser(
        commands.add_parser,
        "score",
        help="score a folder of images and flag the anomalies",
        description="Score the images of a folder and flag those under the model's threshold.\n\n"
        "The CSV file has a row an image, the most anomalous first: its path; its score, higher =\n"
        "more normal; its p-value, the share of held-out normal images that scored lower; and\n"
        "whether it is flagged. The report is one HTML file that shows the images and what the\n"
        "network confused; it needs no network to open.",
        epilog="example:\n  python detect.py score photos/new --model model.keras --output "
        "scores.csv --report report.html",
    )
    command.add_argument("images", type=Path, metavar="IMAGES", help="a folder")
    add = command.add_argument
    add("--output", type=Path, help="the table to write, ending in .csv")
    add("--report", type=Path, help="the report to write, ending in .html")
    add_rate(add, "another share of normal images that may be flagged than fit was given")
    add("--exit-code", action="store_true", help="exit with status 1 where an image is flagged")
    command.set_defaults(command=score)

    command = _parser(
        commands.add_parser,
        "evaluate",
        help="measure a model where the answer is known",
        description="Measure a model on normal images and on anomalies that it has not seen.\n\n"
        "AUROC: the chance that a random normal image scores higher than a random anomaly. AUPR:\n"
        "the area under the precision-recall curve. Then, of both kinds, the share flagged.",
        epilog="example:\n  python detect.py evaluate --normal photos/good-test --anomalous "
        "photos/odd --model model.keras",
    )
    add = command.add_argument
    add("--normal", type=Path, required=True, metavar="DIR", help="images not used by fit")
    add("--anomalous", type=Path, required=True, metavar="DIR")
    add_rate(add, "another share of normal images that may be flagged than fit was given")
    command.set_defaults(command=evaluate)

    for name, command in commands.choices.items():
        command.add_argument("--quiet", action="store_true", help="no progress bars")
        command.add_argument(
            "--max-pixels",
            type=whole_number,
            default=MAX_PIXELS,
            metavar="N",
            help="larger images are taken for files made to exhaust memory and are skipped "
            f"(default: {MAX_PIXELS})",
        )
        if name != "fit":
            command.add_argument("--model", type=Path, required=True, help="what fit wrote")
    return parser.parse_args(arguments)


def add_rate(add, text, **more):
    add("--false-alarm-rate", type=share, metavar="RATE", help=text, **more)


def _parser(create, *arguments, **more):
    return create(*arguments, **more, formatter_class=argparse.RawDescriptionHelpFormatter)


if __name__ == "__main__":
    sys.exit(main())
