"""Progress: a bar on a terminal, and lines in a log."""

import sys
import time

from tqdm.auto import tqdm

LINE_SECONDS = 60.0
"""In a log, at least so long from one line to the next."""


class Lines(tqdm):
    """tqdm's text as lines of their own, without the codes that move a terminal's cursor."""

    monitor_interval = 0  # the thread that redraws bars would write more lines

    def display(self, msg=None, pos=None):
        self.fp.write(f"{self}\n")
        self.fp.flush()

    def is_due(self) -> bool:
        """Whether the next update may write a line."""
        return not self.disable and time.time() - self.last_print_t >= self.mininterval

    def close(self):
        self.disable = True  # the end needs no line


def progress(iterable=None, description: str = "", *, unit: str, verbose: int = 1, **more):
    """A tqdm bar on standard error; where that is no terminal, a line a minute.

    verbose: 0 shows nothing. more: tqdm's arguments.
    """
    settings = {"desc": description, "unit": unit, "disable": not verbose, **more}
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(iterable, mininterval=1, **settings)
    form = "{desc}: {n_fmt}/{total_fmt}, {elapsed} done, {remaining} left, {rate_fmt}{postfix}"
    return Lines(
        iterable, mininterval=LINE_SECONDS, delay=LINE_SECONDS, bar_format=form, **settings
    )
