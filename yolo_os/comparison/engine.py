"""Where the jobs of a comparison run: processes of this machine, or tasks of a Ray cluster.

Either way a job is a command that works in the folders of its runs and leaves results or errors there, so what was
interrupted is gone on with by whoever comes next.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from yolo_os.comparison.plan import FAILURE, Job
from yolo_os.errors import UserError
from yolo_os.files import write_json

MODULE = "yolo_os.integration.compare_run"  # not imported here: a process of its own runs it
THREADS = "YOLO_OS_THREADS"  # in the environment of a job: how many it may compute with on a CPU
LOG = "log.txt"
_TAIL = 400  # letters of a log


Announce = Callable[[Job], None]  # is given a job that begins


def here(jobs: Sequence[Job], make: Callable[[list[Path]], Any], announce: Announce) -> Iterator[Job]:
    """Run jobs in this process, one after another.

    Args:
        jobs: to be run.
        make: does the work in some folders.
        announce: is given each when it begins.
    """
    for job in jobs:
        announce(job)
        make([run.folder for run in job.left])
        yield job


def processes(jobs: Sequence[Job], workers: int, announce: Announce) -> Iterator[Job]:
    """Run each job in a process of its own, some at a time; yields each when it has ended, however it did.

    Where several run at a time, each computes with its share of the cores.

    Args:
        jobs: to be run.
        workers: at a time.
        announce: is given each when it begins.
    """
    at_a_time = min(workers, len(jobs))
    variables = {} if at_a_time <= 1 else {THREADS: str(_cores() // at_a_time or 1)}
    running: set[subprocess.Popen[bytes]] = set()
    lock, stopped = threading.Lock(), threading.Event()

    def run(job: Job) -> Job:
        folders = [run.folder for run in job.left]
        with lock:
            announce(job)
            process = start(folders, variables)
            running.add(process)
        code = process.wait()
        with lock:
            running.discard(process)
        if not stopped.is_set():
            note_end(folders, code)
        return job

    with ThreadPoolExecutor(workers) as pool:
        futures: set[Future[Job]] = {pool.submit(run, job) for job in jobs}
        try:
            while futures:
                done, futures = wait(futures, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:  # after an interruption: what was not begun is not, and what runs ends
            stopped.set()
            for future in futures:
                future.cancel()
            with lock:
                for process in running:
                    process.kill()


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(folders: Sequence[Path], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a job; it ends when this one does, since its standard input then ends."""
    command = [sys.executable, "-m", MODULE, *map(str, folders)]
    with (folders[0] / LOG).open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **variables}
        )


def note_end(folders: Sequence[Path], code: int) -> None:
    """Leave an error where a process ended without result or error, as one does that is killed."""
    for folder in folders:
        if not (folder / "result.json").is_file() and not (folder / FAILURE).is_file():
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            log = folders[0] / LOG
            tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip() if log.is_file() else ""
            write_json(folder / FAILURE, {"error": f"its process {how}", "log": tail})


def ray_tasks(jobs: Sequence[Job], address: str | bool, cpus: float, gpus: float) -> Iterator[Job]:
    """Run each job as a task of a Ray cluster whose machines share the comparison's folder.

    A task whose machine or process dies is begun again by Ray, and goes on from the last epoch that was saved.

    Args:
        jobs: to be run.
        address: of the cluster, as `ray.init` takes it; True: a new one, of this machine alone.
        cpus, gpus: what a task takes.

    Raises:
        UserError: if Ray is not installed, or no such cluster is there.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise UserError("ray=: Ray is not installed; pip install 'yolo-os[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    begun = not ray.is_initialized()
    if begun:
        _connect(ray, address)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3, max_calls=1)(_in_task)
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path.rstrip(os.pathsep), THREADS: str(int(cpus) or 1)}
    try:
        pending = {
            task.remote([str(run.folder) for run in job.left], MODULE, os.getcwd(), variables): job for job in jobs
        }
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            job = pending.pop(ready)
            folders = [run.folder for run in job.left]
            try:
                note_end(folders, ray.get(ready))
            except Exception as error:  # whatever Ray makes of a machine that is gone for good
                said = f"{type(error).__name__}: {' '.join(str(error).split())}"
                for folder in folders:
                    if not (folder / FAILURE).is_file():
                        write_json(folder / FAILURE, {"error": said})
            yield job
    finally:
        if begun:
            ray.shutdown()


def _connect(ray: Any, address: str | bool) -> None:
    """Connect to a cluster, or start one on this machine alone."""
    try:
        if address is True:
            ray.init(address="local", log_to_driver=False, include_dashboard=False)
        else:
            ray.init(address=str(address), log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"ray={address}: {' '.join(str(error).split())}") from None


def _in_task(folders: list[str], module: str, where: str, variables: dict[str, str]) -> int:
    """What a task does: the job's process, which ends with the task's. It needs nothing of this package to begin."""
    import os
    import subprocess
    import sys

    with open(os.path.join(folders[0], "log.txt"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *folders],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=where if os.path.isdir(where) else None,
            env={**os.environ, **variables},
        )
        return process.wait()
