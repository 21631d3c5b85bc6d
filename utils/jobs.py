"""Many independent tasks at once, by Dask: worker processes here, or those of a cluster."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import dask
import numpy as np
from dask.distributed import Client, LocalCluster, WorkerPlugin, as_completed

from utils.device import processor_cores
from utils.startup import load_keras

DASK = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": None,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "10s",
}
"""A task may lose its process twice; it waits until a process is free; and a process that computes
for long without a word is not taken for lost. Dask's own watching, for a dashboard that nobody
sees, is off or slow: it takes a twentieth of each core."""

THREADS = [
    f"distributed.nanny.pre-spawn-environ.{name}_THREADS"
    for name in ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "TF_NUM_INTRAOP")
]
"""The threads of libraries in a process; Dask's default is one."""


def run_jobs(
    function: Callable, tasks: list[tuple], jobs: int, scheduler: str | None = None
) -> Iterator[tuple[tuple, object]]:
    """Yields (task, function(*task)) for every task, in the order in which they finish.

    jobs: so many processes on this machine, each with its share of the processor cores and one of
    the GPUs, which they share where there are fewer. scheduler: the address of a Dask cluster,
    whose workers take the tasks instead, with the cores and GPUs that they were started with.

    A task whose process dies is run again, up to twice: it must bear being run twice. One that
    fails for good has its exception in the place of its result.

    Raises ValueError for more jobs than cores, and for a cluster that is not there or whose workers
    run several tasks in one process or cannot import this project.
    """
    workers = _cluster(scheduler) if scheduler else _processes(jobs)
    with dask.config.set(DASK), workers as client:
        futures = {client.submit(function, *task, pure=False): task for task in tasks}
        for future in as_completed(list(futures)):
            task = futures.pop(future)  # nothing holds it: it is not computed again elsewhere
            if future.cancelled():
                raise OSError(f"{scheduler} is gone; the same command goes on from here")
            error = future.exception()
            yield task, future.result() if error is None else error


@contextlib.contextmanager
def _cluster(scheduler):
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        if not client.nthreads():
            print(f"waiting for workers of {scheduler}: there are none yet", flush=True)
            client.wait_for_workers(1)
        threads = max(client.nthreads().values())
        if threads > 1:
            raise ValueError(f"a Dask worker has {threads} threads: start each with --nthreads 1")
        try:
            client.run_on_scheduler(importlib.util.find_spec, __name__)
            client.run(importlib.util.find_spec, __name__)
            client.run_on_scheduler(_allow_failures)
            client.register_plugin(_LoadKeras())
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the Dask cluster lacks {__name__}: start it in this folder, with PYTHONPATH=."
            ) from error
        yield client


def _allow_failures(dask_scheduler):
    dask_scheduler.allowed_failures = DASK["distributed.scheduler.allowed-failures"]


class _LoadKeras(WorkerPlugin):
    """Loads Keras in each worker as a command does: quietly, with oneDNN where that is faster."""

    def setup(self, worker):
        load_keras()


@contextlib.contextmanager
def _processes(jobs):
    cores = processor_cores()
    if jobs > len(cores):
        raise ValueError(f"--jobs {jobs} is more than the {len(cores)} processor cores")
    settings = {"memory_limit": None, "dashboard_address": ":0", "silence_logs": logging.ERROR}
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(dict.fromkeys(THREADS, len(cores) // jobs)))
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            # Ctrl-C is for this process, which ends the others: they inherit that it is blocked
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        cluster = LocalCluster(n_workers=jobs, threads_per_worker=1, **settings)
    with cluster, Client(cluster) as client:
        shares = [part.tolist() for part in np.array_split(cores, jobs)]
        client.register_plugin(_Share(shares, visible_gpus()))
        yield client


class _Share(WorkerPlugin):
    """Gives each worker process, whenever it starts, its own cores and GPU."""

    def __init__(self, shares, gpus):
        self.shares, self.gpus = shares, gpus

    def setup(self, worker):
        number = int(worker.name)
        if hasattr(os, "sched_setaffinity"):  # Linux
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.sched_setaffinity(int(thread), self.shares[number])
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        if 0 < len(self.gpus) < len(self.shares):  # none is to reserve all of a shared GPU's memory
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
