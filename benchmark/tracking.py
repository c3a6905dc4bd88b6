"""Poses at camera rate on a recording: how many, how soon, how good; one table, and the figures as JSON.

    python benchmark/tracking.py [--bag BAG] [--rates 1 5] [--checkpoints geometric tiny] [--core 1] [--out FILE.json]
                                 [--parameters NAME:=VALUE...]

Without a recording it is a rendered room. Each checkpoint and each speed of playing is a run of its own: node, player
and this program are three processes, the node on one core when `--core` names it. Latency is the node's own figure,
from an image's arrival to its pose and transform published (median of the last 300); errors are of all poses as they
were published, after a similarity.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import rclpy

from dust3r_ros.evaluation.metrics import associate, pose_errors
from dust3r_ros.evaluation.report import runs_table
from dust3r_ros.ros.bag import COMPRESSED_IMAGE, open_recording
from dust3r_ros.ros.demo_bag import rendered_bag
from dust3r_ros.ros.processes import Child, private_environment
from dust3r_ros.ros.recorder import Recorder, spin_until

PATIENCE_S = 120.0
MAX_GAP_NS = 50_000_000


def measure(bag: Path, checkpoint: str, rate: float, core: int | None, parameters: list[str],
            folder: Path) -> dict[str, float | str]:  # fmt: skip
    """One run of node and player."""
    with open_recording(bag) as recording:
        topic = recording.choose_image_topic("")
        truth = recording.poses("")
        compressed = topic.type == COMPRESSED_IMAGE
    remapped = topic.name.removesuffix("/compressed") if compressed else topic.name
    given = [f"checkpoint:={checkpoint}", f"image_transport:={'compressed' if compressed else 'raw'}", *parameters]
    options = [word for parameter in given for word in ("-p", parameter)]
    environment = {**private_environment(), "OMP_NUM_THREADS": "1"}
    recorder = Recorder()
    recorded = recorder.recorded
    try:
        with Child("dust3r_ros.ros.node", ["--ros-args", "-r", f"image:={remapped}", *options],
                   folder / "node.log", environment) as node:  # fmt: skip
            node.start()
            if not spin_until(recorder, lambda: recorded.status is not None, PATIENCE_S):
                raise SystemExit(f"the node did not come: see {folder / 'node.log'}")
            if core is not None:
                pin(node, core)
            with Child("dust3r_ros.ros.play", [str(bag), "--rate", str(rate), "--wait", "60"],
                       folder / "play.log", environment) as player:  # fmt: skip
                player.start()
                began = None
                while player.running:
                    spin_until(recorder, lambda: not player.running, 0.2)
                    if began is None and recorded.status.frames_received:
                        began = time.monotonic()
                playing_s = time.monotonic() - (began or time.monotonic())
            live, status = dict(recorded.transforms), recorded.status
            spin_until(recorder, lambda: recorded.in_flight() == 0, PATIENCE_S)
            status = recorded.status
    finally:
        recorder.destroy_node()
    return {
        "model": checkpoint, "playing rate": rate, "images received": status.frames_received,
        "images/s": status.frames_received / max(playing_s, 1e-9), "poses": len(live),
        "poses/s": len(live) / max(playing_s, 1e-9), "p50 latency, ms": status.pose_latency_ms,
        "initialising": status.images_initialising, "lost": status.images_lost, "stale": status.images_stale,
        "keyframes": status.keyframes, "dropped, unseen": status.dropped_unseen,
        "dropped, queue full": status.dropped_queue_full,
        **errors(live, truth, "all poses"), **errors(dict(recorded.path), truth, "keyframes at the end"),
    }  # fmt: skip


def pin(node: Child, core: int) -> None:
    """All threads of a process to one core."""
    process = node._started().pid
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def errors(found: dict[int, np.ndarray], truth: list, name: str) -> dict[str, float]:
    stamps = sorted(found)
    pairs = associate(stamps, [pose.stamp_ns for pose in truth], MAX_GAP_NS)
    if len(pairs) < 3:
        return {}
    poses = np.stack([found[stamps[i]] for i, _ in pairs])
    error = pose_errors(poses, np.stack([truth[j].pose for _, j in pairs]))
    return {f"ATE of {name}, m": error.ate_rmse} if error.ate_rmse is not None else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bag", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 5.0], help="recorded seconds a second")
    parser.add_argument("--checkpoints", nargs="+", default=["geometric", "tiny"])
    parser.add_argument("--core", type=int, help="the node has this processor core alone")
    parser.add_argument("--parameters", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    environment = private_environment()
    os.environ.update({name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")})
    rclpy.init(args=[])
    folder = options.out.parent if options.out else Path("/tmp")
    bag = options.bag or rendered_bag(folder, print)
    runs = [
        measure(bag, checkpoint, rate, options.core, options.parameters, folder)
        for checkpoint in options.checkpoints
        for rate in options.rates
    ]
    rclpy.try_shutdown()
    print(runs_table([f"{run['model']} x{run['playing rate']:g}" for run in runs], runs))
    if options.out:
        options.out.write_text(json.dumps(runs, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
