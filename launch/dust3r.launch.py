"""Start the dust3r node, and RViz when asked. `--show-args` lists the arguments.

An argument that is left empty leaves the choice to the parameter file.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from dust3r_ros.config import NodeConfig, options_of

SHARE = Path(get_package_share_directory("dust3r_ros"))

# Parameters of the node that are arguments too.
PARAMETERS = ("checkpoint", "device", "image_transport", "image_reliability", "intrinsics", "map_frame", "camera_frame")


def arguments() -> list[DeclareLaunchArgument]:
    parameter_file = str(SHARE / "config" / "default.yaml")
    declared = [
        DeclareLaunchArgument(
            "image_topic",
            default_value="camera/image_raw",
            description="Image topic, in the namespace unless it begins with a slash; of compressed images the topic "
            "without /compressed",
        ),
        DeclareLaunchArgument(
            "camera_info_topic", default_value="camera/camera_info", description="CameraInfo topic of the same camera"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics"),
        DeclareLaunchArgument("params_file", default_value=parameter_file, description="Parameter file of the node"),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=["true", "false"], description="Take the time from /clock"
        ),
        DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="Start RViz too"),
        DeclareLaunchArgument(
            "respawn", default_value="false", choices=["true", "false"], description="Start the node again if it dies"
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Least severity of the node's messages",
        ),
    ]
    return declared + [
        DeclareLaunchArgument(name, default_value="", description=f"{about(name)}. Empty: as in params_file")
        for name in PARAMETERS
    ]


def about(name: str) -> str:
    """What a parameter is, and its choices."""
    option = options_of(NodeConfig)[name]
    choices = f" ({', '.join(option.choices)})" if option.choices else ""
    return f"{option.description}{choices}"


def logger_name(context: LaunchContext) -> str:
    """The node's: its namespaces, this file's and those that a file which includes it has pushed, with dots."""
    given = LaunchConfiguration("namespace").perform(context)
    pushed = "" if given.startswith("/") else context.launch_configurations.get("ros_namespace", "")
    return ".".join([*filter(None, f"{pushed}/{given}".split("/")), "dust3r"])


def node(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in PARAMETERS}
    overrides = {name: ParameterValue(value, value_type=str) for name, value in given.items() if value}
    sim_time = LaunchConfiguration("use_sim_time").perform(context) == "true"
    return [
        Node(
            package="dust3r_ros",
            executable="dust3r_node",
            name="dust3r",
            namespace=LaunchConfiguration("namespace"),
            output="screen",
            emulate_tty=True,
            respawn=LaunchConfiguration("respawn").perform(context) == "true",
            respawn_delay=2.0,
            parameters=[LaunchConfiguration("params_file"), {**overrides, "use_sim_time": sim_time}],
            remappings=[
                ("image", LaunchConfiguration("image_topic")),
                ("camera_info", LaunchConfiguration("camera_info_topic")),
            ],
            arguments=["--ros-args", "--log-level", [logger_name(context), ":=", LaunchConfiguration("log_level")]],
        )
    ]


def viewer(context: LaunchContext) -> list[Node]:
    """RViz, and a frame with z up for it: the map's is that of the first camera, y down."""
    map_frame = LaunchConfiguration("map_frame").perform(context) or "map"
    upright = ["--qx", "-0.5", "--qy", "0.5", "--qz", "-0.5", "--qw", "0.5"]
    frame = Node(
        package="tf2_ros",
        executable="static_transform_publisher",
        name="dust3r_upright",
        arguments=["--frame-id", "map_upright", "--child-frame-id", map_frame, *upright],
    )
    own = "/".join(["", *logger_name(context).split(".")])
    shown = [(f"/dust3r/{name}", f"{own}/{name}") for name in ("map", "points", "path", "depth")]
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="dust3r_rviz",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", str(SHARE / "config" / "dust3r.rviz")],
        remappings=[*shown, ("/camera/image_raw", LaunchConfiguration("image_topic"))],
    )
    return [frame, rviz]


def generate_launch_description() -> LaunchDescription:
    shown = OpaqueFunction(function=viewer, condition=IfCondition(LaunchConfiguration("rviz")))
    return LaunchDescription([*arguments(), OpaqueFunction(function=node), shown])
