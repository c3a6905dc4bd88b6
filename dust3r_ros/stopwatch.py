"""How long the stages of a keyframe take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dust3r_ros.data import StageTimes


@dataclass(eq=False)
class Stopwatch:
    """Wall times of named stages."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as a stage of ``StageTimes``, or as more of one."""
        start = time.perf_counter()
        yield
        key = f"{name}_ms"
        self.milliseconds[key] = self.milliseconds.get(key, 0.0) + 1e3 * (time.perf_counter() - start)

    def times(self) -> StageTimes:
        """All stages so far."""
        return StageTimes(**self.milliseconds)
