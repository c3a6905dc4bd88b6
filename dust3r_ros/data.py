"""The values that travel between the parts of the package.

Conventions, everywhere: camera axes x right, y down, z forward (OpenCV, REP-103 optical frame);
poses are camera to world, (4, 4) float64; pixel centres lie at integers + 0.5, so ``u = 0.5`` is
the middle of the first pixel and a principal point at the image centre is ``(width / 2, height / 2)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]
ByteImage = NDArray[np.uint8]


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera for one image size: ``u = fx * x / z + cx``, pixel centres at integers + 0.5.

    ``fx, fy, cx, cy`` are in pixels of an image ``width`` x ``height``.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        if not (self.fx > 0 and self.fy > 0):
            raise ValueError(f"focal length must be positive, got fx={self.fx} fy={self.fy}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"image size must be positive, got {self.width}x{self.height}")

    @classmethod
    def from_focal(cls, focal_px: float, width: int, height: int) -> Intrinsics:
        """Square pixels, principal point in the image centre."""
        return cls(focal_px, focal_px, width / 2, height / 2, width, height)

    @classmethod
    def from_matrix(
        cls, matrix: FloatArray, width: int, height: int, *, centres_at_integers: bool = False
    ) -> Intrinsics:
        """From K (3, 3). ``centres_at_integers`` says K uses OpenCV's and ROS's pixel convention."""
        shift = 0.5 if centres_at_integers else 0.0
        k = np.asarray(matrix, dtype=np.float64).reshape(3, 3)
        return cls(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]) + shift, float(k[1, 2]) + shift, width, height)

    def matrix(self, *, centres_at_integers: bool = False) -> FloatArray:
        """K (3, 3) float64; ``centres_at_integers`` gives OpenCV's and ROS's pixel convention."""
        shift = 0.5 if centres_at_integers else 0.0
        return np.array([[self.fx, 0.0, self.cx - shift], [0.0, self.fy, self.cy - shift], [0.0, 0.0, 1.0]])

    @property
    def focal_px(self) -> float:
        """Geometric mean of fx and fy, pixels."""
        return float(np.sqrt(self.fx * self.fy))


@dataclass(frozen=True)
class ImageTransform:
    """The affine map from an original image to the one the network sees: ``u_net = scale_x * u + offset_x``."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    original_width: int
    original_height: int
    network_width: int
    network_height: int

    def to_network(self, k: Intrinsics) -> Intrinsics:
        """Intrinsics of the original image, expressed for the network's image.

        Raises ValueError when ``k`` is for another image size than the original's.
        """
        if (k.width, k.height) != (self.original_width, self.original_height):
            raise ValueError(
                f"intrinsics must be for the original {self.original_width}x{self.original_height} image, "
                f"got {k.width}x{k.height}"
            )
        return Intrinsics(
            k.fx * self.scale_x,
            k.fy * self.scale_y,
            k.cx * self.scale_x + self.offset_x,
            k.cy * self.scale_y + self.offset_y,
            self.network_width,
            self.network_height,
        )

    def to_original(self, k: Intrinsics) -> Intrinsics:
        """Intrinsics of the network's image, expressed for the original; the inverse of ``to_network``."""
        if (k.width, k.height) != (self.network_width, self.network_height):
            raise ValueError(
                f"intrinsics must be for the network's {self.network_width}x{self.network_height} image, "
                f"got {k.width}x{k.height}"
            )
        return Intrinsics(
            k.fx / self.scale_x,
            k.fy / self.scale_y,
            (k.cx - self.offset_x) / self.scale_x,
            (k.cy - self.offset_y) / self.scale_y,
            self.original_width,
            self.original_height,
        )


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as the predictor sees it: ``pixels`` (H, W, 3) uint8 RGB, and how it came from the original."""

    pixels: ByteImage
    transform: ImageTransform

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


@dataclass(frozen=True, eq=False)
class PosedFrame:
    """An image of a recording whose truth is known.

    ``image`` (H, W, 3) uint8 RGB; ``intrinsics`` for it; ``camera_to_world`` (4, 4) float64; ``depth`` (H, W) float32,
    z of the pixel centres in the poses' unit, 0 where there is none, or None when unknown.
    """

    image: ByteImage
    stamp_ns: int
    intrinsics: Intrinsics
    camera_to_world: FloatArray
    depth: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image of a batch, loaded when it is needed.

    ``load`` returns (H, W, 3) uint8 RGB; ``intrinsics`` are for that size, None when unknown;
    images of one ``camera`` and one size share a focal.
    """

    name: str
    load: Callable[[], ByteImage]
    camera: str = "camera"
    intrinsics: Intrinsics | None = None
    stamp_ns: int = 0


class PairState(Enum):
    """What a predictor says of the geometry between two views."""

    GOOD = "good"
    PLANAR = "planar"  # the overlap is one plane: pose from a homography, ambiguous
    ROTATION_ONLY = "rotation only"  # no parallax: depth is not observable from this pair
    FAILED = "failed"  # no overlap found


@dataclass(frozen=True, eq=False)
class PairPrediction:
    """Pointmaps of two views, both in camera i's frame, up to one unknown scale (DUSt3R, section 3.1).

    ``points_i`` (H, W, 3) and ``points_j`` (H', W', 3) float32; ``conf_i`` (H, W) and ``conf_j`` (H', W')
    float32. The network's confidences are >= 1. A confidence of 0 means "no prediction at this pixel".
    """

    points_i: FloatArray
    conf_i: FloatArray
    points_j: FloatArray
    conf_j: FloatArray
    state: PairState = PairState.GOOD


@dataclass(frozen=True, eq=False)
class Edge:
    """A directed edge of the scene graph with its prediction: views ``i`` and ``j`` in camera i's frame."""

    i: int
    j: int
    prediction: PairPrediction


@dataclass(frozen=True, eq=False)
class ViewEstimate:
    """What alignment knows of one view.

    ``camera_to_world`` (4, 4) float64, rigid; ``depth`` (H, W) float32, z in world units, 0 where unknown;
    ``confidence`` (H, W) float32, 0 where unknown; ``intrinsics`` for the network's image;
    ``registered`` is False for a view no edge could place (its pose is then the identity).
    ``pose_covariance`` (6, 6), where it was computed, is that of a step (translation, rotation) in the camera's own
    frame, ``camera_to_world @ exp(step)``, in world units and radians; inf along what nothing determines.
    """

    camera_to_world: FloatArray
    depth: FloatArray
    confidence: FloatArray
    intrinsics: Intrinsics
    registered: bool = True
    pose_covariance: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class PosedView:
    """One image with a pose. ``number`` counts the given images; ``intrinsics`` are for the original image.

    ``estimate`` and ``image`` are at the predictor's size; both are without pixels in a view that was thinned out.
    """

    number: int
    name: str
    stamp_ns: int
    camera_to_world: FloatArray
    intrinsics: Intrinsics
    estimate: ViewEstimate
    image: PreparedImage

    @property
    def has_depth(self) -> bool:
        """Whether depth and pixels were kept and some depth is known."""
        return bool((self.estimate.depth > 0).any())


@dataclass(frozen=True, eq=False)
class Scene:
    """The result of global alignment: one entry a view, in the views' order.

    The world is that of given poses, else the first registered view's camera frame, up to one scale unless ``metric``.
    ``edge_residual`` maps each directed edge (i, j) to its weighted RMS residual relative to depth (no unit);
    ``wrong_edges`` contradict the others and were left out.
    """

    views: tuple[ViewEstimate, ...]
    edge_residual: Mapping[tuple[int, int], float] = field(default_factory=dict)
    metric: bool = False
    wrong_edges: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, eq=False)
class Keyframe:
    """An image that was chosen to become part of the map."""

    index: int
    stamp_ns: int
    camera: str
    image: PreparedImage


@dataclass(frozen=True)
class StageTimes:
    """Wall time a keyframe spent in each stage, milliseconds."""

    encode_ms: float = 0.0
    decode_ms: float = 0.0
    align_ms: float = 0.0
    fuse_ms: float = 0.0
    loops_ms: float = 0.0


@dataclass(frozen=True, eq=False)
class Update:
    """What one new keyframe changed.

    ``view`` is the new keyframe's estimate; ``intrinsics`` are the camera's, for its original image, with
    ``focal_spread_px`` the robust spread of the focal over the camera's keyframes (0 when known).
    ``moved`` maps the index of every older keyframe whose estimate changed to its new estimate. The depth of those in
    ``refined`` was estimated anew; of the others, which moved by less than is known of them, only the scale changed.
    ``edge_residual`` is the mean over the window's edges, relative to depth (no unit).
    Everything is in world units, which are ``metres_per_unit`` metres where ``metric`` (see ``updates.in_metres``).
    ``corrections`` maps, after a loop closure, the index of every remembered keyframe, the new one and those in
    ``moved`` included, to the similarity (4, 4) that takes its points from the world before to the world now: the
    identity for the first one, which is fixed. ``view`` and ``moved`` are as they are now. Empty without a closure.
    """

    keyframe: Keyframe
    view: ViewEstimate
    intrinsics: Intrinsics
    focal_spread_px: float
    moved: Mapping[int, ViewEstimate]
    times: StageTimes
    metric: bool = False
    edge_residual: float = 0.0
    metres_per_unit: float = 1.0
    corrections: Mapping[int, FloatArray] = field(default_factory=dict)
    refined: frozenset[int] = frozenset()
