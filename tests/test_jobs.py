import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from dask.distributed import LocalCluster

from utils import jobs

# Workers import this file for their tasks: experiments and TensorFlow, which take seconds, are
# imported only where they are tested.


def whereabouts(seconds):
    """This process, its cores and its GPU; with time for another process to take a task too."""
    signal.sigtimedwait([signal.SIGUSR1], seconds)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return os.getpid(), cores, os.environ.get("CUDA_VISIBLE_DEVICES")


def threads_and_memory(seconds):
    """What the libraries of this process are told of threads, and of a GPU that others use too."""
    signal.sigtimedwait([signal.SIGUSR1], seconds)
    names = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE"
    return os.getpid(), *map(os.environ.get, names)


def die_once(folder, number):
    """The square of a number, after killing the first process that is to compute that of 2."""
    with open(Path(folder, str(number)), "a") as file:
        file.write("started\n")
    if number == 2 and Path(folder, "2").read_text() == "started\n":
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def one_of_several(first, *more):
    """`whereabouts`, `die_once`, or death whenever it is tried: tasks of one function."""
    if first == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return die_once(first, *more) if more else whereabouts(first)


needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two processor cores"
)


@needs_two_cores
def test_each_process_has_its_own_cores_and_gpu_and_a_lost_one_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    tasks = [(0.5,)] * 4 + [(str(tmp_path), number) for number in range(5)] + [("die", "die")]
    found = list(jobs.run_jobs(one_of_several, tasks, jobs=2))
    assert sorted(map(repr, tasks)) == sorted(repr(task) for task, _ in found)
    places = {result for task, result in found if len(task) == 1}
    processes = {pid: (cores, gpu) for pid, cores, gpu in places}
    assert len({pid for pid in processes}) >= 2 and os.getpid() not in processes
    assert {gpu for _, gpu in processes.values()} == {"3", "5"}
    shares = {gpu: cores for cores, gpu in processes.values()}
    assert not set(shares["3"]) & set(shares["5"])
    assert {*shares["3"], *shares["5"]} == os.sched_getaffinity(0)
    squares = {task[1]: result for task, result in found if task[0] == str(tmp_path)}
    assert squares == {number: number**2 for number in range(5)}
    # twice, or more where the process of its result died before that was fetched
    assert (tmp_path / "2").read_text().count("started") >= 2
    (error,) = [result for task, result in found if task == ("die", "die")]
    assert isinstance(error, Exception)


def test_more_jobs_than_cores_are_refused():
    with pytest.raises(ValueError, match=r"--jobs 9999 is more than the \d+ processor cores"):
        next(jobs.run_jobs(whereabouts, [(0,)], jobs=9999))


def test_gpus_are_counted_by_the_driver(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jobs.visible_gpus() == []
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: A100 (UUID: GPU-1)\nGPU 1: A100 (UUID: GPU-2)'\n")
    driver.chmod(0o755)
    assert jobs.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert jobs.visible_gpus() == []


@needs_two_cores
def test_two_experiments_at_once_are_the_same_as_one_after_another(tmp_path, capsys):
    import experiments

    command = "--methods raw_ocsvm --classes 4,0 --limit-train 60 --limit-test 80"
    for folder, number in (("one", "1"), ("two", "2")):
        arguments = [*command.split(), "--results-dir", str(tmp_path / folder), "--jobs", number]
        assert experiments.main(arguments) == 0
    out = capsys.readouterr().out
    assert "[2/2] raw_ocsvm, " in out and "run 0: AUROC in %: hindsight" in out
    for c in (4, 0):
        scores = []
        for folder in ("one", "two"):
            path = tmp_path / folder / "digits" / f"digits_raw_ocsvm_{c}_0.npz"
            with np.load(path) as file:
                scores.append(file["scores_hindsight"])
        np.testing.assert_allclose(*scores, rtol=1e-9)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as it:
        yield it


def test_a_dask_cluster_runs_the_tasks_and_a_lost_workers_again(cluster, tmp_path):
    address = cluster.scheduler_address
    found = [place for _, place in jobs.run_jobs(whereabouts, [(0.5,)] * 6, 1, address)]
    assert len({pid for pid, *_ in found}) == 2 and os.getpid() not in {pid for pid, *_ in found}
    tasks = [(str(tmp_path), number) for number in range(5)]
    squares = [square for _, square in jobs.run_jobs(die_once, tasks, 1, address)]
    assert sorted(squares) == [0, 1, 4, 9, 16]
    assert (tmp_path / "2").read_text() == "started\n" * 2


def die(folder):
    """Death, whenever it is tried."""
    with open(folder / "tried", "a") as file:
        file.write("started\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_cluster_with_late_workers_and_a_task_that_cannot_be_done(tmp_path):
    """Its scheduler was started without this project's settings, and has no workers yet."""
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as cluster:
        threading.Timer(1.0, cluster.scale, [1]).start()
        tasks = [("TF_CPP_MIN_LOG_LEVEL",)]
        ((_, level),) = jobs.run_jobs(os.getenv, tasks, 1, cluster.scheduler_address)
        assert level  # as where a command has loaded Keras
        ((_, error),) = jobs.run_jobs(die, [(tmp_path,)], 1, cluster.scheduler_address)
    assert isinstance(error, Exception)
    assert (tmp_path / "tried").read_text() == "started\n" * 3


def test_a_dask_worker_of_two_threads_is_refused():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        pytest.raises(ValueError, match="--nthreads 1"),
    ):
        next(jobs.run_jobs(whereabouts, [(0,)], 1, cluster.scheduler_address))


def test_libraries_get_as_many_threads_as_the_process_has_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (found,) = jobs.run_jobs(os.getenv, [("OMP_NUM_THREADS",)], jobs=1)
    assert found == (("OMP_NUM_THREADS",), str(len(os.sched_getaffinity(0))))


@needs_two_cores
def test_two_processes_share_one_gpu_and_the_cores(monkeypatch):
    for name in ("OMP_NUM_THREADS", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    found = {told for _, told in jobs.run_jobs(threads_and_memory, [(0.5,)] * 4, jobs=2)}
    assert len(found) == 2
    threads = str(len(os.sched_getaffinity(0)) // 2)
    assert {told[1:] for told in found} == {(threads, "3", "false")}
