"""The network as a pair predictor."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dust3r_ros.data import FloatArray, Intrinsics, PairPrediction, PairState, PreparedImage
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.network.model import Dust3rNetwork, Pointmaps
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo

log = logging.getLogger(__name__)

_POOLED = 32  # axes onto which tokens are projected for an image's descriptor
_MOST_PAIRS = 8  # in one batch
_CACHE_BYTES = 3 << 19  # of one core, for a hidden layer: on a CPU a batch that needs more is slower


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image's tokens (1, N, C), on the network's device, and its (H, W) in pixels."""

    tokens: Tensor
    size: tuple[int, int]


class NetworkPredictor(PairPredictor[EncodedImage]):
    """Pointmaps by DUSt3R: an image is encoded once, its pairs are decoded from the kept tokens.

    ``max_pairs`` bounds the pairs decoded in one batch, and so the memory; by default it is what is fastest.
    """

    def __init__(self, model: Dust3rNetwork, *, max_pairs: int | None = None) -> None:
        if max_pairs is not None and max_pairs < 1:
            raise ValueError(f"max_pairs must be at least 1, got {max_pairs}")
        self.model = model.eval()
        self._max_pairs = max_pairs

    @property
    def info(self) -> PredictorInfo:
        """Name and licence of the weights, and where they run."""
        source = self.model.source
        return PredictorInfo(source.name, source.trained, source.licence, str(self.model.device))

    @property
    def image_size(self) -> ImageSize:
        """The form of image the network was trained on."""
        return self.model.config.image_size

    @torch.inference_mode()
    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> EncodedImage:
        """Tokens of one image; DUSt3R uses neither the camera nor its intrinsics.

        Raises DeviceMemoryError when the device has too little memory.
        """
        try:
            pixels = torch.tensor(image.pixels, device=self.model.device).permute(2, 0, 1)[None]
            return EncodedImage(self.model.encode(pixels.float() / 127.5 - 1.0), (image.height, image.width))
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{self.model.device} has no memory for an image") from error

    @torch.inference_mode()
    def describe(self, encoded: EncodedImage) -> FloatArray:
        """Second-order pooling of the tokens (528,): which features come together, wherever they are in the image.

        After Carreira et al., ECCV 2012, on a fixed random projection of the tokens, with signed square roots.
        Raises DeviceMemoryError when the device has too little memory.
        """
        try:
            return _pooled(encoded.tokens[0].float())
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{self.model.device} has no memory to describe an image") from error

    @torch.inference_mode()
    def predict(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[PairPrediction]:
        """One prediction for each ordered pair; those of equal image sizes share batches.

        Batches become smaller where the device's memory is too small for them, and stay so. Raises DeviceMemoryError
        when it is too small for a single pair.
        """
        by_size: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = defaultdict(list)
        for k, (i, j) in enumerate(pairs):
            by_size[i.size, j.size].append(k)
        predictions: dict[int, PairPrediction] = {}
        for (size_i, size_j), members in by_size.items():
            done = 0
            while done < len(members):
                batch = members[done : done + (self._max_pairs or self._best_pairs(size_i))]
                found = self._decode([pairs[k] for k in batch], size_i, size_j)
                if found is None:
                    self._shrink(len(batch))
                    continue
                predictions.update(zip(batch, found, strict=True))
                done += len(batch)
        return [predictions[k] for k in range(len(pairs))]

    def _decode(
        self, pairs: Sequence[tuple[EncodedImage, EncodedImage]], size_i: tuple[int, int], size_j: tuple[int, int]
    ) -> list[PairPrediction] | None:
        """The predictions of one batch; None when the device has too little memory."""
        try:
            tokens_i = torch.cat([i.tokens for i, _ in pairs])
            tokens_j = torch.cat([j.tokens for _, j in pairs])
            return self._to_predictions(self.model.decode(tokens_i, tokens_j, size_i, size_j))
        except torch.cuda.OutOfMemoryError:
            return None

    def _best_pairs(self, size: tuple[int, int]) -> int:
        config = self.model.config
        if self.model.device.type != "cpu":
            return _MOST_PAIRS
        tokens = size[0] * size[1] // config.patch**2
        hidden_bytes = int(tokens * config.dec_dim * config.mlp_ratio) * self.model.dtype.itemsize
        return min(_MOST_PAIRS, max(1, torch.get_num_threads() * _CACHE_BYTES // hidden_bytes))

    def _shrink(self, failed: int) -> None:
        """Smaller batches from now on. Outside the handler of the error, which keeps the failed batch's memory."""
        device = self.model.device
        if failed == 1:
            raise DeviceMemoryError(f"{device} has no memory for a pair of images")
        self._max_pairs = failed // 2
        log.warning("%s has no memory for %d pairs at once: %d from now on", device, failed, self._max_pairs)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _to_predictions(self, maps: Pointmaps) -> list[PairPrediction]:
        views_i = _finite(maps.points_i.cpu().numpy(), maps.conf_i.cpu().numpy())
        views_j = _finite(maps.points_j.cpu().numpy(), maps.conf_j.cpu().numpy())
        predictions = []
        for points_i, conf_i, points_j, conf_j in zip(*views_i, *views_j, strict=True):
            state = PairState.GOOD if conf_i.any() and conf_j.any() else PairState.FAILED
            predictions.append(PairPrediction(points_i, conf_i, points_j, conf_j, state))
        return predictions


def _pooled(tokens: Tensor) -> FloatArray:
    generator = torch.Generator().manual_seed(_POOLED)
    axes = torch.randn(tokens.shape[1], _POOLED, generator=generator).to(tokens.device)
    projected = tokens @ axes / tokens.shape[1] ** 0.5
    rows, columns = torch.triu_indices(_POOLED, _POOLED)
    moments = (projected.T @ projected / len(projected))[rows, columns]
    pooled = moments.sign() * moments.abs().sqrt()
    return np.nan_to_num((pooled / pooled.norm().clamp_min(1e-12)).cpu().numpy())


def _finite(points: FloatArray, conf: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixels whose point or confidence overflowed become "no prediction"."""
    with np.errstate(invalid="ignore", over="ignore"):  # the sums first: far quicker than every number by itself
        if np.isfinite(points.sum()) and np.isfinite(conf.sum()):
            return points, conf
    finite = np.isfinite(points).all(axis=-1) & np.isfinite(conf)
    if finite.all():
        return points, conf
    log.warning("%d of %d predicted points are not finite and are left out", finite.size - finite.sum(), finite.size)
    return np.where(finite[..., None], points, 0.0), np.where(finite, conf, 0.0)
