"""The service localize: from its request to its response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dust3r_ros.data import ByteImage, Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros import compat
from dust3r_ros.ros.convert import header_of, pose_message
from dust3r_ros.ros.decode import compressed_to_rgb, stamp_ns_of
from dust3r_ros.ros.lens import Lens, lens_of
from dust3r_ros.ros.map_frame import MapFrame, TfEdge
from dust3r_ros.ros.odometry import PosedImage, covariance_in_map
from dust3r_ros.srv import Localize
from dust3r_ros.tasks.localise import Located
from dust3r_ros.tasks.localise_live import LiveLocaliser


@dataclass(frozen=True, eq=False)
class Query:
    """An image (H, W, 3) without distortion, its time, and the intrinsics where they are known."""

    image: ByteImage
    stamp_ns: int
    intrinsics: Intrinsics | None


def query_of(request: Localize.Request, rectified: bool) -> Query:
    """What a request asks. Raises RosError for an image or a CameraInfo that cannot be used."""
    compressed = bool(len(request.compressed.data))
    image = _image(request, compressed)
    lens = _lens(request, image, rectified)
    stamp_ns = stamp_ns_of(request.compressed.header if compressed else request.image.header)
    if lens is None:
        return Query(image, stamp_ns, None)
    return Query(lens.undistorted(image), stamp_ns, lens.intrinsics)


def localized(query: Query, frame: MapFrame, reconstructor: Reconstructor) -> Localize.Response:
    """Where an image was taken, in the map's frame. Raises AlignmentError when it cannot be placed."""
    found = LiveLocaliser(reconstructor).locate(query.image, query.intrinsics)
    return _response(found, query.stamp_ns, frame)


def _image(request: Localize.Request, compressed: bool) -> ByteImage:
    if compressed:
        return compressed_to_rgb(request.compressed)
    if not len(request.image.data):
        raise RosError("localize needs an image, got none")
    return compat.rgb_of(request.image)


def _lens(request: Localize.Request, image: ByteImage, rectified: bool) -> Lens | None:
    """The camera's lens; None when the request says nothing of it."""
    info, (height, width) = request.camera_info, image.shape[:2]
    if (np.any(info.k) or np.any(info.p)) and not (info.width and info.height):
        raise RosError(f"camera_info must be for the {width}x{height} image, got {info.width}x{info.height}")
    lens = lens_of(info, rectified=rectified) if info.width else None
    if lens is None:
        return None
    known = lens.intrinsics
    if (known.width, known.height) != (width, height):
        raise RosError(f"camera_info must be for the {width}x{height} image, got {known.width}x{known.height}")
    return lens


def _response(found: Located, stamp_ns: int, frame: MapFrame) -> Localize.Response:
    camera = TfEdge("", frame.from_world.apply_to_pose(found.camera_to_world))
    image = PosedImage(stamp_ns, camera, 0.0, frame.covariance(found.covariance))
    response = Localize.Response(success=True, points=found.points, inliers=found.inliers)
    response.pose.header = header_of(stamp_ns, frame.name)
    response.pose.pose.pose = pose_message(camera.pose)
    response.pose.pose.covariance = covariance_in_map(image, camera.pose).ravel()
    response.focal_px = float(found.intrinsics.focal_px)
    response.message = f"{found.inliers} of {found.points} points fit; focal: {found.intrinsics_from}"
    return response
