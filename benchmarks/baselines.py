"""A training step of each deep baseline at the paper's recipe, its arithmetic, and PyTorch's.

    python -m benchmarks.baselines [--methods NAME,...] [--torch PYTHON]

Steps on a batch of CIFAR-10's size that is always the same. Sides take turns, and medians are
printed. GFLOP/s: the arithmetic of the convolutions and dense layers, forward and backward, over
the time of a step; its share is that of a large matrix product's rate in the same precision. By the
interpreter PYTHON, which needs PyTorch alone, `benchmarks/torch_baselines.py` is the other side.

On a machine that does other work too, the processor's time on one core says more:

    taskset -c 0 python -m benchmarks.baselines --processor-time
"""

if __name__ == "__main__":
    from utils import startup

    startup.start()  # which turns on oneDNN where TensorFlow leaves it off

import argparse
import math
import time
from collections.abc import Callable, Iterable
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from baselines import METHODS
from benchmarks.options import plain_parser
from benchmarks.timing import medians, seconds_of
from benchmarks.training_step import matrix_product_rate, torch_side
from utils.device import device_name, versions

NAMES = ("cae_ocsvm", "dagmm", "dsebm", "adgan", "deep_svdd")
SHAPE = (32, 32, 3)


def main() -> None:
    """Print a table for each precision."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--methods", default=",".join(NAMES), help="default: all deep baselines")
    add("--precisions", nargs="+", default=["float32"], help="default: float32")
    add("--repeats", type=int, default=3, help="turns of each side (default: 3)")
    add("--steps", type=int, default=3, help="steps a turn (default: 3)")
    add("--processor-time", action="store_true", help="in the place of the time that passes")
    add("--torch", metavar="PYTHON", help="an interpreter that has PyTorch, for that side")
    options = parser.parse_args()
    print(f"{device_name()}; {', '.join(f'{n} {v}' for n, v in versions().items())}")
    for precision in options.precisions:
        dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
        rate = matrix_product_rate(dtype, 2048, clock_of(options))
        print(f"\n{precision}: matrix product {rate / 1e9:.0f} GFLOP/s")
        print(f"{'':16}{'ms a step':>12}{'GFLOP/s':>10}{'share':>8}{'PyTorch':>12}{'ratio':>8}")
        for name in options.methods.split(","):
            for model, batch in trained_models(name, precision):
                row(name, model, batch, precision, rate, options)


def trained_models(name: str, precision: str) -> list[tuple[keras.Model, tuple]]:
    """The compiled models that the method trains, as yet untrained, and a batch of each."""
    found = []

    def keep(model, batches_of, **_):
        model.optimizer.build(model.trainable_variables)
        found.append((model, batches_of(0)(0)))

    detector = METHODS[name].create(precision=precision, epochs=1, verbose=0)
    if name in ("cae_ocsvm", "adgan"):  # whose other work is not to be waited for
        detector.set_params(**{"max_train": 8} if name == "cae_ocsvm" else {"steps_per_epoch": 1})
    n = 5 * detector.batch_size // 4  # Deep SVDD holds a fifth out
    x = np.random.default_rng(0).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    with mock.patch("baselines.deep.fit_steps", keep):
        detector.fit(x)
    return found


def row(name, model, batch, precision, rate, options) -> None:
    """Time the sides of a model and print its row."""
    label = "autoencoder" if (name, model.name) == ("deep_svdd", "autoencoder") else name
    data = iter(tf.data.Dataset.from_tensors(batch).repeat())
    model.make_train_function()

    def step():
        return [float(value) for value in model.train_function(data).values()]

    def side():
        step()
        return seconds_of(step, options.steps, clock_of(options))

    sides = {"ours": side}
    if options.torch:
        arguments = {"script": "torch_baselines.py", "warm_up": 1, "steps": options.steps}
        clocked = ["--processor-time"] if options.processor_time else []
        sides["PyTorch"] = torch_side(options.torch, precision, label, *clocked, **arguments)
    found = medians(sides, options.repeats)
    seconds, torch_seconds = found["ours"], found.get("PyTorch", math.nan)
    flops = 2 * len(batch[0]) * multiply_adds(name, model)
    print(
        f"{label:16}{1000 * seconds:12.0f}{flops / seconds / 1e9:10.1f}"
        f"{100 * flops / seconds / rate:7.0f}%{1000 * torch_seconds:12.0f}"
        f"{torch_seconds / seconds:8.2f}",
        flush=True,
    )


def clock_of(options: argparse.Namespace) -> Callable[[], float]:
    """By which the sides are timed."""
    return time.process_time if options.processor_time else time.perf_counter


def multiply_adds(name: str, model: keras.Model) -> float:
    """Of a training step, an image of the batch.

    A training step's backward pass takes two forward passes' arithmetic. DSEBM's second-order one
    takes six forward passes in all: forward and backward to the images, and back through both. So
    does the penalty of ADGAN, whose critic also sees real and generated images, at three each.
    """
    if name == "adgan":
        critic, generator = (forward([network]) for network in model.networks)
        steps = model.critic_steps
        return (steps * (12 * critic + generator) + 3 * generator + 2 * critic) / steps
    return (6 if name == "dsebm" else 3) * forward([model])


def forward(models: Iterable[keras.Model]) -> int:
    """Of a forward pass, an image."""
    total = 0
    for layer in (layer for model in models for layer in model._flatten_layers()):
        if isinstance(layer, layers.Conv2DTranspose):
            total += math.prod(layer.input.shape[1:-1]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, layers.Conv2D | layers.Dense):
            total += math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    return total


if __name__ == "__main__":
    main()
