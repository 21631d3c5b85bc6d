"""How long the runs that are left would take."""

import time

import keras


class TimeLeft:
    """A plain estimate: what the runs that were made took, times what is left beside them.

    hours: what each run would take, in any unit.
    """

    def __init__(self, hours: list[float]):
        self.start, self.made, self.left = time.perf_counter(), 0.0, sum(hours)

    def after(self, hours: float, made: bool) -> str:
        """The estimate for people after one more run, which another command may have made."""
        self.left -= hours
        self.made += hours * made
        if not self.made or self.left < 1e-9:
            return ""
        minutes = (time.perf_counter() - self.start) / self.made * self.left / 60
        left = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
        return f"; about {left} left"


class TimeEstimate(keras.callbacks.Callback):
    """Prints, once, what the method's remaining runs would take at the speed measured so far.

    Scoring, not measured yet, is taken as four times as fast as training: a training step also goes
    backward and updates the weights.
    """

    def __init__(self, method, detector, n_train, n_test, remaining, after_seconds=20.0):
        super().__init__()
        self.method, self.detector = method, detector
        self.n_train, self.n_test, self.remaining = n_train, n_test, remaining
        self.after_seconds = after_seconds
        self.batches, self.start, self.done = 0, None, False

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if self.start is None:  # the first batch is compilation
            self.start = now
            return
        self.batches += 1
        if self.done or now - self.start < self.after_seconds:
            return
        self.done = True
        speed = self.batches * self.detector.batch_size / (now - self.start)
        samples = self.detector.training_samples(self.n_train)
        passes = self.detector.scoring_passes(self.n_train, self.n_test)
        hours = self.remaining * (samples + passes / 4) / speed / 3600
        runs = f"the {self.remaining} runs of {self.method} left"
        print(f"\n{speed:.0f} images/s: about {hours:.1f} hours for {runs}", flush=True)
        if hours > 1:
            print(
                "shorter with --runs 1, --classes NAME, --epochs 0.1, --limit-test 1000, or "
                "another --recipe",
                flush=True,
            )
