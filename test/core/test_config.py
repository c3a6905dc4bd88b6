import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dust3r_ros.config import KeyframeConfig, NodeConfig, ReconstructorConfig
from dust3r_ros.errors import ConfigError
from dust3r_ros.options import Option, flatten_config, make_config, options_of

OPTIONS = options_of(NodeConfig)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_described_and_its_default_is_allowed(option: Option) -> None:
    assert len(option.description) > 10
    assert not option.description.endswith(".")
    assert option.check(option.default) == option.default
    if option.type in (int, float):
        assert option.range_text(), "a number without a range"


def test_options_have_dotted_names_and_the_pipeline_is_flat_in_the_node() -> None:
    assert "keyframes.min_overlap" in OPTIONS
    assert "checkpoint" in OPTIONS
    assert not any(name.startswith("reconstructor.") for name in OPTIONS)
    assert OPTIONS["keyframes.min_overlap"].default == KeyframeConfig().min_overlap


def test_nothing_given_gives_the_defaults() -> None:
    assert make_config(NodeConfig) == NodeConfig()
    assert make_config(NodeConfig, {}) == NodeConfig()


def test_dotted_and_nested_values_are_the_same() -> None:
    dotted = make_config(NodeConfig, {"keyframes.min_overlap": 0.5, "window": 2, "map_frame": "world"})
    nested = make_config(NodeConfig, {"keyframes": {"min_overlap": 0.5}, "window": 2, "map_frame": "world"})
    assert dotted == nested
    assert dotted.reconstructor.keyframes.min_overlap == 0.5
    assert dotted.reconstructor.window == 2
    assert dotted.map_frame == "world"


@st.composite
def allowed_values(draw: st.DrawFn) -> dict[str, object]:
    chosen = draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True))
    return {name: draw(_values_of(OPTIONS[name])) for name in chosen}


def _values_of(option: Option) -> st.SearchStrategy:
    if option.choices:
        return st.sampled_from(option.choices)
    if option.type is bool:
        return st.booleans()
    if option.type is float:
        return st.floats(option.minimum, option.maximum, allow_nan=False, allow_infinity=False)
    if option.type is int:
        return st.integers(int(option.minimum or 0), int(option.maximum or 10**6))
    text = st.text("aZ0/.: é", max_size=8)
    return text if option.type is str else st.lists(text, max_size=3)


@given(allowed_values())
def test_a_config_survives_being_flattened(values: dict[str, object]) -> None:
    config = make_config(NodeConfig, values)
    flat = flatten_config(config)
    assert list(flat) == list(OPTIONS)
    assert all(flat[name] == value for name, value in values.items())
    assert make_config(NodeConfig, flat) == config


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown option 'keyframes.min_overlapp'; did you mean keyframes.min_overlap"
    ):
        make_config(ReconstructorConfig, {"keyframes.min_overlapp": 0.5})
    with pytest.raises(ConfigError, match=r"unknown option 'zzz'$"):
        make_config(ReconstructorConfig, {"zzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("window", 0, "window must be from 1 to 50, got 0"),
        ("image_size", -1, "image_size must be from 0 to 8192, got -1"),
        ("window", 2.0, "window must be a int, got 2.0"),
        ("window", True, "window must be a int, got True"),
        ("window", "3", "window must be a int, got '3'"),
        ("keyframes.min_overlap", float("nan"), "from 0.1 to 0.99, got nan"),
        ("keyframes.every_image", 1, "must be a bool, got 1"),
        ("checkpoint", 3, "checkpoint must be a str, got 3"),
        ("dtype", "int8", "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(ReconstructorConfig, {name: value})


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    value = make_config(ReconstructorConfig, {"keyframes.max_blur": 1}).keyframes.max_blur
    assert value == 1.0
    assert type(value) is float


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NodeConfig().map_frame = "odom"  # type: ignore[misc]
