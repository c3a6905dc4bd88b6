"""Tracking after interruptions of a recording, offline: how soon a pose is there again, how good, at what cost.

    python benchmark/recovery.py [--bag BAG] [--checkpoint geometric] [--every 20] [--hidden 5] [--images N]
                                 [--out FILE.json]

Without a recording it is a rendered room. Each `--every` images the next `--hidden` ones are black, to the
reconstruction as to the trackers, so that the view behind has moved on. Two trackers look at the same images and the
same map: one follows corners alone (`tracking.features: 0`), one also looks lost images up in the last keyframes.
Poses are those that would have been published; times are the thread's processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from dust3r_ros.config import ReconstructorConfig, TrackingConfig
from dust3r_ros.data import ByteImage, FloatArray
from dust3r_ros.evaluation.metrics import associate, pose_errors
from dust3r_ros.evaluation.report import runs_table
from dust3r_ros.landmarks import Landmarks
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros.bag import StampedPose, open_recording
from dust3r_ros.ros.demo_bag import rendered_bag
from dust3r_ros.tracking import TrackedPose, Tracker

MAX_GAP_NS = 50_000_000


@dataclass
class Run:
    """One tracker, and what it did with each image that could be seen."""

    name: str
    tracker: Tracker
    shown: list[TrackedPose] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def look(self, image: ByteImage, stamp_ns: int, *, keyframe: bool, hidden: bool) -> None:
        began = time.thread_time()
        tracked = self.tracker.look(image, stamp_ns, keyframe=keyframe)
        if not hidden:
            self.milliseconds.append(1000 * (time.thread_time() - began))
            self.shown.append(tracked)

    def poses(self) -> dict[int, FloatArray]:
        return {t.stamp_ns: t.camera_to_world for t in self.shown if t.camera_to_world is not None}


def measure(bag: Path, checkpoint: str, every: int, hidden: int, images: int) -> list[dict[str, float | str]]:
    """Both trackers on one recording."""
    config = make_config(ReconstructorConfig, {"checkpoint": checkpoint})
    reconstructor, landmarks = Reconstructor(config), Landmarks()
    runs = [
        Run("corners", Tracker("camera", replace(TrackingConfig(), features=0), landmarks)),
        Run("corners and features", Tracker("camera", TrackingConfig(), landmarks)),
    ]
    ends = []
    with open_recording(bag) as recording:
        for number, frame in enumerate(islice(recording.frames(), images or None)):
            covered = hidden > 0 and number % every >= every - hidden
            if hidden and number and number % every == 0:
                ends.append(frame.stamp_ns)
            image = np.zeros_like(frame.image) if covered else frame.image
            update = reconstructor.add(image, frame.stamp_ns)
            for run in runs:
                run.look(image, frame.stamp_ns, keyframe=update is not None, hidden=covered)
            if update is not None:
                if reconstructor.keyframes == 1:
                    landmarks.clear()
                landmarks.take(update)
        truth = recording.poses()
    return [figures(run, ends, truth) for run in runs]


def figures(run: Run, ends: list[int], truth: list[StampedPose]) -> dict[str, float | str]:
    """One column of the table."""
    stamps = [tracked.stamp_ns for tracked in run.shown]
    has = np.array([tracked.camera_to_world is not None for tracked in run.shown])
    first = int(has.argmax())
    waits = []
    for begin, end in zip(ends, [*ends[1:], 2**63 - 1]):
        after = [known for stamp, known in zip(stamps, has) if begin <= stamp < end]
        waits.append(after.index(True) + 1 if True in after else len(after) + 1)
    cost, lost = np.array(run.milliseconds[first:]), ~has[first:]
    poses = run.poses()
    pairs = associate(sorted(poses), [pose.stamp_ns for pose in truth], MAX_GAP_NS)
    ordered = [poses[stamp] for stamp in sorted(poses)]
    error = pose_errors(np.stack([ordered[i] for i, _ in pairs]), np.stack([truth[j].pose for _, j in pairs]))
    return {
        "tracker": run.name, "images seen": len(has), "with a pose": int(has.sum()),
        "interruptions": len(waits), "first pose after one, images: median": float(np.median(waits or [0])),
        "most": float(max(waits, default=0)), "ATE, m": error.ate_rmse or 0.0,
        "ms an image: median": float(np.median(cost)), "of 95 in 100": float(np.quantile(cost, 0.95)),
        "ms a lost image: median": float(np.median(cost[lost])) if lost.any() else 0.0,
        "slowest": float(cost[lost].max()) if lost.any() else 0.0,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bag", type=Path)
    parser.add_argument("--checkpoint", default="geometric")
    parser.add_argument("--every", type=int, default=20, help="images from one interruption's end to the next one's")
    parser.add_argument("--hidden", type=int, default=5, help="of which the last so many are black; 0 hides none")
    parser.add_argument("--images", type=int, default=0, help="of the recording, from its start; 0: all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    bag = options.bag or rendered_bag(options.out.parent if options.out else Path("/tmp"), print)
    found = measure(bag, options.checkpoint, options.every, options.hidden, options.images)
    print(runs_table([str(run["tracker"]) for run in found], found, leave_out=("tracker",)))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
