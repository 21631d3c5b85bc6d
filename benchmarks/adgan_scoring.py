"""ADGAN's scoring, many (image, z) pairs at once, against one pair after another.

    python benchmarks/adgan_scoring.py [--images 8] [--pairs 8 64] [--side 32]

Both sides start from the same generator and the same z, and their scores must agree. A pair's cost
does not depend on how good the generator is, so it is not trained. One after another is a compiled
function of Keras's own layers and Adam. The first of two runs tells compilation apart.
"""

import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

sys.path.insert(0, str(Path(__file__).parents[1]))

from baselines.adgan import ADGAN, Reconstruction
from benchmarks.options import plain_parser
from models.encoders_decoders import convolutional_decoder
from utils.backend import backend, input_gradient
from utils.device import device_name, use_xla


class OnePair(keras.Model):
    """An image (1, h, w, c) and a z (1, d) to the error of the generator adapted to them: (1,)."""

    def __init__(self, generator: keras.Model, settings: ADGAN):
        super().__init__()
        self.generator = keras.models.clone_model(generator)
        self.start = [ops.copy(variable.value) for variable in generator.variables]
        self.z = self.add_weight(shape=(1, settings.latent_dim), trainable=False, name="z")
        self.adams = [
            keras.optimizers.Adam(rate, beta_1=0.5)
            for rate in (settings.z_learning_rate, settings.weights_learning_rate)
        ]
        for adam, variables in zip(self.adams, self.adapted(), strict=True):
            adam.build(variables)
        self.steps = settings.scoring_steps
        self.built = True

    def adapted(self):
        return [self.z], self.generator.trainable_variables

    def call(self, inputs):
        x, z = inputs
        self.z.assign(z)
        for variable, value in zip(self.generator.variables, self.start, strict=True):
            variable.assign(value)
        for adam in self.adams:
            for variable in adam.variables:
                if variable is not adam.variables[1]:  # the learning rate
                    variable.assign(ops.zeros_like(variable))
        state = self.generator.non_trainable_variables

        def error(values, z, training=False):
            images, _ = self.generator.stateless_call(values, state, z, training=training)
            return ops.mean((images - x) ** 2)

        for _ in range(self.steps):
            weights = [variable.value for variable in self.generator.trainable_variables]
            slope = input_gradient(lambda z, w: error(w, z), ops.copy(self.z.value), w=weights)
            self.adams[0].apply([slope], [self.z])
            slopes = input_gradient(error, weights, z=self.z.value, training=True)
            self.adams[1].apply(slopes, self.generator.trainable_variables)
        weights = [variable.value for variable in self.generator.trainable_variables]
        return ops.reshape(error(weights, self.z.value), (1,))


def one_after_another(model: OnePair, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The mean errors (n,) of images x over the rows of z."""
    errors = [[model.predict_on_batch([image[None], each[None]])[0] for each in z] for image in x]
    return np.mean(errors, axis=1)


def main() -> None:
    """The command at the head of this file."""
    parser = plain_parser(__doc__)
    parser.add_argument("--images", type=int, default=8, help="how many to score (default: 8)")
    parser.add_argument("--pairs", type=int, nargs="+", default=[8, 64], help="pairs at once")
    parser.add_argument("--side", type=int, default=32, help="of the images (default: 32)")
    options = parser.parse_args()

    settings = ADGAN()
    shape = (options.side, options.side, 3)
    generator = convolutional_decoder(shape, settings.latent_dim, seed=0)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((settings.n_seeds, settings.latent_dim)).astype(np.float32)
    x = rng.uniform(-1, 1, (options.images, *shape)).astype(np.float32)
    n = options.images * settings.n_seeds
    print(f"{n} pairs, {options.side}x{options.side}x3, Keras on {backend()}, {device_name()}")
    print(f"{'':24}{'ms a pair':>12}{'5,000 images':>16}{'compilation':>14}")
    compared = {}
    for jit in [False, True] if backend() == "tensorflow" else [use_xla()]:
        name = "one after another" + (", XLA" if jit else "")
        model = OnePair(generator, settings)
        model.compile(jit_compile=jit)
        compared[name] = timed(name, n, lambda model=model: one_after_another(model, x, z))
    for pairs in options.pairs:
        model = Reconstruction(generator, z, settings)
        model.compile(jit_compile=backend() == "tensorflow")
        b = max(1, pairs // settings.n_seeds)

        def batches(model=model, b=b):
            starts = range(0, len(x), b)
            return np.concatenate([model.predict_on_batch(x[s : s + b]) for s in starts])

        name = f"{pairs} pairs at once"
        compared[name] = timed(name, n, batches)
    errors = np.array(list(compared.values()))
    print(f"largest relative difference of scores: {np.max(np.ptp(errors, 0) / errors[0]):.1e}")


def timed(name: str, n: int, score) -> np.ndarray:
    """Prints a row of the table: the second run of `score`, over n pairs; returns its scores."""
    start = time.perf_counter()
    score()
    first, start = time.perf_counter() - start, time.perf_counter()
    errors = score()
    seconds = time.perf_counter() - start
    scale = 5000 * ADGAN().n_seeds / n
    print(
        f"{name:24}{1000 * seconds / n:12.1f}{scale * seconds / 60:12.1f} min"
        f"{first - seconds:12.1f} s",
        flush=True,
    )
    return errors


if __name__ == "__main__":
    main()
