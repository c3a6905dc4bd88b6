"""What benchmarks share: times taken side by side, the machine's own limit, memory, and what a file says of them."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

_MATRICES = ((256, 1024, 1024), (1024, 1024, 4096), (2048, 2048, 2048))  # rows, inner, columns
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the best and the median wall times, and the best processor time, of ``calls``.

    The best ones are what other programs disturb least; processor time counts all threads.
    """

    best: float
    median: float
    cpu: float
    calls: int

    def times(self, factor: float) -> Timing:
        """As if the call had been made ``factor`` times."""
        return Timing(self.best * factor, self.median * factor, self.cpu * factor, self.calls)


def time_together(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Each call timed ``rounds`` times after one that is not, in turns, so that a disturbance meets them all."""
    walls: dict[str, list[float]] = {name: [] for name in calls}
    cpus: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):
        for name, call in calls.items():
            synchronise(device)
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            synchronise(device)
            if round_number:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {name: Timing(min(walls[name]), sorted(walls[name])[rounds // 2], min(cpus[name]), rounds) for name in calls}


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def matrix_rate(dtype: torch.dtype, device: torch.device, rounds: int = 10) -> float:
    """FLOP/s of plain matrix products as PyTorch does them: that of the shape and layer it does best."""
    best = 0.0
    for rows, inner, columns in _MATRICES:
        x = torch.randn(rows, inner, device=device).to(dtype)
        weight = torch.randn(columns, inner, device=device).to(dtype)
        calls: dict[str, Callable[[], object]] = {
            "product": lambda x=x, w=weight: x @ w.T,  # type: ignore[misc]
            "linear": lambda x=x, w=weight: _linear(x, w),  # type: ignore[misc]
        }
        for timing in time_together(calls, rounds, device).values():
            best = max(best, 2 * rows * inner * columns / timing.best)
    return best


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x, weight)


class PeakMemory:
    """The most memory used since this was made: of a GPU what PyTorch took there, else the process's resident memory.

    ``bytes`` is None where the system does not say.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _CLEAR.exists():
            try:
                _CLEAR.write_text("5")  # the peak begins anew
            except OSError:
                self._device = torch.device("meta")

    @property
    def bytes(self) -> int | None:
        """The peak so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if self._device.type != "cpu" or not _STATUS.exists():
            return None
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


def machine(device: torch.device) -> dict[str, str | int]:
    """What figures must be read with: processor, cores that may be used, threads, load, versions, command."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    return f"{model} ({units[0]})" if units else model
