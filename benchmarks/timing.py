"""What the benchmarks share: sides timed in turn, so that the machine's moods meet all of them."""

import time
from collections.abc import Callable

import numpy as np


def seconds_of(function: Callable, calls: int = 1, clock: Callable = time.perf_counter) -> float:
    """Seconds a call of `function`, over so many calls; its results must have been computed."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def medians(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of what each side measures, over rounds in which all sides take their turn.

    A side gives the seconds it took. The first round, which compiles, is left out.
    """
    rounds = [{name: side() for name, side in sides.items()} for _ in range(repeats + 1)]
    return {name: float(np.median([each[name] for each in rounds[1:]])) for name in sides}
