"""Many independent tasks at once through joblib: worker processes here, or a Dask cluster's."""

import contextlib
import fcntl
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

BACKENDS = ("loky", "dask")

MAX_LOSSES = 3
"""How often in a row workers may be lost before any task is finished."""


def run_jobs(
    function: Callable,
    tasks: list[tuple],
    jobs: int,
    joblib_backend: str = "loky",
    scheduler: str | None = None,
) -> Iterator:
    """Yields function(*task) for every task, in the order in which they finish.

    joblib_backend: "loky" for `jobs` processes on this machine, each with its share of the
    processor cores and one of the GPUs, which they share where there are fewer; "dask" for as many
    at once as the cluster at the address `scheduler` has workers, which see the cores and GPUs that
    they were started with:

        PYTHONPATH=. dask scheduler
        PYTHONPATH=. CUDA_VISIBLE_DEVICES=0 dask worker tcp://HOST:8786 --nthreads 1

    A task whose process dies is run again: it must bear being run twice.

    Raises ValueError for more jobs than cores, for a cluster that is not there or whose workers run
    several tasks in one process, and for tasks that kill their process again and again.
    """
    if joblib_backend == "dask":
        jobs, config = -1, _cluster(scheduler)
    else:
        config = _processes(jobs)
    waiting, losses = dict(enumerate(tasks)), 0
    while waiting:
        calls = [delayed(_numbered)(number, function, task) for number, task in waiting.items()]
        try:
            with config() as keywords:
                with parallel_config(joblib_backend, **keywords):
                    parallel = Parallel(jobs, return_as="generator_unordered", batch_size=1)
                for number, result in parallel(calls):
                    del waiting[number]
                    losses = 0
                    yield result
        except TerminatedWorkerError as error:
            losses += 1
            if losses == MAX_LOSSES:
                raise ValueError(
                    f"worker processes died {losses} times before finishing anything, perhaps for "
                    "want of memory: try fewer --jobs"
                ) from error
            print("a worker process died; what it ran is run again", file=sys.stderr, flush=True)


def _numbered(number, function, task):
    return number, function(*task)


def _cluster(scheduler):
    """What joblib's Dask backend needs to know."""
    if scheduler is None:
        raise ValueError("--joblib-backend dask needs --scheduler, such as tcp://127.0.0.1:8786")
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ValueError("Dask is not installed: pip install 'dask[distributed]'") from error

    @contextlib.contextmanager
    def config():
        try:
            client = Client(scheduler, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client:
            threads = max(client.nthreads().values(), default=1)
            if threads > 1:
                raise ValueError(
                    f"a Dask worker would run {threads} tasks in one process: start the workers "
                    "with --nthreads 1"
                )
            try:
                client.run_on_scheduler(importlib.util.find_spec, __name__)
                client.run(importlib.util.find_spec, __name__)
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"the Dask cluster cannot import {__name__}: start its scheduler and workers "
                    "in this project's folder, with PYTHONPATH=."
                ) from error
            yield {"client": client}

    return config


def _processes(jobs):
    """What joblib's loky backend needs to know: how each new process takes its share."""
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise ValueError(f"--jobs {jobs} is more than the {len(cores)} processor cores")
    shares = [part.tolist() for part in np.array_split(cores, jobs)]

    @contextlib.contextmanager
    def config():
        with tempfile.TemporaryDirectory() as folder:
            arguments = (Path(folder), shares, visible_gpus())
            yield {"initializer": _take_share, "initargs": arguments}

    return config


def _take_share(folder, shares, gpus):
    """In a new process, before it loads a deep learning library: its own cores and GPU.

    A share is taken by locking a file, and free again when the process is gone, however it ended.
    """
    for number in itertools.cycle(range(len(shares))):
        file = os.open(folder / str(number), os.O_CREAT | os.O_WRONLY)  # never closed
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        os.close(file)
        time.sleep(0.01)
    os.sched_setaffinity(0, shares[number])
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    if 0 < len(gpus) < len(shares):  # a process is not to reserve the whole memory of a shared GPU
        os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    The driver is asked, since a deep learning library that is asked takes hold of them.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(gpus))]
