"""What the deep baselines share: one interface, one training loop and its progress."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from utils.backend import keras_defaults
from utils.batches import epoch_batches, predict
from utils.detector import Detector, to_unit_range
from utils.device import PRECISIONS, use_xla
from utils.optimizers import Adam
from utils.settings import choice, number, setting, whole_number
from utils.training import Checkpoint, fit_steps

SCORING_BATCH = 512
"""Images a batch while scoring."""


@dataclass(eq=False, repr=False, kw_only=True)
class DeepBaseline(Detector):
    """A detector whose subclass says how to train network_, which gives minus the score.

    epochs, which may be a fraction, batch_size, learning_rate and precision are settings of every
    subclass. precision: "float32", "mixed_bfloat16", or "auto", which takes bfloat16 where that is
    faster, for the convolutions; losses, statistics and scores are in float32.
    """

    epochs: float = setting(200, number())
    batch_size: int = setting(128, whole_number())
    learning_rate: float = setting(1e-3, number())
    precision: str = setting("auto", choice(*PRECISIONS))

    def _train(
        self,
        model: "Network",
        x: np.ndarray,
        checkpoint: Checkpoint,
        callbacks: list[keras.callbacks.Callback],
        *,
        batches: Sequence[np.ndarray] | None = None,
        phase: int = 0,
    ) -> None:
        """Train a model on images x (n, h, w, c), scaled to [-1, 1], by Adam.

        batches: the numbers of each batch's images, and the model is compiled already; None: the
        settings' epochs, in new orders. phase: see `fit_steps`, which raises ValueError where
        training diverges.
        """
        settings = self.settings_
        if batches is None:
            batches = epoch_batches(len(x), settings.batch_size, settings.epochs, settings.seed)
            model.compile(Adam(settings.learning_rate), jit_compile=use_xla())
        steps_per_epoch = math.ceil(len(x) / settings.batch_size)
        fit_steps(
            model,
            lambda epoch: lambda i: (to_unit_range(x[batches[epoch * steps_per_epoch + i]]),),
            steps_per_epoch=steps_per_epoch,
            total_steps=len(batches),
            checkpoint=checkpoint,
            learning_rate=settings.learning_rate,
            description=model.name,
            callbacks=callbacks,
            phase=phase,
            verbose=self.verbose,
        )

    def _scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        own = -predict(self.network_, x, SCORING_BATCH, to_unit_range)
        return {"own": own.astype(np.float64)}


class Network(keras.Model):
    """A model that its own constructor makes: of a file of it, only the weights are read.

    A subclass may say what the loss is, beside what regularisers and `add_loss` add. A pickle has
    the constructor's arguments and the weights.
    """

    def __new__(cls, *arguments, **more):
        self = super().__new__(cls, *arguments, **more)
        object.__setattr__(self, "made_of", (arguments, more))  # before Keras tracks attributes
        return self

    def __reduce__(self):
        return _made_again, (type(self), *self.made_of, self.get_weights(), self.jit_compile)

    def loss_of(self, x, outputs):
        """The mean of the outputs on images x."""
        return ops.mean(outputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.loss_of(x, y_pred) + sum(self.losses)

    def get_config(self):
        return {}


def _made_again(cls, arguments, more, weights, jit_compile):
    with keras_defaults():
        model = cls(*arguments, **more)
    model.set_weights(weights)
    model.jit_compile = jit_compile
    return model


class Autoencoder(Network):
    """Images (n, h, w, c) to images, by the mean squared error."""

    def __init__(self, encoder, decoder):
        super().__init__(name="autoencoder")
        self.encoder, self.decoder = encoder, decoder
        self.built = True

    def call(self, x, training=False):
        return self.decoder(self.encoder(x, training=training), training=training)

    def loss_of(self, x, outputs):
        return ops.mean((x - outputs) ** 2)
