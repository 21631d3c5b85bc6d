"""Training WRN-10-4 on batches of 128: the pipeline, the bare step, its limits, and PyTorch.

    python -m benchmarks.training_step [--torch-python PATH] [--xla] [--compile]

Sides take turns of a few steps each, and medians are printed:

- bare step: the compiled step on one batch that is always the same;
- pipeline: `fit_steps`, as the detector trains, with its checkpoint callback and progress bar, from
  step to step; and how long it takes to return after the last one;
- Keras's batch normalisation: the bare step without this project's fused one;
- PyTorch: `benchmarks/torch_step.py` by the interpreter PATH, which needs PyTorch alone.

The limits are measured in the same process: the rate of a large matrix product in the precision,
and of reading and writing, by doubling an array of the size of the network's widest layer. The
arithmetic of a step is three times the forward pass's; the memory traffic is an estimate, three
times what the layers of the forward pass would read and write one by one.
"""

import argparse
import contextlib
import io
import math
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from benchmarks.options import plain_parser
from benchmarks.timing import medians, seconds_of
from models.responses import compile_trainer
from models.transformation_detector import TransformationDetector
from utils.batches import epoch_pairs, pair_batches
from utils.device import device_name, versions
from utils.optimizers import Adam
from utils.training import Checkpoint, fit_steps

BATCH = 128
WIDEST = (BATCH, 32, 32, 64)
WARM_UP, STEPS = 2, 8


def main() -> None:
    """Print a table for each precision."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--precisions", nargs="+", default=["mixed_bfloat16", "float32"])
    add("--repeats", type=int, default=5, help="turns of each side (default: 5)")
    add("--torch-python", help="an interpreter that has PyTorch, for that side")
    add("--compile", action="store_true", help="PyTorch by torch.compile too")
    add("--xla", action="store_true", help="the bare step compiled by XLA too")
    options = parser.parse_args()
    print(f"{device_name()}; {', '.join(f'{n} {v}' for n, v in versions().items())}")
    for precision in options.precisions:
        measure(precision, options)


def measure(precision: str, options: argparse.Namespace) -> None:
    """Time all sides in one precision and print their images/s and the limits."""
    detector = TransformationDetector(precision=precision)
    step = fixed_batch_step(detector)
    ends = []
    sides = {"bare step": turn(step), "pipeline": pipeline(precision, ends)}
    with mock.patch(
        "models.wide_residual_network.BatchNormalization", keras.layers.BatchNormalization
    ):
        plain = fixed_batch_step(TransformationDetector(precision=precision))
    sides["Keras's batch normalisation"] = turn(plain)
    if options.xla:
        xla = fixed_batch_step(TransformationDetector(precision=precision), jit_compile=True)
        sides["XLA"] = turn(xla)
    if options.torch_python:
        sides["PyTorch"] = torch_side(options.torch_python, precision)
        if options.compile:
            sides["PyTorch, torch.compile"] = torch_side(
                options.torch_python, precision, "--compile"
            )
    found = medians(sides, options.repeats)
    bare = found["bare step"]
    print(f"\n{precision}\n{'':30}{'images/s':>10}{'ms a step':>12}{'of bare step':>14}")
    for name, seconds in found.items():
        print(f"{name:30}{BATCH / seconds:10.0f}{1000 * seconds:12.1f}{bare / seconds:13.2f}x")

    print(f"a fit returns {max(ends):.2f} s after its last step, at most")

    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    additions, moved = work(detector.network_, np.dtype(tf.as_dtype(dtype).as_numpy_dtype).itemsize)
    rate, bandwidth = matrix_product_rate(dtype), memory_rate()
    print(
        f"forward pass of an image: {additions / 1e6:.0f} M multiply-adds; matrix product "
        f"{rate / 1e9:.0f} GFLOP/s, reading and writing {bandwidth / 1e9:.1f} GB/s"
    )
    arithmetic, traffic = 3 * 2 * additions * BATCH / rate, 3 * moved * BATCH / bandwidth
    print(
        f"a step at these rates: arithmetic {1000 * arithmetic:.0f} ms + memory "
        f"{1000 * traffic:.0f} ms; the bare step has {100 * arithmetic / bare:.0f} % of the matrix "
        f"rate, {100 * (arithmetic + traffic) / bare:.0f} % of both limits together",
        flush=True,
    )


def compiled_trainer(detector: TransformationDetector, jit_compile: bool | None = None):
    """The detector's untrained model on [images, t], compiled as `fit` compiles it."""
    detector._begin((32, 32, 3), "uint8")
    detector._build()
    compile_trainer(detector._trainer_, Adam(detector.learning_rate), jit_compile)
    return detector._trainer_


def fixed_batch_step(detector: TransformationDetector, batch: int = BATCH, jit_compile=None):
    """A function that trains one step on a batch that is always the same."""
    model, rng = compiled_trainer(detector, jit_compile), np.random.default_rng(0)
    x = rng.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    t = rng.integers(0, 72, batch).astype(np.int32)
    data = iter(tf.data.Dataset.from_tensors(((x, t), t)).repeat())
    model.make_train_function()
    return lambda: float(model.train_function(data)["loss"])


def turn(step):
    """A side: the mean seconds of steps, after some that find the caches as others left them."""

    def side():
        seconds_of(step, WARM_UP)
        return seconds_of(step, STEPS)

    return side


def pipeline(precision: str, ends: list[float]):
    """A side: the mean seconds from step to step of training on 5,000 images.

    Each fit's seconds from its last step to its return are appended to ends.
    """

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

    times, rng = [], np.random.default_rng(0)
    x = rng.integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8)
    model = compiled_trainer(TransformationDetector(precision=precision))
    checkpoint = Checkpoint(None, 180.0, "")

    def side():
        times.clear()
        with contextlib.redirect_stderr(io.StringIO()):
            fit_steps(
                model,
                lambda epoch: pair_batches(x, epoch_pairs(len(x), 72, 0, epoch), 72, BATCH),
                steps_per_epoch=math.ceil(len(x) * 72 / BATCH),
                total_steps=WARM_UP + STEPS,
                checkpoint=checkpoint,
                learning_rate=1e-3,
                callbacks=[Clock()],
            )
        ends.append(time.perf_counter() - times[-1])
        return (times[-1] - times[WARM_UP - 1]) / STEPS

    return side


def torch_side(
    python: str,
    precision: str,
    *arguments: str,
    script: str = "torch_step.py",
    warm_up: int = WARM_UP,
    steps: int = STEPS,
):
    """A side: seconds a step of PyTorch, which runs in a process of its own and waits."""
    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    path = Path(__file__).with_name(script)
    threads = len(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [python, path, dtype, str(threads), str(warm_up), str(steps), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def side():
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return side


def work(network: keras.Model, itemsize: int) -> tuple[int, int]:
    """An image's forward pass: its multiply-adds, and the bytes that its layers read and write."""
    additions = moved = 0
    for layer in network.layers[1:]:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        moved += sum(math.prod(each.shape[1:]) for each in [*inputs, layer.output])
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            positions = math.prod(layer.output.shape[1:-1])
            additions += positions * math.prod(layer.kernel.shape)
    return additions, moved * itemsize


def matrix_product_rate(dtype: str, n: int = 4096, clock: Callable = time.perf_counter) -> float:
    """Floating-point operations a second of an n x n matrix product."""
    a = tf.cast(tf.random.normal((n, n)), dtype)
    product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)[0]))
    return 2 * n**3 / medians({"": lambda: seconds_of(lambda: float(product(a)), 1, clock)}, 7)[""]


def memory_rate() -> float:
    """Bytes read and written a second by doubling an array of the network's widest layer.

    In float32, since TensorFlow's arithmetic in bfloat16 outside of oneDNN takes longer than the
    memory it reads.
    """
    a = tf.ones(WIDEST)
    double = tf.function(lambda a: a * 2)
    seconds = medians({"": lambda: seconds_of(lambda: double(a), 10)}, 7)[""]
    return 2 * math.prod(WIDEST) * a.dtype.size / seconds


if __name__ == "__main__":
    main()
