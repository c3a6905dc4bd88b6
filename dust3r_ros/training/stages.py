"""What a training run does when: completion first, then pointmaps, images growing and cameras moving apart.

Everything is a function of the number of pairs seen, so a run that was interrupted goes on exactly where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from dust3r_ros.errors import TrainingError
from dust3r_ros.network import NetworkConfig

FINAL_LEARNING_RATE = 0.02  # of the highest
_LEAST_PATCHES = 4  # along a side


class Task(Enum):
    """What is learned."""

    COMPLETE = "complete"
    REGRESS = "regress"


@dataclass(frozen=True)
class Stage:
    """A part of a run: ``share`` of all its pairs, of images of ``sizes`` (H, W), in turns.

    ``farthest`` is the longest baseline of the pairs in metres at the beginning and at the end of the stage.
    """

    name: str
    task: Task
    share: float
    sizes: tuple[tuple[int, int], ...]
    farthest: tuple[float, float]


@dataclass(frozen=True)
class Position:
    """Where a run is: the stage, and how much of it is done, 0 to 1."""

    stage: Stage
    done: float

    @property
    def baseline(self) -> tuple[float, float]:
        """Shortest and longest baseline of new pairs now, metres; steps of a tenth of the stage."""
        low, high = self.stage.farthest
        return 0.03, low * (high / low) ** (math.floor(10 * self.done) / 10)


def all_stages(config: NetworkConfig) -> tuple[Stage, ...]:
    """All stages, as a network that knows nothing goes through them.

    Sizes are 1/2, 3/4 and all of ``config.img_size``; the last in the aspect ratios cameras have.
    """
    half, more = (fitting(config, scale) for scale in (0.5, 0.75))
    return (
        Stage("completion", Task.COMPLETE, 0.05, (half,), (1.0, 1.0)),
        Stage("near", Task.REGRESS, 0.45, (half,), (0.3, 2.0)),
        Stage("middle", Task.REGRESS, 0.35, (more,), (2.0, 2.0)),
        Stage("full", Task.REGRESS, 0.15, aspects(config), (2.0, 2.0)),
    )


def chosen(stages: Sequence[Stage], names: Sequence[str]) -> tuple[Stage, ...]:
    """The stages of these names in their order, of all pairs. Raises TrainingError for names that are none."""
    unknown = sorted(set(names) - {stage.name for stage in stages})
    kept = [stage for stage in stages if stage.name in names]
    if unknown or not kept:
        raise TrainingError(
            f"stages must be some of {', '.join(stage.name for stage in stages)}, got {', '.join(unknown) or 'none'}"
        )
    return tuple(replace(stage, share=stage.share / sum(s.share for s in kept)) for stage in kept)


def fitting(config: NetworkConfig, scale: float) -> tuple[int, int]:
    """The training image's size (H, W), scaled and rounded to whole patches."""
    height, width = (max(_LEAST_PATCHES, round(scale * side / config.patch)) for side in config.img_size)
    return height * config.patch, width * config.patch


def aspects(config: NetworkConfig) -> tuple[tuple[int, int], ...]:
    """The sizes (H, W) of the last stage: 4:3 twice, 16:9, square, and 4:3 upright; only squares for such a network."""
    if config.square:
        return (fitting(config, 1.0),)
    longest = max(config.img_size)

    def shaped(ratio: float) -> tuple[int, int]:
        short = max(_LEAST_PATCHES, round(longest / ratio / config.patch)) * config.patch
        return short, longest // config.patch * config.patch

    usual = shaped(4 / 3)
    square = shaped(5 / 4)[0]
    return (usual, shaped(16 / 9), usual, (square, square), usual[::-1])


def position(stages: tuple[Stage, ...], pairs: int, total: int) -> Position:
    """Where a run of ``total`` pairs is after ``pairs``; beyond the end it is at the end of the last stage."""
    start = 0.0
    for stage in stages:
        end = start + stage.share * total
        if pairs < end:
            return Position(stage, (pairs - start) / (end - start))
        start = end
    return Position(stages[-1], 1.0)


def learning_rate(highest: float, pairs: int, total: int, warm_up: float) -> float:
    """A linear rise over the first ``warm_up`` share of all pairs, then half a cosine down to nearly nothing."""
    progress = min(pairs / total, 1.0)
    if progress < warm_up:
        return highest * progress / warm_up
    fall = 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    return highest * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * fall)
