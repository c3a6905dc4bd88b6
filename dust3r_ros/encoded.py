"""A keyframe on its way through the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, Keyframe


@dataclass(frozen=True, eq=False)
class EncodedKeyframe:
    """A keyframe with what the predictor keeps of it; ``intrinsics`` are the given ones, None when unknown.

    ``descriptor`` and ``jpeg`` are by what it is found again (``Revisits.described``), None when it never is.
    """

    keyframe: Keyframe
    encoded: Any
    intrinsics: Intrinsics | None
    descriptor: FloatArray | None = None
    jpeg: ByteImage | None = None

    @property
    def index(self) -> int:
        return self.keyframe.index

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of its pointmaps."""
        return self.keyframe.image.height, self.keyframe.image.width
