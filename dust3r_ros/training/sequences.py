"""Rendered image sequences with exact truth: for tests, the demo and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dust3r_ros.data import FloatArray, Intrinsics, PosedFrame
from dust3r_ros.errors import ExportError
from dust3r_ros.mapping.export import CameraRecord, write_cameras_json
from dust3r_ros.training.render import render, render_depth
from dust3r_ros.training.scenes import SceneBatch, SceneKind, SceneSampler
from dust3r_ros.training.textures import make_atlas
from dust3r_ros.training.trajectories import Carrier, path_length, sample_trajectory

START_NS = 1_700_000_000_000_000_000
_TEXTURES = 48
_MAX_DEPTH_MM = 65535


@dataclass(frozen=True, eq=False)
class RenderedSequence:
    """A camera's way through one scene; frames are rendered when asked for, always the same.

    ``camera_to_world`` (N, 4, 4) float64, metres, z-up world; ``stamps_ns`` one for each; ``intrinsics`` of all.
    """

    scene: SceneBatch
    camera_to_world: FloatArray
    stamps_ns: tuple[int, ...]
    intrinsics: Intrinsics

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def __iter__(self) -> Iterator[PosedFrame]:
        return (self.frame(index) for index in range(len(self)))

    def frame(self, index: int) -> PosedFrame:
        """Image, truth and exact depth of one frame."""
        k = self.intrinsics
        views = render(self.scene, self._pose(index), _tensor(k), (k.height, k.width))
        image = (views.rgb[0, 0] * 255 + 0.5).to(torch.uint8).cpu().numpy()
        return PosedFrame(image, self.stamps_ns[index], k, self.camera_to_world[index], views.depth[0, 0].cpu().numpy())

    def depth(self, index: int, intrinsics: Intrinsics) -> FloatArray:
        """Exact z-depth (H, W) float32 of one frame's camera, seen with other intrinsics; 0 for sky."""
        size = (intrinsics.height, intrinsics.width)
        return render_depth(self.scene, self._pose(index), _tensor(intrinsics), size)[0, 0].cpu().numpy()

    def path_length(self) -> float:
        """Length of the camera's way, metres."""
        return path_length(self.camera_to_world)

    def _pose(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.camera_to_world[index]).to(self.scene.device, torch.float32)[None, None]


def walk_through_room(
    frames: int = 150, width: int = 640, height: int = 480, fov_deg: float = 65.0, seed: int = 0, *,
    rate_hz: float = 15.0, speed: float = 0.7, size: tuple[float, float, float] = (6.0, 4.0, 3.0),
    texture_px: int = 512, device: torch.device | str = "cpu",
) -> RenderedSequence:  # fmt: skip
    """A hand-held walk of ``frames / rate_hz * speed`` metres through a furnished, textured room.

    ``fov_deg`` is the horizontal field of view; ``speed`` in metres a second; ``size`` length, width and height of the
    room in metres; ``texture_px``, a power of two, how fine the textures are. The same ``seed`` gives the same room
    and path. Raises ValueError for what is out of range.
    """
    if not 20 <= fov_deg <= 120:
        raise ValueError(f"fov_deg must be from 20 to 120, got {fov_deg}")
    if frames < 2 or rate_hz <= 0 or speed <= 0:
        raise ValueError(f"frames >= 2, rate_hz > 0 and speed > 0 are needed, got {frames}, {rate_hz}, {speed}")
    generator = torch.Generator().manual_seed(seed)
    sampler = SceneSampler(make_atlas(_TEXTURES, texture_px, generator), seed=seed)
    room = sampler.sample(SceneKind.ROOM, 1, generator, size=size)
    poses = sample_trajectory(
        room, frames, speed / rate_hz, np.random.default_rng(seed), carrier=Carrier.HANDHELD,
        max_turn_deg=30.0 / rate_hz, fov_deg=fov_deg,
    )  # fmt: skip
    stamps = tuple(START_NS + round(k * 1e9 / rate_hz) for k in range(frames))
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    return RenderedSequence(room.to(device), poses, stamps, Intrinsics.from_focal(focal, width, height))


def write_pack(sequence: RenderedSequence, folder: str | Path, *, every: int = 1) -> None:
    """A posed image pack of each ``every``-th frame: ``images/*.png``, ``depth/*.png`` (millimetres), ``cameras.json``.

    Raises ExportError when a file cannot be written, ValueError for ``every`` < 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    folder = Path(folder)
    records = []
    for index in range(0, len(sequence), every):
        frame = sequence.frame(index)
        name = f"frame-{index:06d}.png"
        _write_png(folder / "images" / name, frame.image[..., ::-1])
        assert frame.depth is not None
        millimetres = np.rint(1000 * frame.depth)
        _write_png(folder / "depth" / name, np.where(millimetres > _MAX_DEPTH_MM, 0, millimetres).astype(np.uint16))
        records.append(CameraRecord(f"images/{name}", frame.intrinsics, frame.camera_to_world, f"depth/{name}"))
    write_cameras_json(records, folder / "cameras.json", metric=True)


def _write_png(path: Path, image: NDArray[np.unsignedinteger]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}") from error


def _tensor(k: Intrinsics) -> torch.Tensor:
    return torch.tensor([k.fx, k.fy, k.cx, k.cy])
