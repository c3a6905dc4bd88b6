"""Start the dust3r node, and RViz and a recording when asked. `--show-args` lists the arguments.

An argument that is left empty leaves the choice to the parameter file.
"""

from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node

from dust3r_ros.config import NodeConfig
from dust3r_ros.options import options_of

SHARE = Path(get_package_share_directory("dust3r_ros"))
PROGRAM = str(SHARE.parents[1] / "lib" / "dust3r_ros" / "dust3r-ros")

# Parameters of the node that are arguments too.
PARAMETERS = (
    "autostart", "checkpoint", "device", "image_transport", "image_reliability", "intrinsics", "rectified",
    "map_frame", "camera_frame", "publish_tf", "tf_mode", "base_frame", "odom_frame", "use_odometry", "on_time_jump",
    "map_folder", "autosave_period", "resume",
)  # fmt: skip
TRUTHS = ["true", "false"]


NAMED_FILES = ", ".join(sorted(path.stem for path in (SHARE / "config").glob("*.yaml")))
LOG_LEVELS = ["debug", "info", "warn", "error", "fatal"]

# Name, default, and what it is; those of CHOICES take nothing else.
ARGUMENTS = (
    ("image_topic", "camera/image_raw", "Image topic, in the namespace unless it begins with a slash; of compressed "
     "images the topic without /compressed"),
    ("camera_info_topic", "camera/camera_info", "CameraInfo topic of the same camera"),
    ("image_topics", "", "Topics of several cameras, as a list: \"['left/image_raw', 'right/image_raw/compressed']\"; "
     "used instead of image_topic"),
    ("camera_info_topics", "", "Their CameraInfo topics in the same order; empty: camera_info beside each image topic"),
    ("odom_topic", "odom", "Odometry topic, for use_odometry"),
    ("namespace", "", "Namespace of the node and its topics"),
    ("params_file", str(SHARE / "config" / "default.yaml"), "Parameter file of the node: a path, or the name of one in "
     f"the package's config folder ({NAMED_FILES})"),
    ("use_sim_time", "false", "Take the time from /clock"),
    ("rviz", "false", "Start RViz too"),
    ("viewer", "false", "Serve a web page of the map (needs viser)"),
    ("viewer_host", "127.0.0.1", "Address of the page; 0.0.0.0 lets other machines look"),
    ("viewer_port", "8080", "Port of the page"),
    ("bag", "", "Recording to play, with /clock; empty: none"),
    ("bag_rate", "1.0", "Recorded seconds a second of the bag"),
    ("respawn", "false", "Start the node again if it dies; with autosave_period and resume it goes on in its map"),
    ("log_level", "info", "Least severity of the node's messages"),
)  # fmt: skip
CHOICES = {name: TRUTHS for name, default, _ in ARGUMENTS if default in TRUTHS} | {"log_level": LOG_LEVELS}


def arguments() -> list[DeclareLaunchArgument]:
    own = [
        DeclareLaunchArgument(name, default_value=default, description=what, choices=CHOICES.get(name))
        for name, default, what in ARGUMENTS
    ]
    return own + [
        DeclareLaunchArgument(name, default_value="", description=f"{about(name)}. Empty: as in params_file")
        for name in PARAMETERS
    ]


def about(name: str) -> str:
    """What a parameter is, and its choices."""
    option = options_of(NodeConfig)[name]
    choices = ", ".join(TRUTHS if option.type is bool else option.choices)
    return f"{option.description} ({choices})" if choices else option.description


def parameters(context: LaunchContext) -> list[object]:
    """The parameter file, and what the arguments change of it, as the node's options want it."""
    options = options_of(NodeConfig)
    changes: dict[str, object] = {"use_sim_time": LaunchConfiguration("use_sim_time").perform(context) == "true"}
    for name in (*PARAMETERS, "image_topics", "camera_info_topics"):
        given = LaunchConfiguration(name).perform(context)
        if given:
            changes[name] = options[name].check(given if options[name].type is str else yaml.safe_load(given))
    named = LaunchConfiguration("params_file").perform(context)
    own = SHARE / "config" / f"{named}.yaml"
    return [str(own) if own.is_file() else named, changes]


def logger_name(context: LaunchContext) -> str:
    """The node's: its namespaces, this file's and those that a file which includes it has pushed, with dots."""
    given = LaunchConfiguration("namespace").perform(context)
    pushed = "" if given.startswith("/") else context.launch_configurations.get("ros_namespace", "")
    return ".".join([*filter(None, f"{pushed}/{given}".split("/")), "dust3r"])


def node(context: LaunchContext) -> list[Node]:
    return [
        LifecycleNode(
            package="dust3r_ros",
            executable="dust3r_node",
            name="dust3r",
            namespace=LaunchConfiguration("namespace"),
            output="screen",
            emulate_tty=True,
            respawn=LaunchConfiguration("respawn").perform(context) == "true",
            respawn_delay=2.0,
            parameters=parameters(context),
            remappings=[
                ("image", LaunchConfiguration("image_topic")),
                ("camera_info", LaunchConfiguration("camera_info_topic")),
                ("odom", LaunchConfiguration("odom_topic")),
            ],
            arguments=["--ros-args", "--log-level", [logger_name(context), ":=", LaunchConfiguration("log_level")]],
        )
    ]


def bag(context: LaunchContext) -> list[ExecuteProcess]:
    """The recording, once somebody subscribes to it."""
    path = LaunchConfiguration("bag").perform(context)
    if not path:
        return []
    rate = LaunchConfiguration("bag_rate").perform(context)
    return [ExecuteProcess(cmd=[PROGRAM, "play", path, "--rate", rate, "--wait", "120"], output="screen")]


def page(context: LaunchContext) -> list[ExecuteProcess]:
    """The web page, which subscribes to the node."""
    own = "/".join(["", *logger_name(context).split(".")])
    host, port = (LaunchConfiguration(f"viewer_{name}").perform(context) for name in ("host", "port"))
    command = [PROGRAM, "view", "--node", own, "--host", host, "--port", port]
    return [ExecuteProcess(cmd=command, output="screen")]


def rviz(context: LaunchContext) -> list[Node]:
    """RViz; in tf_mode camera also a frame with z up for it: the map's is then that of the first camera, y down."""
    map_frame = LaunchConfiguration("map_frame").perform(context) or "map"
    upright = ["--qx", "-0.5", "--qy", "0.5", "--qz", "-0.5", "--qw", "0.5"]
    frame = Node(
        package="tf2_ros",
        executable="static_transform_publisher",
        name="dust3r_upright",
        arguments=["--frame-id", "map_upright", "--child-frame-id", map_frame, *upright],
    )
    own = "/".join(["", *logger_name(context).split(".")])
    shown = [(f"/dust3r/{name}", f"{own}/{name}") for name in ("map", "points", "path", "keyframes", "depth")]
    window = Node(
        package="rviz2",
        executable="rviz2",
        name="dust3r_rviz",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", str(SHARE / "config" / "dust3r.rviz")],
        remappings=[*shown, ("/camera/image_raw", LaunchConfiguration("image_topic"))],
    )
    return [frame, window]


def generate_launch_description() -> LaunchDescription:
    shown = [
        OpaqueFunction(function=function, condition=IfCondition(LaunchConfiguration(name)))
        for name, function in (("rviz", rviz), ("viewer", page))
    ]
    return LaunchDescription([*arguments(), OpaqueFunction(function=node), OpaqueFunction(function=bag), *shown])
