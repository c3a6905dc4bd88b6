"""Jobs run: each a process of its own, whose folder says how it ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from queue import SimpleQueue
from threading import Lock
from typing import Any

from dust3r_ros.errors import Dust3rError, FleetError, RosError
from dust3r_ros.fleet.jobs import Job
from dust3r_ros.mapping.export import write_json
from dust3r_ros.ros.processes import Child

RECORD, LOG, SUMMARY = "job.json", "log.txt", "summary.json"
_SAID_BY = "dust3r-ros: "
_INTERRUPTED = 130


class State(str, Enum):
    """How a job stands."""

    NEW = "new"
    RUNNING = "running"  # or broken off
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``earlier``: in a call before this one; ``figures`` are those of its ``summary.json``."""

    job: Job
    state: State
    error: str = ""
    seconds: float = 0.0
    earlier: bool = False
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """What a job is given: so many CPU cores, and a GPU of its own where there are ``gpu``s and it can use one."""

    cores: int
    gpu: bool = False

    def limits(self) -> dict[str, str]:
        """The changes to the environment that keep a process to its cores."""
        return {"OMP_NUM_THREADS": str(self.cores)}

    def places(self, cores: int, gpus: Sequence[str] = ()) -> list[dict[str, str]]:
        """The changes to the environment for each of the jobs that a machine can run at once."""
        if self.gpu and gpus:
            return [{**self.limits(), "CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
        return [self.limits() for _ in range(max(1, cores // self.cores))]


Report = Callable[[Outcome], None]


def outcome_of(job: Job, *, overwrite: bool = False) -> Outcome:
    """What the job's folder says of it.

    Raises FleetError when the folder is not a job's, or another's: of another source, or finished with other options,
    which only ``overwrite`` lets begin again.
    """
    record = _record(job)
    if record is None:
        if not overwrite and job.folder.exists() and any(job.folder.iterdir()):
            raise FleetError(f"{job.folder} holds something else: choose another folder, or give --overwrite")
        return Outcome(job, State.NEW)
    if overwrite:
        return Outcome(job, State.NEW)
    if record["source"] != str(job.source):
        raise FleetError(
            f"{job.folder} is of {record['source']}, not of {job.source}: choose another folder, or give --overwrite"
        )
    state = State(record["state"])
    if state is State.DONE and (record["command"], record["options"]) != (job.command, list(job.options)):
        raise FleetError(f"{job.folder} was made with other options: choose another folder, or give --overwrite")
    return Outcome(job, state, record["error"], record["seconds"], earlier=True, figures=_figures(job))


def run_job(job: Job, changes: Mapping[str, str], started: Callable[[Child], None] = lambda child: None) -> Outcome:
    """Run one, with ``changes`` to the environment; what an earlier run of it left is thrown away first.

    What goes wrong is in the outcome, never raised. ``started`` is called with the process.
    """
    start = time.monotonic()
    try:
        if (job.folder / RECORD).exists():
            shutil.rmtree(job.folder)
        job.folder.mkdir(parents=True, exist_ok=True)
        _write_record(Outcome(job, State.RUNNING))
        with Child("dust3r_ros", job.arguments(), job.folder / LOG, {**os.environ, **changes}) as child:
            started(child.start())
            code = child.ended()
        outcome = _outcome(job, code, time.monotonic() - start, killed=child.killed)
        _write_record(outcome)
    except (Dust3rError, OSError) as error:  # the folder cannot be written: other jobs may still work
        return Outcome(job, State.FAILED, str(error), time.monotonic() - start)
    return outcome


def run_here(jobs: Sequence[Job], places: Sequence[Mapping[str, str]], report: Report) -> None:
    """Run jobs on this machine, as many at once as there are ``places``, which are changes to the environment.

    When it is interrupted the processes are stopped first, and their jobs stay as begun.
    """
    free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for place in places:
        free.put(place)
    running = _Running()

    def work(job: Job) -> Outcome:
        place = free.get()
        try:
            return run_job(job, place, running.add)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places), thread_name_prefix="fleet") as pool:
        try:
            for future in as_completed([pool.submit(work, job) for job in jobs]):
                report(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise


class _Running:
    """The processes that run, so that they can be stopped; safe for threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stopped = False
        self._children: list[Child] = []

    def add(self, child: Child) -> None:
        with self._lock:
            self._children = [other for other in self._children if other.running] + [child]
            if self._stopped:
                _stop(child)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._children:
                _stop(child)


def _stop(child: Child) -> None:
    with suppress(RosError):  # it has ended by itself, or badly: this is as good
        child.stop()


def _outcome(job: Job, code: int, seconds: float, *, killed: bool) -> Outcome:
    """By a process's exit code; ``killed`` says that it was still writing what it had when it was interrupted."""
    if code == 0:
        return Outcome(job, State.DONE, "", seconds, figures=_figures(job))
    if killed or code in (_INTERRUPTED, -signal.SIGINT):
        return Outcome(job, State.RUNNING, "interrupted", seconds)
    return Outcome(job, State.FAILED, _why(job, code), seconds, figures=_figures(job))


def _why(job: Job, code: int) -> str:
    """What the command said last, or what ended it."""
    lines = [line for line in (job.folder / LOG).read_text(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix(_SAID_BY) for line in lines if line.startswith(_SAID_BY)]
    if said and code > 0:
        return said[-1]
    ended = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        ended += ", as the system does when memory runs out"
    return f"{ended}{f': {lines[-1].strip()}' if lines else ''}"


def _record(job: Job) -> dict[str, Any] | None:
    """``job.json``; None when there is none."""
    path = job.folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        State(record["state"])
        if not {"source", "command", "options", "error", "seconds"} <= set(record):
            raise KeyError("source, command, options, error or seconds")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FleetError(f"{path} cannot be read: {error}") from error
    return dict(record)


def _write_record(outcome: Outcome) -> None:
    job = outcome.job
    values = {"source": str(job.source), "command": job.command, "options": list(job.options)}
    state = {"state": outcome.state.value, "error": outcome.error, "seconds": round(outcome.seconds, 3)}
    write_json({**values, **state}, job.folder / RECORD)


def _figures(job: Job) -> dict[str, Any]:
    path = job.folder / SUMMARY
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # the run came to none
        return {}
