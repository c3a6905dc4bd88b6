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

SHARE = Path(get_package_share_directory("dust3r_ros"))

# Arguments that are parameters of the node too: name, what it is.
PARAMETERS = {
    "checkpoint": "Predictor: geometric, tiny, a checkpoint file or a hub name",
    "device": "Torch device: auto, cpu, cuda or cuda:N",
    "image_transport": "Form of the image topic: raw, or compressed (subscribes to <image_topic>/compressed)",
    "intrinsics": "estimate them from the images, or use the given ones of camera_info_topic",
    "map_frame": "Frame of the world that the map is in",
    "camera_frame": "Frame of the camera on TF; the image headers' frame when neither this nor the file names one",
}


def arguments() -> list[DeclareLaunchArgument]:
    parameter_file = str(SHARE / "config" / "default.yaml")
    declared = [
        DeclareLaunchArgument("image_topic", default_value="/camera/image_raw", description="Image topic (base topic)"),
        DeclareLaunchArgument(
            "camera_info_topic", default_value="/camera/camera_info", description="CameraInfo topic of the same camera"
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
        DeclareLaunchArgument(name, default_value="", description=f"{text}. Empty: as in params_file")
        for name, text in PARAMETERS.items()
    ]


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
            arguments=["--ros-args", "--log-level", ["dust3r:=", LaunchConfiguration("log_level")]],
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
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="dust3r_rviz",
        arguments=["-d", str(SHARE / "config" / "dust3r.rviz")],
    )
    return [frame, rviz]


def generate_launch_description() -> LaunchDescription:
    shown = OpaqueFunction(function=viewer, condition=IfCondition(LaunchConfiguration("rviz")))
    return LaunchDescription([*arguments(), OpaqueFunction(function=node), shown])
