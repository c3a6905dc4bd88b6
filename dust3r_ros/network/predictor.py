"""The network as a pair predictor."""

from __future__ import annotations

import functools
import logging
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dust3r_ros.data import FloatArray, ImageTransform, Intrinsics, PairPrediction, PairState, PreparedImage
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.network.compiled import CompiledNetwork
from dust3r_ros.network.model import Dust3rNetwork, Pointmaps
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo

log = logging.getLogger(__name__)

_POOLED = 32  # axes onto which tokens are projected for an image's descriptor
_MOST_PAIRS = 8  # in one batch
_CACHE_BYTES = 3 << 19  # of one core, for a hidden layer: on a CPU a larger batch gains little or loses
_ROWS = 784  # tokens in a product up to which a larger batch gains even so: every batch reads all matrices
_RECORDING = 3  # calls after which a compiled network is as fast as it gets


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image's tokens (1, N, C), on the network's device, and its (H, W) in pixels."""

    tokens: Tensor
    size: tuple[int, int]


class NetworkPredictor(PairPredictor[EncodedImage]):
    """Pointmaps by DUSt3R: an image is encoded once, its pairs are decoded from the kept tokens.

    ``max_pairs`` bounds the pairs decoded in one batch, and so the memory; by default it is what is fastest. A compiled
    network gets batches of 1, 2, 4 or 8 pairs only, because each number is compiled by itself.
    """

    def __init__(self, model: Dust3rNetwork | CompiledNetwork, *, max_pairs: int | None = None) -> None:
        if max_pairs is not None and max_pairs < 1:
            raise ValueError(f"max_pairs must be at least 1, got {max_pairs}")
        self.model = model if isinstance(model, CompiledNetwork) else model.eval()
        self._max_pairs = max_pairs

    @functools.cached_property
    def _pooling(self) -> _Pooling:
        return _Pooling.of(self.model.config.enc_dim, self.model.device)

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
            pixels = _to_device(torch.tensor(image.pixels), self.model.device).permute(2, 0, 1)[None]
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
            return self._pooling(encoded.tokens[0].float())
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{self.model.device} has no memory to describe an image") from error

    @torch.inference_mode()
    def predict(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[PairPrediction]:
        """One prediction for each ordered pair; those of equal image sizes share batches.

        While a GPU computes a batch, the one before is taken from it. Batches become smaller where the device's memory
        is too small for them, and stay so. Raises DeviceMemoryError when it is too small for a single pair.
        """
        by_size: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = defaultdict(list)
        for k, (i, j) in enumerate(pairs):
            by_size[i.size, j.size].append(k)
        predictions: dict[int, PairPrediction] = {}
        coming: deque[tuple[list[int], _Arriving]] = deque()

        def take() -> None:
            batch, arriving = coming.popleft()
            predictions.update(zip(batch, _to_predictions(arriving), strict=True))

        for (size_i, size_j), members in by_size.items():
            while members:
                batch = members[: self._batch(len(members), size_i)]
                arriving = self._decode([pairs[k] for k in batch], size_i, size_j)
                if arriving is None:
                    self._shrink(len(batch))
                    continue
                members = members[len(batch) :]
                coming.append((batch, arriving))
                if len(coming) > 1:
                    take()
        if coming:
            take()
        return [predictions[k] for k in range(len(pairs))]

    def warm_up(self, size: tuple[int, int], pairs: int) -> None:
        """Compile, lay out and load what an image (H, W) and its first pairs need, by predicting black ones.

        Raises DeviceMemoryError as ``encode`` and ``predict`` do, ConfigError where nothing can be compiled.
        """
        height, width = size
        transform = ImageTransform(1.0, 1.0, 0.0, 0.0, width, height, width, height)
        black = PreparedImage(np.zeros((height, width, 3), np.uint8), transform)
        compiled = isinstance(self.model, CompiledNetwork)
        for _ in range(_RECORDING if compiled else 1):
            view = self.encode(black, "")
            self.describe(view)
            most = self._batch(pairs, size)
            for count in [1 << k for k in range(most.bit_length())] if compiled else [pairs]:
                self.predict([(view, view)] * count)

    def _decode(
        self, pairs: Sequence[tuple[EncodedImage, EncodedImage]], size_i: tuple[int, int], size_j: tuple[int, int]
    ) -> _Arriving | None:
        """The pointmaps of one batch, perhaps still being computed; None when the device has too little memory."""
        try:
            tokens_i = torch.cat([i.tokens for i, _ in pairs])
            tokens_j = torch.cat([j.tokens for _, j in pairs])
            return _Arriving(self.model.decode(tokens_i, tokens_j, size_i, size_j))
        except torch.cuda.OutOfMemoryError:
            return None

    def _batch(self, pairs: int, size: tuple[int, int]) -> int:
        """How many of so many pairs are decoded at once."""
        batch = min(pairs, self._max_pairs or self._best_pairs(size))
        return 1 << (batch.bit_length() - 1) if isinstance(self.model, CompiledNetwork) else batch

    def _best_pairs(self, size: tuple[int, int]) -> int:
        config = self.model.config
        if self.model.device.type != "cpu":
            return _MOST_PAIRS
        tokens = size[0] * size[1] // config.patch**2
        hidden_bytes = int(tokens * config.dec_dim * config.mlp_ratio) * self.model.dtype.itemsize
        return min(_MOST_PAIRS, max(1, _ROWS // tokens, torch.get_num_threads() * _CACHE_BYTES // hidden_bytes))

    def _shrink(self, failed: int) -> None:
        """Smaller batches from now on. Outside the handler of the error, which keeps the failed batch's memory."""
        device = self.model.device
        if failed == 1:
            raise DeviceMemoryError(f"{device} has no memory for a pair of images")
        self._max_pairs = failed // 2
        log.warning("%s has no memory for %d pairs at once: %d from now on", device, failed, self._max_pairs)
        if device.type == "cuda":
            torch.cuda.empty_cache()


class _Arriving:
    """Pointmaps on their way to the processor: from a GPU without waiting for it."""

    def __init__(self, maps: Pointmaps) -> None:
        on_cuda = maps.points_i.is_cuda
        tensors = (maps.points_i, maps.conf_i, maps.points_j, maps.conf_j)
        self._host = [tensor.to("cpu", non_blocking=on_cuda) for tensor in tensors]  # into pinned memory, if so
        self._done: torch.cuda.Event | None = None
        if on_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(maps.points_i.device))

    def arrays(self) -> list[FloatArray]:
        """Points and confidences of view i, then of j, once they are there."""
        if self._done is None:
            return [tensor.numpy() for tensor in self._host]
        self._done.synchronize()
        return [tensor.numpy().copy() for tensor in self._host]  # pinned memory is for the next ones


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """From the processor's memory; to a GPU without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _to_predictions(arriving: _Arriving) -> list[PairPrediction]:
    points_i, conf_i, points_j, conf_j = arriving.arrays()
    predictions = []
    for view_i, view_j in zip(zip(*_finite(points_i, conf_i)), zip(*_finite(points_j, conf_j)), strict=True):
        state = PairState.GOOD if view_i[1].any() and view_j[1].any() else PairState.FAILED
        predictions.append(PairPrediction(*view_i, *view_j, state))
    return predictions


@dataclass(frozen=True, eq=False)
class _Pooling:
    """Random axes (C, 32) that tokens are projected onto, and the rows and columns of the moments that are kept."""

    axes: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, channels: int, device: torch.device) -> _Pooling:
        axes = torch.randn(channels, _POOLED, generator=torch.Generator().manual_seed(_POOLED))
        rows, columns = torch.triu_indices(_POOLED, _POOLED, device=device)
        return cls(axes.to(device), rows, columns)

    def __call__(self, tokens: Tensor) -> FloatArray:
        projected = tokens @ self.axes / tokens.shape[1] ** 0.5
        moments = (projected.T @ projected / len(projected))[self.rows, self.columns]
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
