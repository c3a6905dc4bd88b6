"""How fast the network runs, by precision, batch and window, against the machine's limit and the published way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dust3r_ros.data import ImageTransform, PreparedImage
from dust3r_ros.evaluation.reference import ReferenceRunner, stream_pairs
from dust3r_ros.evaluation.timing import PeakMemory, Timing, matrix_rate, time_together
from dust3r_ros.network import Dust3rNetwork, EncodedImage, NetworkConfig, NetworkPredictor, prepared_network

STREAM_WINDOW = 3
Maker = Callable[[str], Dust3rNetwork]  # the network in a precision: auto, or a dtype's name


@dataclass(frozen=True)
class Work:
    """Floating-point operations of the network: of one image encoded, and of one ordered pair decoded, heads included.

    Those of matrix products, attention and convolutions, as PyTorch counts them: a product and a sum are two.
    """

    encode: int
    decode: int

    @classmethod
    def of(cls, config: NetworkConfig, size: tuple[int, int]) -> Work:
        """Counted on images (H, W) without computing anything."""
        with FakeTensorMode(), torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            model = Dust3rNetwork(config)
            images = torch.empty(1, 3, *size)
            with FlopCounterMode(display=False) as encoding:
                tokens = model.encode(images)
            with FlopCounterMode(display=False) as decoding:
                model.decode(tokens, tokens, size)
        return cls(encoding.get_total_flops(), decoding.get_total_flops())


@dataclass(frozen=True)
class PrecisionSpeed:
    """One precision. Rates are FLOP/s; ``matrix_rate`` is the machine's in a plain product of that precision.

    ``encode`` is one image from its pixels. ``encode_batch`` is by images in a batch, ``decode`` by pairs in one,
    ``keyframe`` by window: an image encoded and its pairs with the window predicted both ways, from pixels to arrays.
    """

    dtype: str
    matrix_rate: float
    encode: Timing
    encode_batch: dict[int, Timing]
    decode: dict[int, Timing]
    keyframe: dict[int, Timing]
    peak_bytes: int | None

    def encode_share(self, work: Work) -> float:
        """The encoder's rate as a fraction of the matrix product's."""
        return work.encode / self.encode.best / self.matrix_rate

    def decode_share(self, work: Work) -> float:
        """The decoder's, with its heads, likewise, in the batch that is fastest."""
        fastest = min(timing.best / batch for batch, timing in self.decode.items())
        return work.decode / fastest / self.matrix_rate


@dataclass(frozen=True)
class StreamSpeed:
    """Keyframes that come one by one, each paired both ways with the three before it: the time of them all.

    By precision; the reference's float32 and bfloat16 by autocast, of which one pair is measured and multiplied.
    """

    keyframes: int
    pairs: int
    ours: dict[str, Timing]
    reference: dict[str, Timing]


def measure_precision(
    make: Maker, dtype: str, size: tuple[int, int], *,
    batches: Sequence[int], windows: Sequence[int], rounds: int, execution: str = "eager",
) -> PrecisionSpeed:  # fmt: skip
    """The speed of the network that ``make`` gives in a precision, on images (H, W)."""
    predictor = NetworkPredictor(prepared_network(make(dtype), execution))
    predictor.warm_up(size, 2 * max(windows, default=1))
    device, precision = predictor.model.device, predictor.model.dtype
    peak = PeakMemory(device)
    views = [predictor.encode(picture(size, seed), "camera") for seed in range(max(windows, default=1) + 1)]
    new = picture(size, -1)
    calls: dict[str, Callable[[], object]] = {"encode": lambda: predictor.encode(new, "camera")}
    for batch in batches:
        calls[f"encode {batch}"] = partial(_encode, predictor, torch.randn(batch, 3, *size).to(device))
        calls[f"decode {batch}"] = partial(_decode, predictor, views, batch)
    for window in windows:
        calls[f"window {window}"] = partial(_keyframe, predictor, new, views[:window])
    times = time_together(calls, rounds, device)
    return PrecisionSpeed(
        dtype=str(precision).removeprefix("torch."),
        matrix_rate=matrix_rate(precision, device),
        encode=times["encode"],
        encode_batch={batch: times[f"encode {batch}"] for batch in batches},
        decode={batch: times[f"decode {batch}"] for batch in batches},
        keyframe={window: times[f"window {window}"] for window in windows},
        peak_bytes=peak.bytes,
    )


def measure_stream(
    make: Maker, dtypes: Sequence[str], size: tuple[int, int], *, keyframes: int, rounds: int, execution: str = "eager",
) -> StreamSpeed:  # fmt: skip
    """The same stream by this package in each precision and by the reference's way, in turns.

    ``make`` gives the network in a precision; the reference runs its float32.
    """
    exact = make("float32")
    device = exact.device
    predictors = [NetworkPredictor(prepared_network(make(dtype), execution)) for dtype in dtypes]
    for predictor in predictors:
        predictor.warm_up(size, 2 * STREAM_WINDOW)
    pictures = [picture(size, seed) for seed in range(keyframes)]
    image_i, image_j = (_tensor(image).to(device) for image in pictures[:2])
    plain, cast = ReferenceRunner(exact), ReferenceRunner(exact, autocast=True)
    calls: dict[str, Callable[[], object]] = {
        "reference float32": lambda: plain.pair(image_i, image_j),
        "reference bfloat16": lambda: cast.pair(image_i, image_j),
    }
    for predictor in predictors:
        calls[str(predictor.model.dtype)] = partial(_stream, predictor, pictures)
    times = time_together(calls, rounds, device)
    pairs = stream_pairs(keyframes, STREAM_WINDOW)
    return StreamSpeed(
        keyframes=keyframes,
        pairs=pairs,
        ours={n.removeprefix("torch."): t for n, t in times.items() if not n.startswith("reference")},
        reference={dtype: times[f"reference {dtype}"].times(pairs) for dtype in ("float32", "bfloat16")},
    )


def picture(size: tuple[int, int], seed: int) -> PreparedImage:
    """An image (H, W) of noise: what is in it costs nothing."""
    height, width = size
    pixels = np.random.default_rng(seed + 1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    return PreparedImage(pixels, ImageTransform(1.0, 1.0, 0.0, 0.0, width, height, width, height))


def _tensor(image: PreparedImage) -> torch.Tensor:
    return torch.tensor(image.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0


@torch.inference_mode()
def _encode(predictor: NetworkPredictor, images: torch.Tensor) -> None:
    predictor.model.encode(images)


@torch.inference_mode()
def _decode(predictor: NetworkPredictor, views: Sequence[EncodedImage], batch: int) -> None:
    """All of a batch at once, whatever bound the predictor has for its own."""
    tokens = [torch.cat([views[(k + shift) % len(views)].tokens for k in range(batch)]) for shift in (0, 1)]
    predictor.model.decode(tokens[0], tokens[1], views[0].size)


def _keyframe(predictor: NetworkPredictor, image: PreparedImage, window: Sequence[EncodedImage]) -> EncodedImage:
    new = predictor.encode(image, "camera")
    predictor.predict([pair for old in window for pair in ((old, new), (new, old))])
    return new


def _stream(predictor: NetworkPredictor, images: Sequence[PreparedImage]) -> None:
    window: deque[EncodedImage] = deque(maxlen=STREAM_WINDOW)
    for image in images:
        window.append(_keyframe(predictor, image, window))
