"""Jobs run on a Ray cluster. Needs ``pip install dust3r_ros[fleet]``."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from dust3r_ros.errors import FleetError
from dust3r_ros.fleet.jobs import Job
from dust3r_ros.fleet.run import Outcome, Report, Share, State, run_job

_LISTENS_SECONDS = 10.0


def run_on_ray(jobs: Sequence[Job], address: str, share: Share, report: Report) -> None:
    """Run jobs on the cluster at ``address`` (``auto``: the one this machine belongs to; ``local``: one of its own).

    Every machine of it needs this package, the sources and the results' folder under the same paths. Ray places a job
    where ``share`` is free, at most all the cores of the largest machine. A job whose machine is lost is begun again
    on another. Raises FleetError without Ray and without the cluster.
    """
    ray = _ray()
    _join(ray, address)
    try:
        remote = ray.remote(**_needs(ray, share))(run_job)
        pending = {remote.remote(job, share.limits()): job for job in jobs}
        try:
            while pending:
                ready, _ = ray.wait(list(pending), num_returns=1)
                report(_outcome(ray, ready[0], pending.pop(ready[0])))
        except BaseException:
            for reference in pending:
                ray.cancel(reference, force=True)
            raise
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unasked
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do, and warns of
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FleetError(f"--ray needs Ray: pip install 'dust3r_ros[fleet]' ({error})") from error


def _join(ray: Any, address: str) -> None:
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    try:
        if separator and port.isdecimal():  # where nothing listens Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENS_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ValueError, OverflowError, RuntimeError, OSError) as error:
        raise FleetError(f"cannot join the Ray cluster at {address!r}: {error}") from error


def _needs(ray: Any, share: Share) -> Mapping[str, Any]:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [resources for resources in machines if share.gpu and resources.get("GPU", 0) >= 1]
    cores = min(float(share.cores), max(resources.get("CPU", 0.0) for resources in with_gpu or machines))
    return {"num_cpus": cores, "num_gpus": 1 if with_gpu else 0}


def _outcome(ray: Any, reference: Any, job: Job) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:  # its machine was lost, again and again
        return Outcome(job, State.FAILED, f"Ray: {' '.join(str(error).split())}")
    return outcome
