"""Self-calibration: the focal of a camera from the epipolar geometry of its own image pairs, pooled.

One pair says little: for some motions (pure translation, a fixated point) nothing at all. Therefore every pair gives a
*profile*, the robust epipolar cost that the best relative pose reaches under each candidate focal, and a camera's pairs
are added up with a prior. A pair that cannot tell has a flat profile and adds nothing. Square pixels and a central
principal point are assumed. Focals are relative to ``sqrt(width * height)``, which a turned or resized image keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from dust3r_ros.data import FloatArray, PairState
from dust3r_ros.geometric.matching import Matches
from dust3r_ros.geometric.motion import find_motion
from dust3r_ros.geometric.twoview import RelativePose, decompose, refine_poses, sampson

PRIOR = 1.0  # a view 60 degrees wide at 4:3
PRIOR_SPREAD = 0.35  # of the logarithm
GUESS_SPREAD = 0.05  # of the logarithm of a focal that the user guesses
CANDIDATES = np.exp(np.linspace(np.log(0.35), np.log(3.5), 25))
MAX_MATCHES = 250
MAX_PAIRS = 60
NOISE_PX = 0.5
TEMPER = 0.25  # errors of neighbouring matches are not independent: lens distortion, rolling shutter
PAIR_LIMIT = 4.0  # how much one pair may speak against a focal


@dataclass(frozen=True)
class Focal:
    """A focal and its standard deviation, pixels of an image as large as asked for."""

    focal_px: float
    spread_px: float


@dataclass(frozen=True, eq=False)
class SizedMatches:
    """Matches of two images of one camera, with both images' (width, height)."""

    matches: Matches
    size_i: tuple[int, int]
    size_j: tuple[int, int]


def relative_focal(
    total: FloatArray, prior: float = PRIOR, prior_spread: float = PRIOR_SPREAD
) -> tuple[float, float]:  # fmt: skip
    """Mean and standard deviation of the logarithm of the relative focal under a summed profile (25,) and a prior."""
    log_focal = np.log(CANDIDATES)
    fine = np.linspace(log_focal[0], log_focal[-1], 2000)
    cost = CubicSpline(log_focal, total)(fine) + (fine - np.log(prior)) ** 2 / (2 * prior_spread**2)
    weight = np.exp(-(cost - cost.min()))
    weight /= weight.sum()
    mean = float(weight @ fine)
    return mean, float(np.sqrt(weight @ (fine - mean) ** 2))


def focal_profile(pair: SizedMatches, start: float, seed: int) -> FloatArray | None:
    """How much worse than the best each of ``CANDIDATES`` explains a pair (25,); None when its motion cannot tell.

    ``start`` is the relative focal with which outliers are found.
    """
    unit_i, unit_j = (float(np.sqrt(w * h)) for w, h in (pair.size_i, pair.size_j))
    centred_i = (pair.matches.points_i - np.array(pair.size_i) / 2) / unit_i
    centred_j = (pair.matches.points_j - np.array(pair.size_j) / 2) / unit_j
    pixel = 1 / np.sqrt(unit_i * unit_j)
    motion = find_motion(centred_i / start, centred_j / start, pixel / start, seed)
    if motion.state is not PairState.GOOD or motion.pose is None:
        return None
    keep = np.flatnonzero(motion.inliers)
    keep = keep[np.linspace(0, len(keep) - 1, min(len(keep), MAX_MATCHES)).astype(int)]
    return _profile(motion.pose, start, centred_i[keep], centred_j[keep], pixel)


def _profile(
    pose: RelativePose, start: float, centred_i: FloatArray, centred_j: FloatArray, pixel: float
) -> FloatArray:
    rays_i = centred_i / CANDIDATES[:, None, None]
    rays_j = centred_j / CANDIDATES[:, None, None]
    poses = [_transfer(pose, start, focal, a, b) for focal, a, b in zip(CANDIDATES, rays_i, rays_j)]
    rotations, translations = refine_poses(
        np.stack([p.rotation for p in poses]), np.stack([p.translation for p in poses]), rays_i, rays_j,
        0.3 * pixel / CANDIDATES,
    )  # fmt: skip
    costs = [
        np.log1p((sampson(RelativePose(r, t).essential, a, b) * focal / (NOISE_PX * pixel)) ** 2).sum()
        for r, t, a, b, focal in zip(rotations, translations, rays_i, rays_j, CANDIDATES)
    ]
    rise = TEMPER * (np.array(costs) - min(costs))
    return PAIR_LIMIT * (1 - np.exp(-rise / PAIR_LIMIT))


def _transfer(pose: RelativePose, focal: float, other: float, rays_i: FloatArray, rays_j: FloatArray) -> RelativePose:
    """The pose under another focal that has nearly the same fundamental matrix."""
    scale = np.diag([other / focal, other / focal, 1.0])
    return decompose(scale @ pose.essential @ scale, rays_i, rays_j)


class FocalCalibrator:
    """Pools the profiles of every camera's pairs; more pairs make the focal surer, up to a limit where it stays."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._totals: dict[str, FloatArray] = {}
        self._counts: dict[str, int] = {}
        self._guesses: dict[str, float] = {}

    def guess(self, camera: str, relative: float) -> None:
        """A first guess of a camera's relative focal, to which its pairs are added."""
        self._guesses[camera] = relative

    def observe(self, camera: str, pairs: list[SizedMatches]) -> None:
        """Take in pairs of a camera, those with most matches first, until it has enough."""
        for pair in sorted(pairs, key=lambda p: -len(p.matches)):
            if self._counts.get(camera, 0) >= MAX_PAIRS:
                return
            profile = focal_profile(pair, self.relative(camera)[0], self._seed)
            if profile is not None:
                self._totals[camera] = self._totals.get(camera, 0) + profile
                self._counts[camera] = self._counts.get(camera, 0) + 1

    def relative(self, camera: str) -> tuple[float, float]:
        """Focal over ``sqrt(width * height)``, and the standard deviation of its logarithm."""
        prior = (self._guesses[camera], GUESS_SPREAD) if camera in self._guesses else (PRIOR, PRIOR_SPREAD)
        mean, spread = relative_focal(self._totals.get(camera, np.zeros(len(CANDIDATES))), *prior)
        return float(np.exp(mean)), spread

    def focal(self, camera: str, width: int, height: int) -> Focal:
        """The camera's focal for an image of this size; the prior's while there is no pair."""
        relative, spread = self.relative(camera)
        focal_px = relative * float(np.sqrt(width * height))
        return Focal(focal_px, focal_px * spread)
