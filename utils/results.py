"""Runs as files, and the tables and plots made from them beside the published numbers."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from utils.datasets import LAYOUTS
from utils.files import read_npz, replacing, write_npz
from utils.metrics import auroc, evaluate
from utils.tables import markdown, number, with_sem

PUBLISHED = Path(__file__).with_name("published.csv")
"""Table 1, classes by this project's numbers. The paper numbers Fashion-MNIST's classes in
alphabetical order, not by label: in that order all ten one-class SVMs are reproduced to 0.1."""

MADE_WITH = ("folder", "backend", "precision")
"""What keeps runs of the same recipe in rows of their own."""

NEEDED = ("backend", "precision", "recipe", "seconds", "seed", "settings")
ONE_CLASS = ("method", "class_index", "run", "reduced")
"""What the details of every run's file say, and those of a run of one class too."""


class ResultError(ValueError):
    """A results folder that does not fit what is asked of it; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """What identifies a run: its file's name, and where that file lies."""

    results_dir: Path
    dataset: str
    method: str
    class_index: int
    number: int

    @property
    def path(self) -> Path:
        """`<results_dir>/<dataset>/<dataset>_<method>_<class>_<run>.npz`, the class by number."""
        name = f"{self.dataset}_{self.method}_{self.class_index}_{self.number}.npz"
        return Path(self.results_dir, self.dataset, name)

    @property
    def checkpoint(self) -> Path:
        """Where the run keeps its training's state until it is finished."""
        return self.path.with_suffix(".checkpoint.keras")


def files_named(folder: Path, pattern: str) -> list[Path]:
    """The .npz files of a folder of exactly a name, sorted: a copy beside its original is none."""
    return sorted(path for path in folder.glob("*.npz") if re.fullmatch(pattern, path.stem))


def write_run(
    path: Path, normal: np.ndarray, scores: dict[str, np.ndarray], details: dict
) -> dict[str, float]:
    """Write a finished run, whole or not at all; returns the AUROC of every score.

    normal: (n,) bool, which images are normal. scores: (n,) by name, the method's own first;
    float32 in the file, or float64 where float32 would move the AUROC by more than 1e-6. details:
    how the run was made (settings, seed, versions, device, seconds), kept as JSON with "metrics",
    the areas of each score.
    """
    scores = {name: _compact(normal, values) for name, values in scores.items()}
    metrics = {name: evaluate(normal, values) for name, values in scores.items()}
    arrays = {f"scores_{name}": values for name, values in scores.items()}
    arrays |= {"normal": normal, "details": np.array(json.dumps(details | {"metrics": metrics}))}
    write_npz(path, arrays)
    return {name: each["auroc"] for name, each in metrics.items()}


def _compact(normal, scores):
    """Scores as float32, where that leaves their ranking as it is."""
    with np.errstate(over="ignore"):
        small = np.asarray(scores, np.float32)
    if np.isfinite(small).all() and abs(auroc(normal, small) - auroc(normal, scores)) <= 1e-6:
        return small
    return scores


def read_run(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray], dict]:
    """What `write_run` wrote: normal, the scores by name, and the details with "metrics".

    Files of earlier versions, which hold curves and no "metrics", are read alike. Raises
    ResultError where the file is no run's.
    """
    try:
        arrays = read_npz(path)
        normal, details = arrays["normal"], dict(json.loads(str(arrays["details"])))
        scores = {k.removeprefix("scores_"): v for k, v in arrays.items() if k.startswith("scores")}
        if "metrics" not in details:
            details["metrics"] = {name: evaluate(normal, each) for name, each in scores.items()}
        return normal, scores, details
    except (ValueError, KeyError, TypeError) as error:
        raise _no_result(path, error) from error


def read_details(path: Path, needed: Sequence[str] = NEEDED) -> dict:
    """How a run was made, and its metrics. Raises ResultError as `read_run`, and without needed."""
    details = read_run(path)[2]
    if lacking := [name for name in needed if name not in details]:
        raise _no_result(path, f"it does not say {', '.join(lacking)}")
    return details


def _no_result(path, reason):
    return ResultError(f"{path} is no result of an experiment ({reason}); delete it")


def check_made_so(path: Path, details: dict, wanted: dict) -> None:
    """ResultError where a file's details are not those wanted."""
    for key, value in wanted.items():
        if details[key] != value:
            raise ResultError(
                f"{path} was made with {key} {details[key]!r}, not {value!r}; choose another "
                "--results-dir"
            )


def read_runs(results_dirs: Iterable[str | Path], dataset: str) -> pd.DataFrame:
    """A row for each score of each run of a data set: its areas, and how the run was made.

    score and first say which score, and whether it is the method's own; seconds are one column for
    each part. Raises ResultError as `read_run`.
    """
    rows = []
    for folder in results_dirs:
        for path in files_named(Path(folder, dataset), rf"{dataset}_\w+_\d+_\d+"):
            details = read_details(path, NEEDED + ONE_CLASS)
            made = details.get("found", {}) | details
            made |= {"folder": Path(folder).as_posix(), "path": path}
            made |= {f"{part}_seconds": s for part, s in details["seconds"].items()}
            for position, (score, areas) in enumerate(details["metrics"].items()):
                rows.append(made | {"score": score, "first": position == 0, **areas})
    return pd.DataFrame(rows)


def summarise(runs: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The table: measured mean and SEM over the runs, published value, difference, in percent.

    A row for each class, method, score, recipe, folder, backend and precision, and after the
    classes their average, where every class of the data set was measured. Published numbers stand
    beside the method's own score alone, and never beside a reduced recipe.
    """
    names = LAYOUTS[dataset].class_names
    keys = ["method", "score", "recipe", *MADE_WITH, "reduced", "first"]
    percent = runs.assign(auroc=100 * runs["auroc"]).groupby([*keys, "class_index"])["auroc"]
    table = percent.agg(measured="mean", sem="sem", runs="count").reset_index()
    published = pd.read_csv(PUBLISHED).query("dataset == @dataset")
    published = published.rename(columns={"auroc": "published", "sem": "published_sem"})
    published = published[["class_index", "method", "published", "published_sem"]]
    table = table.merge(published, how="left", on=["class_index", "method"])
    table.loc[table["reduced"] | ~table["first"], ["published", "published_sem"]] = np.nan
    for key, group in table.groupby(keys):
        if len(group) == len(names):
            row = dict(zip(keys, key, strict=True)) | {"class_index": len(names)}
            row |= {"measured": group["measured"].mean(), "runs": group["runs"].min()}
            row |= {"published": group["published"].mean(skipna=False)}
            table = pd.concat([table, pd.DataFrame([row])])
    table["difference"] = table["measured"] - table["published"]
    table["class"] = [[*names, "average"][index] for index in table["class_index"]]
    table = table.sort_values([*keys[:-2], "class_index"], ignore_index=True)
    columns = ["class", "method", "score", "recipe", *MADE_WITH, "measured", "sem", "runs"]
    return table[[*columns, "published", "published_sem", "difference"]]


def to_markdown(table: pd.DataFrame) -> str:
    """The table of `summarise` for people: AUROC in percent, mean +- SEM (number of runs).

    Folder, backend and precision are columns where those of a method differ.
    """
    named = ["class", "method", "score", "recipe"]
    text = table[[*named, *_differing(table, named[1:])]].copy()
    measured = map(with_sem, table["measured"], table["sem"])
    text["measured (runs)"] = [f"{m} ({n})" for m, n in zip(measured, table["runs"], strict=True)]
    text["published"] = list(map(with_sem, table["published"], table["published_sem"]))
    text["difference"] = [number(each, "+.1f") for each in table["difference"]]
    return markdown(text)


def _differing(table, keys):
    """Those columns of MADE_WITH that differ between rows of the same keys."""
    return [name for name in MADE_WITH if table.groupby(keys)[name].nunique().max() > 1]


def report(results_dir: Path, dataset: str, beside: Sequence[Path] = ()) -> str:
    """Write the data set's table as CSV and Markdown and its ROC plot; returns the Markdown.

    beside: other folders of results, whose runs have rows of their own. Raises ResultError where
    there are no runs.
    """
    folders = {Path(each).resolve(): each for each in [*beside, results_dir]}  # each once
    runs = read_runs(reversed(folders.values()), dataset)
    folder = Path(results_dir, dataset)
    if runs.empty:
        raise ResultError(f"no runs of {dataset} in {folder}; none is finished yet")
    folder.mkdir(parents=True, exist_ok=True)
    table = summarise(runs, dataset)
    text = to_markdown(table)
    with replacing(folder / "table.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.3f")
    with replacing(folder / "table.md") as partial:
        title = f"# {dataset}: AUROC in %, mean ± SEM over the runs"
        partial.write_text(f"{title}\n\n{text}\n", encoding="utf-8")
    with replacing(folder / "roc.png") as partial:
        plot_roc(runs, dataset, partial)
    return text


def plot_roc(runs: pd.DataFrame, dataset: str, path: Path) -> None:
    """The ROC curve of every class, method and recipe, a panel a class, each of the first run."""
    from matplotlib.figure import Figure

    first = runs[runs["first"]].sort_values("run")
    first = first.drop_duplicates(["class_index", "method", "recipe", *MADE_WITH])
    differing = ["recipe"] if first["recipe"].nunique() > 1 else []
    differing += _differing(first, "method")
    classes = first.groupby("class_index")
    columns = min(5, len(classes))
    rows = -(-len(classes) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(classes) :]:
        panel.set_axis_off()
    for panel, (class_index, of_class) in zip(panels, classes, strict=False):
        for _, run in of_class.iterrows():
            normal, scores, _ = read_run(run["path"])
            false, true, _ = roc_curve(normal, scores[run["score"]])
            label = ", ".join([run["method"], *run[differing]]).replace("$", r"\$")
            panel.plot(false, true, linewidth=1.2, label=f"{label}: {100 * run['auroc']:.1f}")
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
        panel.set_title(LAYOUTS[dataset].class_names[class_index], fontsize=10)
        legend = panel.legend(fontsize=6, loc="lower right", framealpha=0.8, edgecolor="none")
        legend.set_in_layout(False)  # a long name is to leave room for the curves
        panel.set_aspect("equal")
    figure.supxlabel("anomalies taken for normal")
    figure.supylabel("normal images recognised")
    figure.suptitle(f"{dataset}: ROC curves of the first runs, AUROC in %")
    figure.savefig(path, dpi=130)
