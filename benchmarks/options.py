"""Command-line options that several benchmarks share."""

import argparse

from models.recipes import RECIPES
from utils.commands import file_path
from utils.datasets import DATASETS


def plain_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose help has a description as it stands."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=form)


def data_parser(description: str) -> argparse.ArgumentParser:
    """The same with --dataset and --data-dir."""
    parser = plain_parser(description)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="cifar10", help="default: cifar10")
    add("--data-dir", type=file_path, default="data", help="where data sets lie (default: data)")
    return parser


def folder_parser(description: str) -> argparse.ArgumentParser:
    """The same with what `detect.py fit` is given: --class (`label`), --seed and --images."""
    parser = data_parser(description)
    add = parser.add_argument
    add("--class", type=int, default=1, help="the normal one, by number (default: 1)", dest="label")
    add("--seed", type=int, default=0, help="of the choice of images and the fits (default: 0)")
    add("--images", type=int, default=1500, help="given to fit (default: 1500)")
    return parser


def recipe_parser(description: str, classes: str) -> argparse.ArgumentParser:
    """That of `data_parser` with --classes, by default those given, and --recipe."""
    parser = data_parser(description)
    add = parser.add_argument
    add("--classes", default=classes, help="by number, separated by commas (default: %(default)s)")
    add("--recipe", choices=RECIPES, default="fast", help="default: fast")
    return parser
