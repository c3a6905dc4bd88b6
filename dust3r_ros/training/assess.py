"""How good a network is on rendered pairs that it was not trained on, against guesses that need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch

from dust3r_ros.alignment import pair_similarity
from dust3r_ros.data import FloatArray, PairPrediction
from dust3r_ros.geometry import Similarity
from dust3r_ros.network import Dust3rNetwork, Pointmaps
from dust3r_ros.pair_errors import PairErrors, median_errors, pair_errors
from dust3r_ros.training.pairs import (
    HELD_OUT_SEED,
    ChunkRequest,
    PairBatch,
    PairSource,
    RenderedPairs,
    RenderSettings,
    network_images,
)

BASELINE = (0.03, 2.0)  # metres
_TEXTURES = 96


@dataclass(frozen=True)
class Assessment:
    """A network's errors, and those of two guesses: the same pose (any direction), and a plane of constant depth.

    Medians over pairs, of the AbsRel of depth the mean.
    """

    model: PairErrors
    trivial: PairErrors
    pairs: int

    @property
    def times_better(self) -> tuple[float, float, float]:
        """How many times smaller the network's errors are: rotation, direction, depth."""
        a, b = self.trivial, self.model
        names = ("rotation_deg", "direction_deg", "absrel")
        rotation, direction, depth = (getattr(a, name) / max(getattr(b, name), 1e-9) for name in names)
        return rotation, direction, depth


def held_out_pairs(size: tuple[int, int], pairs: int, device: str = "cpu") -> PairBatch:
    """At least ``pairs`` pairs of images (H, W), always the same on the same kind of device; nothing of them is in the
    training: other textures, other objects, other scenes.
    """
    source: PairSource = RenderedPairs(RenderSettings(HELD_OUT_SEED, _TEXTURES, device=device, pairs=1))
    chunks: list[PairBatch] = []
    for number in count():
        chunks.append(source.make(ChunkRequest(number, size, BASELINE)))
        if sum(map(len, chunks)) >= pairs:
            break
    rgb, depth, k, pose = (
        torch.cat([getattr(c, name) for c in chunks]) for name in ("rgb", "depth", "intrinsics", "second_to_first")
    )
    return PairBatch(rgb, depth, k, pose)


@torch.inference_mode()
def assess(model: Dust3rNetwork, pairs: PairBatch, *, batch: int = 16, bfloat16: bool = False) -> Assessment:
    """Errors on pairs, which are degraded as real cameras do, always in the same way."""
    found: list[PairErrors] = []
    guessed: list[PairErrors] = []
    training = model.training
    model.eval()
    generator = torch.Generator(model.device).manual_seed(0)
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch].to(model.device)
        images = network_images(part, generator)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
            first, second = model.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]).unbind(1)
            forward, backward = model.decode(first, second, part.size), model.decode(second, first, part.size)
        found += _against_truth(part, *_predicted(forward, backward))
        guessed += _against_truth(part, [None] * len(part), np.ones(tuple(part.depth[:, 0].shape)))
    model.train(training)
    return Assessment(_summary(found), _summary(guessed), len(pairs))


def _predicted(forward: Pointmaps, backward: Pointmaps) -> tuple[list[Similarity | None], FloatArray]:
    """For each pair of a batch the second camera in the first's frame, and the first view's depth.

    It takes both views' points in the second's frame (``backward``: the pair the other way round) onto those in the
    first's.
    """
    pairs = range(len(forward.points_i))
    found = [pair_similarity(_prediction(forward, number), _prediction(backward, number)) for number in pairs]
    return found, forward.points_i[..., 2].float().cpu().numpy()


def _prediction(maps: Pointmaps, number: int) -> PairPrediction:
    parts = (maps.points_i, maps.conf_i, maps.points_j, maps.conf_j)
    points_i, conf_i, points_j, conf_j = (part[number].float().cpu().numpy() for part in parts)
    return PairPrediction(points_i, conf_i, points_j, conf_j)


def _against_truth(batch: PairBatch, found: Sequence[Similarity | None], depth: FloatArray) -> list[PairErrors]:
    motions = batch.second_to_first.double().cpu().numpy()
    true_depth = batch.depth[:, 0].float().cpu().numpy()
    return [
        pair_errors(motion, truth, seen, true)
        for motion, truth, seen, true in zip(found, motions, depth, true_depth)
        if (true > 0).any()
    ]


def _summary(errors: list[PairErrors]) -> PairErrors:
    depth = float(np.mean([e.absrel for e in errors])) if errors else float("nan")
    return replace(median_errors(errors), absrel=depth)
