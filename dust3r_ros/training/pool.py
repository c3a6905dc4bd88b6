"""Every rendered pair is used a few times: a bounded pool between what makes pairs and the training that uses them."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r_ros.errors import TrainingError
from dust3r_ros.training.pairs import ChunkRequest, PairBatch, PairSource, RenderedPairs, RenderSettings

_START_SECONDS = 600.0  # longest wait for one chunk
_ORPHAN_SECONDS = 5.0  # until a worker notices that its parent is gone
_AHEAD = 2  # chunks asked of each worker at a time


class ReplayPool:
    """Up to ``capacity`` pairs of one image size, each drawn at most ``uses`` times."""

    def __init__(self, capacity: int, uses: int, device: torch.device | str = "cpu") -> None:
        if capacity < 1 or uses < 1:
            raise ValueError(f"capacity and uses must be at least 1, got {capacity} and {uses}")
        self._uses = uses
        self._device = torch.device(device)
        self._left = torch.zeros(capacity, dtype=torch.int64)
        self._store: PairBatch | None = None

    @property
    def available(self) -> int:
        """Pairs that may still be drawn."""
        return int((self._left > 0).sum())

    @property
    def room(self) -> int:
        """Pairs that may be added."""
        return len(self._left) - self.available

    def add(self, batch: PairBatch) -> None:
        """Keep new pairs, in the places of used ones. Raises ValueError when there is no room for all."""
        free = (self._left == 0).nonzero()[:, 0]
        if len(free) < len(batch):
            raise ValueError(f"the pool has room for {len(free)} pairs, got {len(batch)}")
        if self._store is None:
            self._store = batch.map(self._empty)
        place = free[: len(batch)]
        for field in fields(batch):
            getattr(self._store, field.name)[place.to(self._device)] = getattr(batch, field.name).to(self._device)
        self._left[place] = self._uses

    def draw(self, count: int, generator: torch.Generator) -> PairBatch:
        """``count`` different pairs at random (generator on the CPU). Raises ValueError when there are fewer."""
        ready = (self._left > 0).nonzero()[:, 0]
        if len(ready) < count or self._store is None:
            raise ValueError(f"the pool has {len(ready)} pairs, asked for {count}")
        place = ready[torch.randperm(len(ready), generator=generator)[:count]]
        self._left[place] -= 1
        return self._store[place.to(self._device)]

    def _empty(self, like: Tensor) -> Tensor:
        return torch.empty((len(self._left), *like.shape[1:]), dtype=like.dtype, device=self._device)


@dataclass(frozen=True)
class PoolSettings:
    """``capacity`` pairs in all sizes together, each drawn at most ``uses`` times; draws wait for ``ready`` pairs."""

    capacity: int = 2048
    uses: int = 4
    ready: int = 256


class PairStream:
    """Batches of pairs without end, from a pool for each image size that is kept full.

    ``chunks`` is the number of the next chunk to be made: give it back as ``first_chunk`` to go on with new pairs.
    """

    def __init__(
        self, maker: ChunkMaker, chunk: int, settings: PoolSettings, device: torch.device | str, first_chunk: int = 0
    ) -> None:
        self.chunks = first_chunk
        self._maker, self._chunk, self._settings, self._device = maker, chunk, settings, device
        self._pools: dict[tuple[int, int], ReplayPool] = {}
        self._baseline = (0.0, 0.0)
        self._waiting: dict[int, ChunkRequest] = {}

    def show(self, sizes: Sequence[tuple[int, int]], baseline: tuple[float, float], batch: int) -> None:
        """From now on images of these sizes (H, W), cameras this far apart, metres, in batches of up to ``batch``.

        What is kept of before stays in use while the sizes are the same.
        """
        self._baseline = baseline
        room = max(self._settings.capacity // len(sizes), self._chunk + batch)
        if set(sizes) != set(self._pools):
            self._pools = {size: ReplayPool(room, self._settings.uses, self._device) for size in sizes}

    def draw(self, size: tuple[int, int], count: int, generator: torch.Generator) -> PairBatch:
        """``count`` pairs of one of the sizes; waits until there are enough. Raises TrainingError without pairs."""
        pool = self._pools[size]
        most = pool.available + pool.room - self._chunk  # as long as there are fewer, a chunk has room
        if count > most:
            raise ValueError(f"a batch may have at most {most} pairs here, got {count}")
        enough = max(count, min(self._settings.ready // len(self._pools), most))
        self._collect(block=False)
        while pool.available < enough:
            self._request(first=size)
            self._collect(block=True)
        batch = pool.draw(count, generator)
        self._request(first=size)
        return batch

    def close(self) -> None:
        """End what makes the pairs."""
        self._maker.close()

    def _request(self, first: tuple[int, int]) -> None:
        """Ask for chunks, the size in need first, as long as there will be room for them."""
        sizes = sorted(self._pools, key=lambda size: size != first)
        for size in sizes:
            coming = sum(request.size == size for request in self._waiting.values()) * self._chunk
            while len(self._waiting) < self._maker.ahead and self._pools[size].room - coming >= self._chunk:
                request = ChunkRequest(self.chunks, size, self._baseline)
                self._waiting[self.chunks] = request
                self._maker.ask(request)
                self.chunks += 1
                coming += self._chunk

    def _collect(self, *, block: bool) -> None:
        for number, batch in self._maker.collect(block=block):
            request = self._waiting.pop(number)
            pool = self._pools.get(request.size)  # None: asked for before the sizes changed
            if pool is not None and pool.room >= len(batch):
                pool.add(batch)


class ChunkMaker:
    """Makes chunks when they are collected, in this process: right where the source is as fast as a GPU."""

    def __init__(self, source: PairSource) -> None:
        self.ahead = 1
        self._source = source
        self._asked: list[ChunkRequest] = []

    def ask(self, request: ChunkRequest) -> None:
        """Want a chunk."""
        self._asked.append(request)

    def collect(self, *, block: bool) -> list[tuple[int, PairBatch]]:
        """The chunks that are ready, by number; ``block`` waits for at least one of those asked for."""
        del block  # made here and now
        made = [(request.number, self._source.make(request)) for request in self._asked]
        self._asked.clear()
        return made

    def close(self) -> None:
        """Stop."""


class WorkerChunkMaker(ChunkMaker):
    """Makes chunks in processes of their own, so that rendering and training overlap."""

    def __init__(self, make_source: Callable[[], PairSource], workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ahead = _AHEAD * workers
        self._requests: Any = context.Queue()
        self._results: Any = context.Queue()
        self._asked = []
        self._pending = 0
        self._workers = [
            context.Process(target=_work, args=(make_source, self._requests, self._results), daemon=True)
            for _ in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def ask(self, request: ChunkRequest) -> None:
        self._pending += 1
        self._requests.put(request)

    def collect(self, *, block: bool) -> list[tuple[int, PairBatch]]:
        ready: list[tuple[int, PairBatch]] = []
        if block and self._pending:
            self._wait()
        while self._pending:
            try:
                number, arrays = self._results.get(block=block and not ready, timeout=_START_SECONDS)
            except queue.Empty:
                break
            if isinstance(arrays, str):
                raise TrainingError(f"rendering failed: {arrays}")
            self._pending -= 1
            ready.append((number, PairBatch(*(torch.from_numpy(array) for array in arrays))))
        return ready

    def close(self) -> None:
        for _ in self._workers:
            self._requests.put(None)
        for worker in self._workers:
            worker.terminate()
            worker.join()
        for channel in (self._requests, self._results):
            channel.cancel_join_thread()
            channel.close()

    def _wait(self) -> None:
        """Until there is a result or a worker has ended."""
        ended = [worker.sentinel for worker in self._workers]
        ready = wait([self._results._reader, *ended], timeout=_START_SECONDS)
        if not ready:
            raise TrainingError(f"no rendered pairs came for {_START_SECONDS:.0f} s")
        if self._results._reader not in ready:
            raise TrainingError("a rendering process ended unexpectedly")


def rendered_source(settings: RenderSettings) -> PairSource:
    """The source of rendered pairs; a function, so that another process can be told to call it."""
    return RenderedPairs(settings)


def _work(make_source: Callable[[], PairSource], requests: Any, results: Any) -> None:
    """A worker's life: chunks as they are asked for, until None comes or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(1)
    source = make_source()
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            request = requests.get(timeout=_ORPHAN_SECONDS)
        except queue.Empty:
            continue
        if request is None:
            return
        try:
            batch = source.make(request)
        except (RuntimeError, ValueError, ArithmeticError, OSError, MemoryError) as error:
            results.put((request.number, f"{type(error).__name__}: {error}"))
            return
        arrays: list[np.ndarray] = [getattr(batch, field.name).cpu().numpy() for field in fields(batch)]
        results.put((request.number, arrays))
