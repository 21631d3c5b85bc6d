"""What the deep baselines share: a convolutional encoder, a decoder, and how they are trained."""

import math
import time
from abc import abstractmethod

import keras
import numpy as np
from keras import layers, ops
from tqdm.auto import tqdm

from utils.backend import BatchNormalization
from utils.detector import Detector, NotFittedError, check_images, to_unit_range

SCORING_BATCH = 512
"""Images a batch while scoring."""


def convolutional_encoder(
    input_shape: tuple[int, int, int],
    representation_dim: int,
    representation_activation: str | None,
    *,
    seed: int | None = None,
) -> keras.Model:
    """From images (n, h, w, c) in [-1, 1] to codes (n, representation_dim).

    3x3 convolutions of stride 2, batch normalisation and ReLU, with 64, 128 and 256 filters, and
    512 for images larger than 32x32; then a dense layer with representation_activation (None:
    linear). seed makes the initial weights repeatable.
    """
    initializers = _initializers(seed)
    filters = (64, 128, 256, 512) if max(input_shape[:2]) > 32 else (64, 128, 256)
    inputs = x = keras.Input(input_shape, dtype="float32", name="images")
    for n in filters:
        x = layers.Conv2D(n, 3, strides=2, padding="same", kernel_initializer=next(initializers))(x)
        x = layers.ReLU()(BatchNormalization()(x))
    outputs = layers.Dense(
        representation_dim, representation_activation, kernel_initializer=next(initializers)
    )(layers.Flatten()(x))
    return keras.Model(inputs, outputs, name="encoder")


def convolutional_decoder(
    output_shape: tuple[int, int, int], representation_dim: int, *, seed: int | None = None
) -> keras.Model:
    """From codes (n, representation_dim) to images (n, h, w, c) in [-1, 1].

    A dense layer to 4x4x256, then 3x3 transposed convolutions of stride 2 with 128 and 64 filters
    (64 twice for 64x64 images, 128 alone for 16x16), each with batch normalisation and ReLU; the
    last one goes to the image's channels, with tanh. seed makes the initial weights repeatable.

    Raises ValueError for images that are not square or whose side is not 8, 16, 32, 64, ...
    """
    height, width, channels = output_shape
    doublings = round(math.log2(max(height, 8) / 4))
    if height != width or height != 4 * 2**doublings:
        raise ValueError(
            f"the decoder makes square images of side 8, 16, 32, 64, ..., got {height}x{width}; "
            "pad or resize the images"
        )
    initializers = _initializers(seed)
    inputs = keras.Input((representation_dim,), dtype="float32", name="codes")
    x = layers.Dense(4 * 4 * 256, kernel_initializer=next(initializers))(inputs)
    x = layers.Reshape((4, 4, 256))(layers.ReLU()(BatchNormalization()(x)))
    for n in (128, *[64] * (doublings - 2))[: doublings - 1]:
        x = layers.Conv2DTranspose(
            n, 3, strides=2, padding="same", kernel_initializer=next(initializers)
        )(x)
        x = layers.ReLU()(BatchNormalization()(x))
    x = layers.Conv2DTranspose(
        channels, 3, strides=2, padding="same", kernel_initializer=next(initializers)
    )(x)
    outputs = layers.Activation("tanh")(x)
    return keras.Model(inputs, outputs, name="decoder")


def _initializers(seed):
    """Initialisers of Keras's default kind for one layer after the other."""
    rng = np.random.default_rng(seed)
    while True:
        yield keras.initializers.GlorotUniform(seed=int(rng.integers(2**31)))


class DeepBaseline(Detector):
    """A detector whose subclass says how to train its network and how to score with it.

    epochs, which may be a fraction, batch_size, seed and verbose are arguments of every subclass.
    The same seed gives the same initial weights and the same order of images. After `fit`:
    image_shape_, image_dtype_, network_ (what scores) and seconds_.
    """

    def fit(self, x: np.ndarray, y: None = None) -> "DeepBaseline":
        """Train on images x (n, h, w, c) of the normal class, uint8 or float in [-1, 1].

        Raises ValueError for images or settings that make no sense, and where training diverges.
        """
        x = check_images(x)
        for name in ("epochs", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0")
        self._forget_calibration()
        self.image_shape_, self.image_dtype_ = x.shape[1:], x.dtype.name
        start = time.perf_counter()
        self.network_ = self._train(x)
        self.seconds_ = {"training": time.perf_counter() - start}
        return self

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """The normality score of images x (n, h, w, c): float64 (n,), higher = more normal.

        Raises ValueError for images of another shape or kind than in training, and NotFittedError
        before `fit`.
        """
        if not hasattr(self, "network_"):
            raise NotFittedError("this detector is not trained yet: call fit")
        x = check_images(x, self.image_shape_, self.image_dtype_)
        start = time.perf_counter()
        scores = np.asarray(self._score(x), np.float64)
        self.seconds_["scoring"] = time.perf_counter() - start
        return scores

    @abstractmethod
    def _train(self, x: np.ndarray) -> keras.Model:
        """The trained network of checked images."""

    @abstractmethod
    def _score(self, x: np.ndarray) -> np.ndarray:
        """The scores (n,) of checked images."""

    def _fit_network(self, model, x, batches, description, targets=False):
        """Trains a compiled model on batches of images; with targets, to give them back."""
        model.fit(
            _ImageBatches(x, batches, targets),
            shuffle=False,
            verbose=0,
            callbacks=[_Progress(description, len(batches))] if self.verbose else [],
        )
        for variable in model.variables:
            if not np.isfinite(ops.convert_to_numpy(ops.convert_to_tensor(variable))).all():
                raise ValueError(
                    f"training diverged: {variable.path} is not finite after {len(batches)} steps; "
                    f"lower learning_rate, now {self.learning_rate:g}"
                )

    def _predict(self, model, x, batch_size=SCORING_BATCH, description=None):
        """A compiled model's output for all images x, with a progress bar where described."""
        batches = np.split(np.arange(len(x)), range(batch_size, len(x), batch_size))
        bar = [_Progress(description, len(batches))] if description and self.verbose else []
        return model.predict(_ImageBatches(x, batches), verbose=0, callbacks=bar)


def epoch_batches(n: int, batch_size: int, epochs: float, seed: int) -> list[np.ndarray]:
    """The indices of every training batch: each epoch goes once through n images in new order.

    epochs may be a fraction; there is at least one batch. An epoch's last batch may be smaller.
    """
    rng = np.random.default_rng(seed)
    steps_per_epoch = math.ceil(n / batch_size)
    batches = []
    for _ in range(math.ceil(epochs)):
        order = rng.permutation(n)
        batches += [order[start : start + batch_size] for start in range(0, n, batch_size)]
    return batches[: max(1, round(epochs * steps_per_epoch))]


class _ImageBatches(keras.utils.PyDataset):
    """Batches of images scaled to [-1, 1], by their indices; with targets, (batch, batch)."""

    def __init__(self, x, batches, targets=False):
        super().__init__()
        self.x, self.batches, self.targets = x, batches, targets

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        images = to_unit_range(self.x[self.batches[index]])
        return (images, images) if self.targets else (images,)


class _Progress(keras.callbacks.Callback):
    """A progress bar over all steps; the loss beside it is the mean since the start."""

    def __init__(self, description, steps):
        super().__init__()
        self.bar = tqdm(desc=description, total=steps, unit="step", mininterval=1)

    def on_train_batch_end(self, batch, logs=None):
        if self.bar.update():
            self.bar.set_postfix(
                {name: f"{float(v):.4g}" for name, v in logs.items()}, refresh=False
            )

    def on_predict_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_train_end(self, logs=None):
        self.bar.close()

    on_predict_end = on_train_end
