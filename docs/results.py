"""Write what README.md and RESULTS.md say of measurements, and their pictures, from the run files.

python -m docs.results

What stands between `<!-- NAME ARGUMENT ... -->` and `<!-- / -->` in these two files is what the
function of that name in TEXTS gives. The tables and ROC plots in results/ are made anew too, and
docs/table1.png and docs/trade_off.png.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import intuition_experiments
import multiclass_experiment
from utils import results
from utils.datasets import DATASETS, LAYOUTS
from utils.tables import markdown, number, with_sem

SETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "cats_vs_dogs": "CatsVsDogs",
}
METHODS = {
    "raw_ocsvm": "RAW-OC-SVM",
    "cae_ocsvm": "CAE-OC-SVM",
    "deep_svdd": "E2E-OC-SVM",
    "dagmm": "DAGMM",
    "dsebm": "DSEBM",
    "adgan": "ADGAN",
    "transformations": "OURS",
}
"""Table 1's rows and columns, by its names."""
FAST = "OURS *fast*"


def main() -> None:
    """The command at the head of this file."""
    for table in sorted(Path("results").rglob("table.md")):
        if table.parent.name in DATASETS:
            results.report(table.parent.parent, table.parent.name)
    for path in (Path("README.md"), Path("RESULTS.md")):
        path.write_text(fill(path.read_text("utf-8")), "utf-8")
    draw_table1(Path("docs/table1.png"))
    draw_trade_off(Path("docs/trade_off.png"))


def fill(text: str) -> str:
    """The text with what stands between its markers written anew."""

    def made(match):
        name, *arguments = match[2].split()
        return f"{match[1]}{TEXTS[name](*arguments)}<!-- / -->"

    return re.sub(r"(<!-- (\w[^>]*?) -->).*?<!-- / -->", made, text, flags=re.DOTALL)


def read(folders: str, datasets: str, method: str = "transformations") -> pd.DataFrame:
    """The rows of `read_runs` of a method; several folders (or patterns) and sets by commas."""
    folders = [path for each in folders.split(",") for path in sorted(Path().glob(each))]
    runs = pd.concat([results.read_runs(folders, name) for name in datasets.split(",")])
    return runs.query("method == @method")


def block(table: pd.DataFrame) -> str:
    """A table as Markdown, to stand between two markers."""
    return f"\n\n{markdown(table.fillna(''))}\n\n"


def scores(folders, datasets, method="transformations", index="class_name", seconds="") -> str:
    """AUROC in percent by each score, and seconds of each part, means over runs, by index.

    Where index is the class alone, the last row is the mean over the classes.
    """
    runs, index = read(folders, datasets, method), index.split(",")
    table = 100 * runs.pivot_table("auroc", index, "score", sort=False)
    table = table.sort_index() if len(index) > 1 else table
    if index == ["class_name"] and len(table) > 1:
        table.loc["**mean**"] = table.mean(skipna=False)
    table = table.map(number)
    for part in filter(None, seconds.split(",")):
        table[f"{part} s"] = runs.groupby(index)[f"{part}_seconds"].mean().map("{:,.0f}".format)
    return block(table.reset_index().rename(columns={"class_name": "class"}))


def over_classes(which: str, folder: str, dataset: str) -> str:
    """The classes' mean, min or max in percent, by the method's own score."""
    runs = read(folder, dataset).query("first")
    return number(100 * runs.groupby("class_index")["auroc"].mean().agg(which))


def published_mean(dataset: str, method: str = "transformations") -> str:
    """The mean over a data set's classes in Table 1."""
    published = pd.read_csv(results.PUBLISHED).query("dataset == @dataset and method == @method")
    return number(published["auroc"].mean())


def multiclass() -> str:
    """Section 5.5: the areas of each score, in percent, beside the published ones."""
    return block(multiclass_experiment.tabulate(Path("results/multiclass")))


def pairs() -> str:
    """Section 6."""
    table = intuition_experiments.summarise(Path("results/intuition/pairs.csv"))
    return f"\n\n{intuition_experiments.to_text(table)}\n\n"


# ---------------------------------------------------------------------------------------- table 1


def table1() -> pd.DataFrame:
    """Table 1's cells: measured, sem (over runs), published, in percent, NaN where there is none.

    Indexed by data set, class and column: a method, or a recipe of it that is not the paper's,
    which has no published value. After a data set's classes comes "mean": over those that are
    measured, or over all where none is; `classes` says how many.
    """
    key = ["dataset", "class_name", "column"]
    folders = "results,results/fast,results/reduced"
    runs = pd.concat(read(folders, ",".join(SETS), method) for method in METHODS).query("first")
    method, reduced = runs["method"].map(METHODS), runs["recipe"] != "paper"
    recipe = " *" + runs["recipe"].str.removeprefix("paper, ") + "*"
    runs["column"] = method.where(~reduced, method + recipe)
    cells = 100 * runs.groupby(key)["auroc"].agg(measured="mean", sem="sem")
    published = pd.read_csv(results.PUBLISHED).rename(columns={"auroc": "published"})
    published["column"] = published["method"].map(METHODS)
    cells = cells.join(published.set_index(key)["published"], how="outer")
    columns = [*METHODS.values(), FAST]
    columns += [each for each in runs.loc[reduced, "column"].unique() if each != FAST]
    parts = []
    for name in SETS:
        index = pd.MultiIndex.from_product([[name], LAYOUTS[name].class_names, columns], names=key)
        classes = cells.reindex(index).assign(classes=1)
        parts += [
            classes,
            pd.concat(
                {(name, "mean"): classes.groupby("column", sort=False).apply(_mean)}, names=key
            ),
        ]
    return pd.concat(parts)


def _mean(cells):
    done = cells[cells["measured"].notna()] if cells["measured"].notna().any() else cells
    mean = done[["measured", "published"]].mean(skipna=False)
    return mean.reindex(cells.columns).fillna({"classes": len(done)})


def table1_text() -> str:
    """Table 1: each cell measured and, small beside it, published."""

    def text(cell):
        dataset, class_name, _ = cell.name
        measured = with_sem(cell["measured"], cell["sem"])
        n = len(LAYOUTS[dataset].class_names)
        if class_name == "mean" and measured and cell["classes"] < n:
            measured += f" ({cell['classes']:.0f} of {n})"
        published = number(cell["published"])
        return f"{measured} <sub>{published}</sub>".strip() if published else measured

    table = table1().apply(text, axis=1).unstack(sort=False).reset_index()
    table["dataset"] = table["dataset"].map(SETS).where(~table["dataset"].duplicated(), "")
    table["class_name"] = table["class_name"].replace("mean", "**mean**")
    return block(table.rename(columns={"dataset": "data set", "class_name": "class"}))


def draw_table1(path: Path) -> None:
    """Measured minus published, a heat map; grey where nothing was measured at the full budget."""
    columns = [*METHODS.values(), FAST]
    cells = table1().drop("mean", level="class_name")
    measured, published = (cells[name].unstack(sort=False) for name in ("measured", "published"))
    published[FAST] = published["OURS"]
    difference, names = [], []
    for name, rows in (measured - published)[columns].groupby("dataset", sort=False):
        difference += [*rows.to_numpy(), rows.mean().to_numpy()]
        names += [*LAYOUTS[name].class_names, f"mean of {SETS[name]}"]
    figure = Figure(figsize=(9, 12), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    image = axes.imshow(difference, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
    for (row, column), value in np.ndenumerate(difference):
        text = number(round(value, 1) + 0.0, "+.1f")
        style = {"ha": "center", "va": "center", "fontsize": 8}
        axes.text(column, row, text, color="white" if abs(value) > 1.5 else "black", **style)
    axes.set_xticks(range(len(columns)), [column.replace("*", "") for column in columns])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8)
    for column in range(len(columns)):
        axes.axvline(column + 0.5, color="white", linewidth=2)
    for row, label in enumerate(axes.get_yticklabels()):
        if names[row].startswith("mean"):
            label.set_fontweight("bold")
            axes.axhline(row + 0.5, color="black", linewidth=1.5)
    figure.colorbar(image, extend="both", shrink=0.4, label="points of AUROC")
    figure.suptitle("Table 1, measured minus published; grey: not measured")
    figure.savefig(path, dpi=110)


# -------------------------------------------------------------------------------------- trade-off


def trade_off() -> pd.DataFrame:
    """AUROC in percent of the fast recipe's scores, by class and the samples that training saw."""
    runs = read("results/trade_off/*,results/fast", "cifar10").query("class_index in (1, 2)")
    index = ["class_name", "training_samples"]
    return 100 * runs.pivot_table("auroc", index, "score", sort=False).sort_index()


def trade_off_text() -> str:
    """`trade_off` as a table."""
    table = trade_off().map(number).reset_index()
    return block(table.rename(columns={"class_name": "class", "training_samples": "samples"}))


def draw_trade_off(path: Path) -> None:
    """AUROC of the fast recipe's scores against the samples that training saw, a panel a class."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    published = table1()["published"]
    classes = trade_off().groupby(level=0)
    for panel, (class_name, table) in zip(figure.subplots(1, 2), classes, strict=True):
        table = table.droplevel(0)
        panel.plot(table, marker="o", label=list(table))
        panel.axhline(published["cifar10", class_name, "OURS"], color="0.5", linestyle=":")
        panel.set_xscale("log")
        panel.set_xticks(table.index, map("{:,}".format, table.index), fontsize=7)
        panel.minorticks_off()
        panel.set(title=class_name, xlabel="transformed images seen in training")
        panel.set_ylabel("AUROC in %")
        panel.legend(frameon=False)
    figure.suptitle("--recipe fast; dotted: published, WRN-10-4 and 1,080,000 images")
    figure.savefig(path, dpi=110)


TEXTS = {
    "table1": table1_text,
    "scores": scores,
    "over-classes": over_classes,
    "published-mean": published_mean,
}
TEXTS |= {"trade-off": trade_off_text, "multiclass": multiclass, "pairs": pairs}

if __name__ == "__main__":
    main()
