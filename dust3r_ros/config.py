"""Every option of the package, in frozen dataclasses: the one place with names, defaults and ranges.

ROS parameters, command-line options and parameter files are derived from these with ``options_of``,
``make_config`` and ``flatten_config`` of ``options``. A nested option has a dotted name, such as
``keyframes.min_parallax``.
"""

from __future__ import annotations

from dataclasses import dataclass

from dust3r_ros.errors import ConfigError
from dust3r_ros.options import group, option

LEAST_IMAGE_SIZE = 64


@dataclass(frozen=True)
class KeyframeConfig:
    """When an image becomes a keyframe."""

    min_parallax: float = option(
        0.015, "Median image motion left after a pure rotation is taken out, as a fraction of the longer side, "
        "that makes a keyframe", minimum=0.0, maximum=1.0, live=True)  # fmt: skip
    min_overlap: float = option(
        0.7, "Fraction of the last keyframe still in view below which a keyframe is taken even without parallax",
        minimum=0.1, maximum=0.99, live=True)  # fmt: skip
    max_blur: float = option(
        0.5, "An image whose sharpness is below this fraction of the recent median waits for a sharper one",
        minimum=0.0, maximum=1.0, live=True)  # fmt: skip
    every_image: bool = option(False, "Take every image as a keyframe")


@dataclass(frozen=True)
class AlignmentConfig:
    """Global alignment of pairwise pointmaps."""

    grid: int = option(32, "Points sampled along the longer image side for the solver", minimum=8, maximum=256)
    outer_iterations: int = option(6, "Rounds of fitting, each with a fresh noise estimate", minimum=1, maximum=50)
    max_steps: int = option(15, "Gauss-Newton steps in each round", minimum=1, maximum=200)
    min_confidence: float = option(
        1e-3, "Predictions with less confidence than this fraction of the edge's largest are left out",
        minimum=0.0, maximum=1.0)  # fmt: skip
    share_focal: bool = option(True, "One focal for all images of a camera")


@dataclass(frozen=True)
class LoopConfig:
    """Places seen before: loops are closed, and a lost path is taken up again."""

    enabled: bool = option(
        True, "Remember the places of old keyframes: close loops, and find the way again when lost")  # fmt: skip
    min_separation: int = option(
        15, "Keyframes between two views before they can close a loop", minimum=2, maximum=10_000)  # fmt: skip
    similarity: float = option(
        0.5, "Likeness to the new keyframe, as a fraction of its neighbours' likeness, from which an old one is a "
        "candidate", minimum=0.0, maximum=1.0)  # fmt: skip
    candidates: int = option(
        3, "Old keyframes that a new one is compared with; a loop needs two pairs that agree",
        minimum=1, maximum=20)  # fmt: skip


@dataclass(frozen=True)
class TrackingConfig:
    """A pose for every image between the keyframes."""

    enabled: bool = option(True, "Track every image against the last keyframes, for poses at camera rate")
    corners: int = option(150, "Corners of each keyframe that are followed", minimum=20, maximum=2000)
    min_points: int = option(15, "Points that must fit, or an image counts as lost", minimum=6, maximum=1000)
    min_share: float = option(
        0.3, "Share of the followed points that must fit, or an image counts as lost",
        minimum=0.0, maximum=1.0)  # fmt: skip
    features: int = option(
        400, "Features of an image that is lost, by which it is looked for in the last keyframes before a keyframe is "
        "asked for; 0 does not look", minimum=0, maximum=5000)  # fmt: skip


@dataclass(frozen=True)
class MapConfig:
    """The fused map."""

    min_confidence: float = option(
        0.25, "Quantile of each keyframe's confidence below which its points stay out of the map",
        minimum=0.0, maximum=1.0, live=True)  # fmt: skip
    voxel_size: float = option(
        0.005, "Edge of a map voxel as a fraction of the first keyframe's median depth; 0 keeps every point",
        minimum=0.0, maximum=1.0)  # fmt: skip
    max_depth_step: float = option(
        0.1, "A point stays out of the map when a neighbouring pixel's depth differs by more than this fraction; "
        "0 keeps points at depth edges", minimum=0.0, live=True)  # fmt: skip
    max_points: int = option(2_000_000, "Points kept in the map; voxels seen least go first", minimum=1000)


@dataclass(frozen=True)
class CleanConfig:
    """What is taken out of a finished reconstruction, beside what never gets into the map (``MapConfig``)."""

    min_confidence: float = option(0.0, "Pixels with less confidence than this go", minimum=0.0)
    sky: bool = option(False, "Pixels that look like sky go, in upright outdoor images")
    consistency: float = option(
        0.0, "Points that stand in front of what other views see, by more than this fraction of the distance, go; "
        "0 keeps them", minimum=0.0, maximum=1.0)  # fmt: skip
    outliers: float = option(
        0.0, "Points whose neighbours are farther than the cloud's mean by more than this many standard deviations "
        "go; 0 keeps them", minimum=0.0)  # fmt: skip


@dataclass(frozen=True)
class ReconstructorConfig:
    """The reconstruction pipeline, with or without ROS."""

    checkpoint: str = option("geometric", "Predictor: 'geometric', 'tiny', a checkpoint file or a hub name")
    device: str = option("auto", "Torch device: auto, cpu, cuda, cuda:N")
    dtype: str = option(
        "auto", "Precision of the network", choices=("auto", "float32", "bfloat16", "float16"))  # fmt: skip
    execution: str = option(
        "eager", "Compiled fuses the network's operations, on a GPU into one launch, after minutes at the start; it "
        "needs a C++ compiler, and on a CPU it is slower", choices=("eager", "compiled"))  # fmt: skip
    image_size: int = option(
        0, "Long side of the predictor's images, pixels, at least 64; 0 is its own choice",
        minimum=0, maximum=8192)  # fmt: skip
    window: int = option(3, "Keyframes before a new one that it is paired with", minimum=1, maximum=50)
    intrinsics: str = option(
        "estimate", "The camera's given intrinsics: ignored, and estimated from the images; the guess that the "
        "estimate begins with; or used as they are", choices=("estimate", "guess", "given"))  # fmt: skip
    keyframes: KeyframeConfig = group(KeyframeConfig)
    alignment: AlignmentConfig = group(AlignmentConfig)
    loops: LoopConfig = group(LoopConfig)
    tracking: TrackingConfig = group(TrackingConfig)
    map: MapConfig = group(MapConfig)

    def __post_init__(self) -> None:
        if 0 < self.image_size < LEAST_IMAGE_SIZE:
            raise ConfigError(
                f"image_size must be from {LEAST_IMAGE_SIZE} to 8192 pixels, or 0 for the predictor's own choice, "
                f"got {self.image_size}"
            )


@dataclass(frozen=True)
class NodeConfig:
    """The ROS node."""

    autostart: bool = option(True, "Configure and activate at the start; false waits for a lifecycle manager")
    image_topics: list[str] = option(
        ("image",), "Image topics, one a camera; a name that ends in /compressed has compressed images")  # fmt: skip
    camera_info_topics: list[str] = option(
        ("",), "CameraInfo topics in the order of image_topics; an empty or missing one is camera_info beside the "
        "image topic")  # fmt: skip
    image_transport: str = option(
        "raw", "Form of the image topics whose names do not say it; compressed adds /compressed to them",
        choices=("raw", "compressed"))  # fmt: skip
    image_reliability: str = option(
        "best_effort", "Quality of service of the image topics; best effort receives from every publisher, reliable "
        "has what got lost sent again but needs a reliable publisher", choices=("best_effort", "reliable"))  # fmt: skip
    image_history: int = option(
        5, "Images of a camera that may wait for the node while it is busy, the oldest give way; few keep a robot's "
        "map current, many lose nothing of a recording and cost their memory", minimum=1, maximum=1000)  # fmt: skip
    rectified: bool = option(
        False, "The images are rectified: P of their CameraInfo holds for them, and no distortion is undone"
    )
    silent_after: float = option(
        4.0, "A camera without an image for this long is reported, seconds", minimum=0.5, live=True)  # fmt: skip
    map_frame: str = option("map", "Frame of the world that the map is in")
    camera_frame: str = option("", "Frame of the camera, if there is one; empty takes it from the images' headers")
    publish_tf: bool = option(True, "Publish the transform that tf_mode names")
    tf_mode: str = option(
        "camera", "Child of map_frame on TF: each camera's frame, base_frame, or odom_frame (REP-105)",
        choices=("camera", "base", "odom"))  # fmt: skip
    base_frame: str = option("base_link", "Frame of the robot that carries the cameras; used by tf_mode base")
    odom_frame: str = option(
        "odom", "Frame of the robot's odometry: child of map_frame in tf_mode odom, and source of the metric scale"
    )
    use_odometry: bool = option(False, "Take the robot's motion from the topic odom; false takes it from TF")
    transform_timeout: float = option(
        0.5, "Longest wait of a keyframe for the transforms at its time, seconds", minimum=0.0, maximum=60.0,
        live=True)  # fmt: skip
    on_time_jump: str = option(
        "reset", "When images go back in time, as a recording does that starts again: begin a new map, or reanchor "
        "and keep it", choices=("reset", "reanchor"), live=True)  # fmt: skip
    pose_max_age: float = option(
        0.5, "A pose that is found later than this after its image came is not published, seconds", minimum=0.01,
        maximum=3600.0, live=True)  # fmt: skip
    queue_size: int = option(4, "Keyframes that may wait for the worker; the newest win", minimum=1, maximum=100)
    map_period: float = option(1.0, "Shortest time between two maps, seconds", minimum=0.0, live=True)
    map_folder: str = option(
        "~/.ros/dust3r_ros", "Folder that maps are saved in and loaded from; no service goes outside it"
    )
    autosave_period: float = option(
        0.0, "Shortest time between two savings of a map that changed, by the node itself, seconds; 0 saves none",
        minimum=0.0, live=True)  # fmt: skip
    resume: str = option(
        "never", "Whether the node begins with the map that it saved by itself: when it was killed before, or always",
        choices=("never", "after_crash", "always"))  # fmt: skip
    reconstructor: ReconstructorConfig = group(ReconstructorConfig, flat=True)


@dataclass(frozen=True)
class TrainingConfig:
    """Training of a network. What is 0, auto or empty is chosen by the device, or by whether a network is given."""

    architecture: str = option(
        "tiny", "Network to train from scratch", choices=("tiny", "small", "224_linear", "512_dpt"))  # fmt: skip
    checkpoint: str = option("", "Trained network to go on from: a file, a folder or a hub name; empty: from scratch")
    device: str = option("auto", "Torch device: auto, cpu, cuda, cuda:N")
    minutes: float = option(0.0, "Time for this call, minutes; 0 trains to the end", minimum=0.0)
    pairs: int = option(1_000_000, "Pairs of images of the whole run, over all calls", minimum=1)
    stages: str = option(
        "", "Stages to go through, of completion, near, middle, full, with commas; empty: all from scratch, full for a "
        "trained network")  # fmt: skip
    batch: int = option(
        0, "Pairs in a step at the full image size, more of smaller ones; 0 is 8 on a CPU, 64 on a GPU",
        minimum=0, maximum=4096)  # fmt: skip
    learning_rate: float = option(
        0.0, "Highest learning rate; 0 is 5e-4 from scratch and 2e-5 for a trained network",
        minimum=0.0, maximum=0.1)  # fmt: skip
    warm_up: float = option(0.02, "Share of all pairs over which the learning rate rises", minimum=0.001, maximum=0.9)
    matching: float = option(
        0.3, "Weight of the correspondence objective for the cross-attention", minimum=0.0, maximum=10.0)  # fmt: skip
    motion: float = option(
        0.3, "Weight of the motion objective: the second view's points against its own ones, truly moved",
        minimum=0.0, maximum=10.0)  # fmt: skip
    precision: str = option(
        "auto", "Precision of the matrix products; auto is bfloat16 where the hardware has it",
        choices=("auto", "float32", "bfloat16"))  # fmt: skip
    execution: str = option(
        "eager", "Compiled fuses the network's operations: faster steps, after a minute or two for each image size; on "
        "a CPU it needs a C++ compiler", choices=("eager", "compiled"))  # fmt: skip
    uses: int = option(4, "Times a rendered pair is used, with new camera flaws each time", minimum=1, maximum=100)
    pool: int = option(2048, "Rendered pairs kept in memory", minimum=64, maximum=1_000_000)
    workers: int = option(
        1, "Processes that render while a CPU trains; 0 renders in the same process, as is done on a GPU",
        minimum=0, maximum=256)  # fmt: skip
    textures: int = option(256, "Textures of the rendered scenes", minimum=64, maximum=4096)
    seed: int = option(0, "Of everything random", minimum=0, maximum=2**31 - 1)
    assess_pairs: int = option(
        120, "Held-out pairs that the network is measured on; 0 measures nothing",
        minimum=0, maximum=100_000)  # fmt: skip
    assess_minutes: float = option(10.0, "Time between two measurements, minutes", minimum=0.01)
    save_minutes: float = option(3.0, "Time between two saved states, minutes", minimum=0.01)
    state: str = option(
        "full", "What is saved to go on from; small is a sixth as large and the optimiser begins anew",
        choices=("full", "small"))  # fmt: skip
