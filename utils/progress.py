"""Progress: a bar on a terminal, and lines in a log."""

import sys

import keras
from tqdm.auto import tqdm

LINE_SECONDS = 60.0
"""In a log, at least so long from one line to the next."""


class _Lines(tqdm):
    """tqdm's text as lines of their own, without the codes that move a terminal's cursor."""

    def display(self, msg=None, pos=None):
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()

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
    return _Lines(
        iterable, mininterval=LINE_SECONDS, delay=LINE_SECONDS, bar_format=form, **settings
    )


class TrainingProgress(keras.callbacks.Callback):
    """`progress` over all steps of a training, with the mean of loss and metrics beside it.

    done: the steps that were made before. A log has a line an epoch too.
    """

    def __init__(self, description: str, steps: int, done: int = 0, verbose: int = 1):
        super().__init__()
        self.bar = progress(
            None, description, unit="step", verbose=verbose, total=steps, initial=done
        )

    def on_train_batch_end(self, batch, logs=None):
        if self.bar.update():
            self._show(logs)

    def on_predict_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self._show(logs)
        if isinstance(self.bar, _Lines) and not self.bar.disable:
            self.bar.refresh()

    def _show(self, logs):
        values = {name: f"{float(v):.4g}" for name, v in (logs or {}).items()}
        self.bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Ends the bar, at the end of all trainings that it is for."""
        self.bar.close()
