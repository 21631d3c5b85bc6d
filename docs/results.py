"""Write what README, RESULTS and docs/recipes say of measurements, and pictures, from run files.

python -m docs.results

What stands between `<!-- NAME ARGUMENT ... -->` and `<!-- / -->` in these files is what the
function of that name in TEXTS gives. The tables and ROC plots in results/ are made anew too, and
docs/table1.png, docs/trade_off.png and docs/costs.png.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import intuition_experiments
import multiclass_experiment
from utils import results
from utils.datasets import DATASETS
from utils.tables import markdown, number, with_sem

PUBLISHED = pd.read_csv(results.PUBLISHED)
OURS = ["transformations *fast*", "transformations *best*"]


def main() -> None:
    """The command at the head of this file."""
    for table in sorted(Path("results").rglob("table.md")):
        if table.parent.name in DATASETS:
            results.report(table.parent.parent, table.parent.name)
    multiclass_experiment.report(Path("results/multiclass"))
    for path in map(Path, ("README.md", "RESULTS.md", "docs/recipes.md")):
        path.write_text(fill(path.read_text("utf-8")), "utf-8")
    draw_table1(Path("docs/table1.png"))
    draw_trade_off(Path("docs/trade_off.png"))
    draw_costs(Path("docs/costs.png"))


def fill(text: str) -> str:
    """The text with what stands between its markers written anew."""

    def made(match):
        name, *arguments = match[2].split()
        text = TEXTS[name](*arguments)
        return match[1] + (f"\n\n{text}\n\n" if text.startswith("|") else text) + match[3]

    return re.sub(r"(<!-- (\w[^>]*?) -->).*?(<!-- / -->)", made, text, flags=re.DOTALL)


def read(folders: str, datasets: str, method: str = "transformations") -> pd.DataFrame:
    """The rows of `read_runs` of a method; several folders (or patterns) and sets by commas."""
    folders = [path for each in folders.split(",") for path in sorted(Path().glob(each))]
    runs = pd.concat([results.read_runs(folders, name) for name in datasets.split(",")])
    return runs.query("method == @method")


def scores(folders, datasets, method="transformations", index="class_name", seconds="") -> str:
    """AUROC in percent by each score, and seconds of each part, means over runs, by index.

    Where index is the class alone, the last row is the mean over the classes.
    """
    runs, index = read(folders, datasets, method), index.split(",")
    runs = runs.sort_values("class_index", kind="stable")
    table = 100 * runs.pivot_table("auroc", index, "score", sort=False)
    table = table.sort_index() if len(index) > 1 else table
    if index == ["class_name"] and len(table) > 1:
        table.loc["**mean**"] = table.mean(skipna=False)
    table = table.map(number)
    for part in filter(None, seconds.split(",")):
        means = runs.query("first").groupby(index)[f"{part}_seconds"].mean()
        table[f"{part} s"] = means.map("{:,.0f}".format)
    return markdown(table.fillna("").reset_index())


def over_classes(which: str, folder: str, dataset: str) -> str:
    """The classes' mean, min or max in percent, by the method's own score."""
    runs = read(folder, dataset).query("first")
    return number(100 * runs.groupby("class_index")["auroc"].mean().agg(which))


def included(path: str) -> str:
    """The table in a file, without the title above it."""
    table = Path(path).read_text("utf-8").partition("\n\n")[2].strip()
    assert table, f"{path} has no table under a title"
    return table


def pairs() -> str:
    """Section 6."""
    table = intuition_experiments.summarise(Path("results/intuition/pairs.csv"))
    return intuition_experiments.to_text(table)


def table1() -> list[pd.DataFrame]:
    """Measured, its SEM over runs, and published AUROC in percent; NaN where there is none.

    A row for each data set and class. A column for each method, then those of other recipes than
    the paper's, which have no published values.
    """
    folders = ("results", "results/fast", "results/best")
    runs = [results.read_runs(folders, name) for name in PUBLISHED["dataset"].unique()]
    runs = pd.concat(runs).query("first")
    recipe = runs["recipe"].str.removeprefix("paper, ")
    other = runs["method"] + " *" + recipe + "*"
    runs["method"] = runs["method"].where(recipe == "paper", other)
    key = ["dataset", "class_name"]
    frames = [100 * runs.pivot_table("auroc", key, "method", each) for each in ("mean", "sem")]
    frames.append(PUBLISHED.pivot(index=key, columns="method", values="auroc"))
    rows = pd.MultiIndex.from_frame(PUBLISHED[key].drop_duplicates())
    columns = dict.fromkeys([*PUBLISHED["method"], *OURS, *other[recipe != "paper"]])
    return [frame.reindex(index=rows, columns=list(columns)) for frame in frames]


def table1_text() -> str:
    """Table 1: each cell measured and, small beside it, published; means over the same classes."""

    def cell(measured, sem, published):
        small = "" if pd.isna(published) else f" <sub>{published:.1f}</sub>"
        return f"{with_sem(measured, sem)}{small}".strip()

    frames, parts = table1(), []
    for name in PUBLISHED["dataset"].unique():
        measured, sem, published = (frame.loc[name].copy() for frame in frames)
        done, n = measured.notna(), len(measured)
        measured.loc["**mean**"] = measured.mean()
        published.loc["**mean**"] = published.where(done | ~done.any()).mean()
        sem = sem.reindex(measured.index)
        text = {each: map(cell, measured[each], sem[each], published[each]) for each in measured}
        text = pd.DataFrame(text, measured.index)
        few = [f" ({k} of {n})" if 0 < k < n else "" for k in done.sum()]
        text.loc["**mean**"] += few
        parts.append(text.reset_index(names="class"))
        parts[-1].insert(0, "data set", [name, *[""] * n])
    return markdown(pd.concat(parts))


def draw_table1(path: Path) -> None:
    """Measured minus published, a heat map; grey where nothing was measured at the full budget."""
    measured, _, published = table1()
    columns = measured.columns[: measured.columns.get_loc(OURS[-1]) + 1]
    for each in OURS:
        published[each] = published["transformations"]
    difference, names = [], []
    for name, rows in (measured - published)[columns].groupby("dataset", sort=False):
        difference += [*rows.to_numpy(), rows.mean().to_numpy()]
        names += [*rows.index.get_level_values("class_name"), f"mean of {name}"]
    figure = Figure(figsize=(10, 12), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    image = axes.imshow(difference, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
    for (row, column), value in np.ndenumerate(difference):
        color = "white" if abs(value) > 1.8 else "black"
        text = number(round(value, 1) + 0.0, "+.1f")
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), [name.split(" *")[-1].strip("*") for name in columns])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8)
    axes.vlines(np.arange(len(columns)) + 0.5, -0.5, len(names) - 0.5, color="white")
    for row, label in enumerate(axes.get_yticklabels()):
        if names[row].startswith("mean"):
            label.set_fontweight("bold")
            axes.axhline(row + 0.5, color="black", linewidth=1.5)
    figure.colorbar(image, extend="both", shrink=0.4, label="points of AUROC")
    figure.suptitle("Table 1, measured minus published; grey: not measured")
    figure.savefig(path, dpi=110)


def draw_trade_off(path: Path) -> None:
    """AUROC of the fast recipe's scores against the samples that training saw, a panel a class."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    runs = read("results/trade_off/*,results/fast", "cifar10")
    published = table1()[2]["transformations"]["cifar10"]
    for panel, name in zip(figure.subplots(1, 2), ("automobile", "bird"), strict=True):
        of_class = runs[runs["class_name"] == name]
        table = 100 * of_class.pivot_table("auroc", "training_samples", "score", sort=False)
        table.plot(ax=panel, marker="o", logx=True, title=name, ylabel="AUROC in %")
        panel.axhline(published[name], color="0.5", linestyle=":")
        panel.set_xticks(table.index, map("{:,}".format, table.index), fontsize=7)
        panel.minorticks_off()
        panel.set_xlabel("transformed images seen in training")
        panel.legend(frameon=False)
    figure.suptitle("--recipe fast; dotted: published, WRN-10-4 and 1,080,000 images")
    figure.savefig(path, dpi=110)


def draw_costs(path: Path) -> None:
    """Mean AUROC on CIFAR-10 against the arithmetic of training, measured and published."""
    costs = pd.read_csv("results/costs.csv")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, cost, published, folder in costs.itertuples(index=False):
        at = published
        if isinstance(folder, str):
            at = float(over_classes("mean", folder, "cifar10"))
            axes.plot(cost, at, "o", color="C0")
        axes.plot(cost, published, "o", color="0.4", fillstyle="none")
        right = cost > 30
        how = {"textcoords": "offset points", "va": "center", "ha": "right" if right else "left"}
        axes.annotate(f"{name}: {at:.1f}", (cost, at), (-8 if right else 8, 0), fontsize=8, **how)
    axes.set_xscale("log")
    axes.set_xlim(0.05, 500)
    axes.set_xlabel("PFLOP of training, a class")
    axes.set_ylabel("mean AUROC on CIFAR-10, %")
    figure.suptitle("Filled: measured here; hollow: published, with arithmetic from its code")
    figure.savefig(path, dpi=110)


TEXTS = {"table1": table1_text, "scores": scores, "over-classes": over_classes}
TEXTS |= {"included": included, "pairs": pairs}

if __name__ == "__main__":
    main()
