"""How good a network is on rendered pairs that it was not trained on, against guesses that need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from dust3r_ros.alignment import pair_similarity
from dust3r_ros.data import FloatArray, PairPrediction
from dust3r_ros.geometry import Similarity, rotation_angle_deg
from dust3r_ros.network import Dust3rNetwork, Pointmaps
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
_LEAST_BASELINE = 0.02  # of the mean depth: below it the direction of the translation means nothing
_TEXTURES = 96


@dataclass(frozen=True)
class PairErrors:
    """Medians over pairs, degrees, and the mean over pairs of the first view's depth AbsRel after the median scale.

    ``direction_deg`` is taken over the pairs whose cameras are at least 2 % of the mean depth apart.
    """

    rotation_deg: float
    direction_deg: float
    absrel: float


@dataclass(frozen=True)
class Assessment:
    """A network's errors, and those of two guesses: the same pose (any direction), and a plane of constant depth."""

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
    found: list[tuple[float, float, float]] = []
    guessed: list[tuple[float, float, float]] = []
    training = model.training
    model.eval()
    generator = torch.Generator(model.device).manual_seed(0)
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch].to(model.device)
        images = network_images(part, generator)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
            first, second = model.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]).unbind(1)
            forward, backward = model.decode(first, second, part.size), model.decode(second, first, part.size)
        found += _errors(part, forward, backward)
        guessed += _guesses(part)
    model.train(training)
    return Assessment(_summary(found), _summary(guessed), len(pairs))


def relative_pose(forward: Pointmaps, backward: Pointmaps, number: int) -> Similarity:
    """The second camera in the first's frame for one pair of a batch: what takes both views' points in the second's
    frame (``backward``: the pair the other way round) onto those in the first's. The same pose where there is no such
    thing.
    """
    return pair_similarity(_prediction(forward, number), _prediction(backward, number)) or Similarity.identity()


def _prediction(maps: Pointmaps, number: int) -> PairPrediction:
    parts = (maps.points_i, maps.conf_i, maps.points_j, maps.conf_j)
    points_i, conf_i, points_j, conf_j = (part[number].float().cpu().numpy() for part in parts)
    return PairPrediction(points_i, conf_i, points_j, conf_j)


def _errors(batch: PairBatch, forward: Pointmaps, backward: Pointmaps) -> list[tuple[float, float, float]]:
    poses = [relative_pose(forward, backward, number) for number in range(len(batch))]
    depth = forward.points_i[..., 2].float().cpu().numpy()
    return _against_truth(batch, [p.rotation for p in poses], [p.translation for p in poses], depth)


def _guesses(batch: PairBatch) -> list[tuple[float, float, float]]:
    """No rotation, every direction as likely as any other (90 degrees in the median), the same depth everywhere."""
    still = [np.eye(3)] * len(batch)
    across = [_perpendicular(t) for t in batch.second_to_first[:, :3, 3].cpu().numpy()]
    return _against_truth(batch, still, across, np.ones(tuple(batch.depth[:, 0].shape)))


def _perpendicular(direction: FloatArray) -> FloatArray:
    return np.cross(direction, np.eye(3)[np.abs(direction).argmin()])


def _against_truth(
    batch: PairBatch, rotations: Sequence[FloatArray], translations: Sequence[FloatArray], depth: FloatArray
) -> list[tuple[float, float, float]]:
    truth = batch.second_to_first.double().cpu().numpy()
    true_depth = batch.depth[:, 0].float().cpu().numpy()
    valid = true_depth > 0
    errors = []
    for number, pose in enumerate(truth):
        rotation = float(rotation_angle_deg(rotations[number].T @ pose[:3, :3]))
        known = valid[number]
        if not known.any():
            continue
        near = np.linalg.norm(pose[:3, 3]) < _LEAST_BASELINE * true_depth[number][known].mean()
        direction = float("nan") if near else _angle_deg(translations[number], pose[:3, 3])
        errors.append((rotation, direction, _absrel(depth[number][known], true_depth[number][known])))
    return errors


def _absrel(depth: FloatArray, truth: FloatArray) -> float:
    """Mean relative error after the median scale; a depth that is not positive and finite has an error of 1."""
    use = np.isfinite(depth) & (depth > 0)
    ratio = depth[use] / truth[use]
    wrong = np.ones(len(truth))
    wrong[use] = np.abs(ratio / np.median(ratio) - 1) if len(ratio) else 1.0
    return float(wrong.mean())


def _angle_deg(a: FloatArray, b: FloatArray) -> float:
    """Between two directions; as for a random one where there is none."""
    if not np.linalg.norm(a) > 0:
        return 90.0
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def _summary(errors: list[tuple[float, float, float]]) -> PairErrors:
    if not errors:
        return PairErrors(float("nan"), float("nan"), float("nan"))
    table = np.array(errors)
    known = table[np.isfinite(table[:, 1]), 1]
    direction = float(np.median(known)) if len(known) else float("nan")
    return PairErrors(float(np.median(table[:, 0])), direction, float(table[:, 2].mean()))
