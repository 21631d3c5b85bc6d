"""A training whose length follows the data, or the clock."""

import math
import time

import keras
import numpy as np
from scipy.special import log_softmax

from utils.optimizers import START, WARM_UP
from utils.training import Checkpoint

CHECK_STEPS, PAIRS = 50, 1024
"""Steps from one look at the held-out images to the next, and the (image, transformation) pairs
that it takes: a twentieth of the arithmetic."""

PATIENCE, LEAST_LOOKS, IMPROVEMENT = 0.3, 5, 0.01
"""The share of all looks, and the fewest, without so much improvement of the mean log-probability,
that bring training to its end."""

COOL_DOWN = 0.3
"""The end takes this share of the steps that were made until then."""


class Pace(keras.callbacks.Callback):
    """Leads the learning rate of a `TransformationDetector` of schedule "paced" through one cycle.

    The rate rises from 1/25 of the detector's over the first three tenths of the training, then
    falls to 0 as a cosine. Once what was done to the held-out images is recognised no better, by
    the mean log y(T(x))_T of some of them, it falls to 0 from where it is within COOL_DOWN more of
    the steps made, and training ends. With minutes, the cycle is as long as they are.

    A training that goes on from a checkpoint goes on with its rate, its looks and its minutes.
    Where the held-out images also set the threshold, they have taken part in the choice of one
    number, when training ends. steps: how many were made. history: [step, mean log-probability] of
    each look. cooled_from: the step at which the end began, or None.
    """

    def __init__(self, held_out: np.ndarray, minutes: float | None = None):
        """held_out: images (m, h, w, c), of the same kind as those trained on."""
        super().__init__()
        self.held_out, self.minutes = held_out, minutes

    def begin(self, detector, n: int, total_steps: int, checkpoint: Checkpoint) -> None:
        """What the detector's `fit` says of a training on n images, before its first step."""
        self.detector, self.n, self.checkpoint = detector, n, checkpoint
        self.total, self.batch_size = total_steps, detector.batch_size
        self.limit = math.inf if self.minutes is None else 60 * self.minutes
        self.steps, self.timed, self.said = 0, None, False
        self.started = self.clock()
        rng, k = np.random.default_rng(0), detector.transformer_.n_transforms
        self.pairs = rng.integers(0, len(self.held_out), PAIRS), rng.integers(0, k, PAIRS)

    def on_train_begin(self, logs=None):
        if self.timed is None:  # before the first step; the checkpoint is read by now
            self.started -= self.checkpoint.seconds
            self.steps = int(self.model.optimizer.iterations)

    @property
    def history(self):
        return self.checkpoint.notes.setdefault("history", [])

    @property
    def cooled_from(self):
        return self.checkpoint.notes.get("cooled_from")

    def expected_steps(self) -> int:
        """How many steps there will be, as far as is known."""
        if not self._paced:
            return self.total
        expected = self.steps / min(1, self._done(self.steps)) if self.steps else self.total
        if self.cooled_from is not None:
            expected = min(expected, (1 + COOL_DOWN) * self.cooled_from)
        return math.ceil(expected)

    def clock(self) -> float:
        """Seconds."""
        return time.perf_counter()

    @property
    def _paced(self):
        return self.detector.settings_.schedule == "paced"

    def on_train_batch_begin(self, batch, logs=None):
        if self._paced:
            self.model.optimizer.learning_rate = self._rate(self.steps)

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        self._estimate()
        if not self._paced:
            return
        if self.steps % CHECK_STEPS == 0 and self.cooled_from is None:
            self._look()
        self.model.stop_training = self._rate(self.steps) <= 0

    def _rate(self, step):
        """The learning rate after so many steps; 0 or less where training is over."""
        rate = self._cycle(step)
        if self.cooled_from is not None:
            rate *= 1 - (step - self.cooled_from) / (COOL_DOWN * self.cooled_from)
        return rate

    def _cycle(self, step):
        rate, done = self.detector.settings_.learning_rate, self._done(step)
        if done < WARM_UP:
            return rate * (START + (1 - START) * done / WARM_UP)
        fallen = min(1, (done - WARM_UP) / (1 - WARM_UP))
        return rate / 2 * (1 + math.cos(math.pi * fallen))

    def _done(self, step):
        """The share of the cycle that is over after so many steps."""
        return max(step / self.total, (self.clock() - self.started) / self.limit)

    def _look(self):
        """Measures the held-out images; decides whether they are still recognised better."""
        images, t = self.pairs
        logits = self.model.predict_on_batch((self.held_out[images], t.astype(np.int32)))
        log_p = log_softmax(np.asarray(logits, np.float64), axis=-1)[np.arange(PAIRS), t]
        self.history.append([self.steps, float(log_p.mean())])
        values = [value for _, value in self.history]
        n = max(LEAST_LOOKS, math.ceil(PATIENCE * len(values)))
        if len(values) > n and max(values[-n:]) < max(values[:-n]) + IMPROVEMENT:
            self.checkpoint.notes["cooled_from"] = self.steps

    def _estimate(self):
        """Says once, after ten seconds of steps, how long training takes at most."""
        now = self.clock()
        if self.timed is None:  # the first step compiles
            self.timed = self.steps, now
        elif not self.said and now - self.timed[1] >= 10:
            speed = (self.steps - self.timed[0]) / (now - self.timed[1])
            passes = self.detector.scoring_passes(self.n, len(self.held_out))
            follows = passes / (3 * self.batch_size * speed)  # is in time, too
            self.limit = max(1.0, self.limit - follows)
            if self.limit <= now - self.started:
                print(f"warning: scoring takes {follows / 60:.1f} minutes, so that none are left")
            seconds = min((self.total - self.steps) / speed, self.limit - (now - self.started))
            sooner = ", less if the held-out images are recognised no better before"
            minutes = max(1, round(seconds / 60))
            about = f"about {minutes} minute{'s' * (minutes > 1)}"
            about += f" at {speed * self.batch_size:.0f} images/s{sooner * self._paced}"
            print(f"training takes {about}; --minutes M limits it", flush=True)
            self.said = True
