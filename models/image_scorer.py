"""A saved detector that scores image files, read as those were that it was trained on."""

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.transformation_detector import TransformationDetector
from utils.detector import to_unit_range
from utils.dirichlet import rotation_responses
from utils.files import replacing
from utils.folders import LISTED, Folder, read_folder
from utils.images import (
    FULL_WHITE,
    MAX_TILES,
    REGIONS,
    ImageError,
    boxes,
    is_grey,
    numbered,
    printable,
    read_image,
    spreadsheet_safe,
    to_grey,
)
from utils.report import Report, overlaid
from utils.threshold import anomaly_scores, false_alarm_interval, p_values, threshold_statement


class ImageScorer:
    """A detector from a file, and how it reads images: `how`, for `utils.images.read_squares`.

    false_alarm_rate: None keeps the one that it was calibrated for. Raises ValueError where it
    cannot score files of images or has no threshold, and what `TransformationDetector.load` raises.
    """

    def __init__(self, path: Path, false_alarm_rate: float | None, max_pixels: int, verbose: bool):
        self.path = path
        self.detector = detector = TransformationDetector.load(path)
        detector.verbose = verbose
        height, width, channels = detector.image_shape_
        if height != width or channels not in (1, 3):
            raise ValueError(
                f"{printable(path)} was trained on images of shape {detector.image_shape_}; "
                "this command scores square ones with 1 or 3 channels: use the model from Python"
            )
        white = detector.details_.get("white") or FULL_WHITE  # trained on 8 bits, or an old model
        region = detector.details_.get("region", "centre")
        if not (isinstance(white, int) and white > 0):
            raise ValueError(f"{printable(path)} says that white is {white!r}")
        if region not in REGIONS:
            raise ValueError(f"{printable(path)} says that the region is {region!r}")
        self.most_tiles = detector.details_.get("tiles", MAX_TILES)
        if not isinstance(self.most_tiles, int):
            raise ValueError(f"{printable(path)} says that an image has {self.most_tiles!r} tiles")
        self.how = {"white": white, "region": region, "max_pixels": max_pixels}
        rate = false_alarm_rate or getattr(detector, "false_alarm_rate_", 0.05)
        n = len(detector.set_false_alarm_rate(rate).calibration_scores_)
        self.expected = false_alarm_interval(n, rate)[0]  # the share flagged
        self.statement = threshold_statement(n, rate)
        self.has_maps = "mean_image" in detector.details_  # not in models of older versions

    def read(self, sources: Sequence, *, strict: bool = True) -> Folder:
        """The images of folders and files, see `utils.folders.read_folder`."""
        side, verbose = self.detector.image_shape_[0], self.detector.verbose
        folder = read_folder(sources, side, strict=strict, verbose=verbose, **self.how)
        if more := (folder.tiles() > self.most_tiles).sum():
            folder.remarks.append(
                f"warning: {folder.name}: {more} images have more tiles than any that fit saw, and "
                "are flagged more often than is said, if normal"
            )
        if self.detector.image_shape_[-1] == 1 and not is_grey(folder.images):
            folder.remarks.append(
                f"{folder.name}: colours are not looked at, as the images of fit were grey"
            )
        return folder

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Bytes (n, h, w, 3) as the images that the detector was trained on."""
        x = to_grey(images) if self.detector.image_shape_[-1] == 1 else images
        return x if self.detector.image_dtype_ == "uint8" else to_unit_range(x)

    def score(self, folder: Folder) -> "Scored":
        """The images of a folder with their scores, each the lowest of its squares'."""
        scores = self.detector.score_samples(self.prepare(folder.images))
        shown = folder.lowest(scores)
        how = self.detector.calibration_scores_, self.detector.offset_
        return Scored(self, folder, shown, verdicts(folder.paths, scores[shown], *how))


@dataclass(frozen=True)
class Scored:
    """A folder's n images as an `ImageScorer` sees them.

    shown: (n,) the number of the square that each is scored and shown by. table: see `verdicts`.
    """

    scorer: ImageScorer
    folder: Folder
    shown: np.ndarray
    table: pd.DataFrame

    def values(self) -> dict:
        """All that is known, as plain values fit for JSON."""
        detector = self.scorer.detector
        skipped = [{"path": os.fspath(p), "reason": reason} for p, reason in self.folder.skipped]
        return {
            "images": self.table.assign(path=self.table["path"].map(os.fspath)).to_dict("records"),
            "skipped": skipped,
            "remarks": self.folder.remarks,
            "false_alarm_rate": detector.false_alarm_rate_,
            "held_out": len(detector.calibration_scores_),
            "threshold": detector.offset_,
        }

    def write_csv(self, path: str | os.PathLike) -> None:
        """Write the table, its paths safe to open in a spreadsheet."""
        table = self.table.assign(path=self.table["path"].map(spreadsheet_safe))
        with replacing(path) as partial:
            table.to_csv(partial, index=False, quoting=csv.QUOTE_NONNUMERIC, encoding="utf-8")

    def as_text(self) -> str:
        """The LISTED most anomalous for people, with the path at the end of its line."""
        lines = [f"{'p-value':>9} {'anomaly score':>14}  {'':8} {'raw score':>12}"]
        for row in self.table[:LISTED].itertuples():
            mark = "anomaly" if row.is_anomaly else "normal"
            numbers = f"{row.p_value:9.3g} {row.anomaly_score:14.2f}  {mark:8} {row.score:12.6g}"
            lines.append(f"{numbers}  {printable(row.path)}")
        return "\n".join(lines)

    def maps(self, n: int) -> dict[int, np.ndarray]:
        """The anomaly maps (side, side) of the n most anomalous images, by their number."""
        odd = list(self.table.index[:n])
        squares = self.folder.images[self.shown[odd]]
        maps = self.scorer.detector.anomaly_map(self.scorer.prepare(squares))
        return dict(zip(odd, maps, strict=True))

    def write_maps(self, target: Path, maps: dict[int, np.ndarray]) -> None:
        """Write images with their maps over them, at their own size, to a folder.

        Their names start with their rank. One that cannot be read again is among the remarks.
        """
        how = self.scorer.how
        for rank, (i, each) in enumerate(maps.items(), 1):
            path = self.folder.paths[i]
            try:
                image = read_image(path, None, **how)
                tiles = boxes(image.shape[1], image.shape[0], how["region"])
                box = numbered(tiles, self.shown[i] - self.folder.first[i])
            except ImageError as error:
                self.folder.remarks.append(f"no map of {printable(path)}: {error}")
                continue
            picture = overlaid(image, each, box)
            stem = os.fsencode(path.stem)[:150]  # names have 255 bytes
            stem = stem.decode(sys.getfilesystemencoding(), errors="ignore")
            with replacing(target / f"{rank:04}_{stem}.png") as partial:
                picture.save(partial, "PNG")

    def report(self, maps: dict[int, np.ndarray]) -> Report:
        """The report on them, with some maps."""
        detector, folder = self.scorer.detector, self.folder
        images, held_out = folder.images[self.shown], detector.calibration_scores_
        square = dict(zip(folder.paths, self.shown - folder.first, strict=True))
        return Report(
            folder=folder.name,
            table=self.table,
            images=images,
            skipped=folder.skipped,
            held_out=anomaly_scores(held_out, held_out),
            threshold=float(anomaly_scores(held_out, detector.offset_)),
            threshold_statement=self.scorer.statement,
            read=lambda path, side: read_image(
                path, side, enlarge=False, square=square.get(path, 0), **self.scorer.how
            ),
            transformations=detector.transformer_.transformations,
            responses=lambda chosen: detector.responses(self.scorer.prepare(images[chosen])),
            maps=maps,
            model=describe(detector, self.scorer.path),
            verbose=detector.verbose,
        )


def verdicts(
    paths: Sequence[Path], scores: np.ndarray, held_out: np.ndarray, threshold: float
) -> pd.DataFrame:
    """A row an image, the most anomalous first; its index is the image's number in `paths`.

    Columns: path, p_value, anomaly_score (see `utils.threshold`), is_anomaly, score.
    """
    table = pd.DataFrame(
        {
            "path": paths,
            "p_value": p_values(held_out, scores),
            "anomaly_score": anomaly_scores(held_out, scores),
            "is_anomaly": scores < threshold,
            "score": scores,
        }
    )
    return table.sort_values("score", kind="stable")


def told_apart(detector: TransformationDetector, x: np.ndarray) -> tuple[float, float]:
    """How often the rotation of images x is recognised, and how often by chance."""
    turns = [each.k for each in detector.transformer_.transformations]
    kinds, turns = np.unique(turns, return_inverse=True)
    parts = (log_p for _, log_p in detector.log_responses(x))
    found = np.concatenate([rotation_responses(each, turns).argmax(-1) for each in parts])
    return float((found == turns[detector.scored_indices_]).mean()), 1 / len(kinds)


def text_histogram(values: np.ndarray) -> str:
    """Anomaly scores (n,) as a histogram of lines, a bar a standard deviation."""
    counts, _ = np.histogram(values, [-np.inf, *range(-1, 6), np.inf])
    labels = ["under -1", *(f"{a} to {a + 1}" for a in range(-1, 5)), "5 or more"]
    return "\n".join(
        f"{label:>11} {count:6} {'#' * round(40 * count / counts.max())}"
        for label, count in zip(labels, counts, strict=True)
    )


def describe(detector: TransformationDetector, path: str | os.PathLike) -> dict[str, str]:
    """How the model was made, as labels and texts for the report."""
    details = {k: v for k, v in detector.details_.items() if k != "mean_image"}
    height, width, channels = detector.image_shape_
    paper = TransformationDetector().get_settings()
    changed = [
        f"{k}={v}"
        for k, v in detector.get_settings().items()
        if v != paper[k] and k not in ("verbose", "precision")  # said with the network
    ]
    network = detector.network_
    rows = {
        "model file": printable(path),
        "pixels": f"{height}x{width}, {'grey' if channels == 1 else 'colour'}",
        "transformations": detector.transformer_.n_transforms,
        "images held out": len(detector.calibration_scores_),
        "network": f"{network.name}, {network.count_params():,} weights, {detector.precision_}",
        "score": detector.settings_.score_name,
        "settings that differ from the paper's": ", ".join(changed),
        "seconds": ", ".join(f"{part} {time:.0f}" for part, time in detector.seconds_.items()),
    }
    return {label: str(text) for label, text in (rows | details).items() if text}
