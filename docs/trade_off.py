"""Draw docs/trade_off.png: AUROC of the fast recipe against the samples that training sees.

    python experiments.py --dataset cifar10 --recipe fast --runs 1 --classes automobile,bird \
        --epochs E --results-dir results/trade_off/E
    python -m docs.trade_off

From the runs in results/trade_off, for several E, and those of the whole recipe in results/fast.
Prints the numbers as a table too.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from utils.results import PUBLISHED, Run, read_details

CLASSES = (1, 2)
SCORES = ("rotation", "dirichlet", "simplified")


def main() -> None:
    """The commands at the head of this file."""
    runs = pd.DataFrame(measured()).sort_values("samples")
    published = pd.read_csv(PUBLISHED).query("dataset == 'cifar10' and method == 'transformations'")
    published = published.set_index("class_index")["auroc"]
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for panel, class_index in zip(figure.subplots(1, len(CLASSES)), CLASSES, strict=True):
        of_class = runs[runs["class_index"] == class_index]
        print(of_class.drop(columns="class_index").round(1).to_string(index=False), "\n")
        for score in SCORES:
            panel.plot(of_class["samples"], of_class[score], marker="o", label=score)
        panel.axhline(published[class_index], color="0.5", linestyle=":")
        panel.set_xscale("log")
        panel.set_xticks(of_class["samples"], [f"{n:,}" for n in of_class["samples"]], fontsize=7)
        panel.minorticks_off()
        panel.set_title(of_class["class"].iloc[0])
        panel.set_xlabel("transformed images seen in training")
        panel.set_ylabel("AUROC in %")
        panel.legend(frameon=False)
    figure.suptitle("--recipe fast; dotted: published, WRN-10-4 and 1,080,000 images")
    figure.savefig(Path(__file__).with_name("trade_off.png"), dpi=110)


def measured() -> list[dict]:
    """A row a run: its class, samples, AUROC in % by score, seconds."""
    folders = [*Path("results/trade_off").iterdir(), Path("results/fast")]
    rows = []
    for folder in folders:
        for class_index in CLASSES:
            run = read_details(Run(folder, "cifar10", "transformations", class_index, 0).path)
            rows.append(
                {
                    "class_index": class_index,
                    "class": run["class_name"],
                    "samples": run["found"]["training_samples"],
                }
                | {score: 100 * run["metrics"][score]["auroc"] for score in SCORES}
                | {f"{part} s": seconds for part, seconds in run["seconds"].items()}
            )
    return rows


if __name__ == "__main__":
    main()
