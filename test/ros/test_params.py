"""ROS parameters made from the options."""

import pytest
import rclpy
from rcl_interfaces.msg import ParameterType
from rclpy.parameter import Parameter

from dust3r_ros.config import NodeConfig
from dust3r_ros.errors import ConfigError
from dust3r_ros.options import make_config, options_of
from dust3r_ros.ros.params import LiveParameters, declare_config, describe


@pytest.fixture
def make_node(ros):
    """Nodes with parameters given from outside, as a file or the command line would."""
    made = []

    def make(**given):
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in given.items()]
        made.append(rclpy.create_node(f"parameters_{len(made)}", parameter_overrides=overrides, enable_rosout=False))
        return made[-1]

    yield make
    for node in made:
        node.destroy_node()


def test_every_option_is_declared_with_its_default_and_description(make_node):
    node = make_node()
    assert declare_config(node) == NodeConfig()
    for option in options_of(NodeConfig).values():
        assert node.get_parameter(option.name).value == option.default
        descriptor = node.describe_parameter(option.name)
        assert descriptor.description == option.description
        assert ("only while unconfigured" in descriptor.additional_constraints) is not option.live


def test_descriptors_have_type_range_and_choices():
    options = options_of(NodeConfig)
    window, blur = describe(options["window"]), describe(options["keyframes.max_blur"])
    assert window.type == ParameterType.PARAMETER_INTEGER
    assert (window.integer_range[0].from_value, window.integer_range[0].to_value) == (1, 50)
    assert (blur.floating_point_range[0].from_value, blur.floating_point_range[0].to_value) == (0.0, 1.0)
    assert describe(options["dtype"]).additional_constraints == (
        "one of: auto, float32, bfloat16, float16; only while unconfigured"
    )


def test_values_given_from_outside_are_taken_and_whole_numbers_pass_for_floats(make_node):
    node = make_node(window=5, keyframes__min_overlap=0.5, map_period=2, use_sim_time=True)
    assert declare_config(node) == make_config(
        NodeConfig, {"window": 5, "keyframes.min_overlap": 0.5, "map_period": 2.0}
    )
    assert node.get_parameter("map_period").type_ is Parameter.Type.DOUBLE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wndow": 3}, "unknown option 'wndow'; did you mean window?"),
        ({"window": 99}, "window must be from 1 to 50, got 99"),
        ({"checkpoint": 3}, "checkpoint must be a str, got 3"),
        ({"dtype": "int3"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int3'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(make_node, given, said):
    with pytest.raises(ConfigError) as caught:
        declare_config(make_node(**given))
    assert str(caught.value) == said


@pytest.fixture
def live(make_node):
    node = make_node()
    seen = []
    return node, LiveParameters(node, declare_config(node), seen.append, lambda: False), seen


def test_a_live_parameter_changes_the_configuration(live):
    node, parameters, seen = live
    result = node.set_parameters([Parameter("keyframes.min_overlap", value=0.4)])
    assert result[0].successful
    assert parameters.config == make_config(NodeConfig, {"keyframes.min_overlap": 0.4})
    assert seen == [parameters.config]


@pytest.mark.parametrize(
    ("name", "value"), [("window", 5), ("keyframes.min_overlap", 3.0), ("map_period", -1.0), ("map_period", "soon")]
)
def test_a_refused_change_says_why_and_changes_nothing(live, name, value):
    node, parameters, seen = live
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful
    assert result.reason
    assert parameters.config == NodeConfig()
    assert seen == []


def test_several_changes_at_once_are_all_taken_or_none(live):
    node, parameters, seen = live
    good, bad = Parameter("map_period", value=3.0), Parameter("keyframes.max_blur", value=7.0)
    assert not node.set_parameters_atomically([good, bad]).successful
    assert parameters.config == NodeConfig()
    assert node.set_parameters_atomically([good]).successful
    assert parameters.config.map_period == 3.0
    assert len(seen) == 1


def test_other_parameters_change_only_while_unconfigured(make_node):
    node, unconfigured = make_node(), True
    parameters = LiveParameters(node, declare_config(node), lambda _: None, lambda: unconfigured)
    assert node.set_parameters([Parameter("window", value=5)])[0].successful
    assert parameters.config.reconstructor.window == 5
    unconfigured = False
    refused = node.set_parameters([Parameter("window", value=6)])[0]
    assert (refused.successful, refused.reason) == (False, "window can be changed only while the node is unconfigured")
    assert parameters.config.reconstructor.window == 5
