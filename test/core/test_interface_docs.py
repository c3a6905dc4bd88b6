"""What is derived from the options is up to date."""

import runpy
from pathlib import Path

import pytest
import yaml

from dust3r_ros.config import NodeConfig
from dust3r_ros.options import make_config, options_of

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "interface_docs.py"))


def parameters(name: str) -> dict[str, object]:
    return yaml.safe_load((ROOT / "config" / name).read_text("utf-8"))["/**"]["ros__parameters"]


def test_the_table_of_parameters_is_that_of_the_options():
    page = (ROOT / "docs" / "interface.md").read_text("utf-8")
    assert TOOL["with_table"](page) == page, "run tools/interface_docs.py"


def test_the_default_parameter_file_is_that_of_the_options():
    assert (ROOT / "config" / "default.yaml").read_text("utf-8") == TOOL["default_yaml"](), (
        "run tools/interface_docs.py"
    )


def test_the_default_parameter_file_sets_every_option_to_its_default():
    assert make_config(NodeConfig, parameters("default.yaml")) == NodeConfig()


def test_every_option_has_a_line_in_the_table():
    table = TOOL["parameter_table"]()
    for option in options_of(NodeConfig).values():
        assert f"| `{option.name}` | {option.type.__name__} | " in table


USES = ("robot", "drone", "car", "bag", "cpu", "cpu_network", "gpu_laptop", "gpu_datacenter", "orin")


@pytest.mark.parametrize("name", [f"{use}.yaml" for use in USES])
def test_each_parameter_file_is_valid_and_changes_something(name):
    assert make_config(NodeConfig, parameters(name)) != NodeConfig()


def test_every_parameter_file_is_tested_and_named_in_the_docs():
    files = {path.stem for path in (ROOT / "config").glob("*.yaml")}
    assert files == {*USES, "default"}
    text = (ROOT / "docs" / "interface.md").read_text("utf-8")
    assert all(f"`{use}.yaml`" in text for use in USES)
