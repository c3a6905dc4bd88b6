"""Imports go one way, ROS messages stay in ``ros``, Open3D in ``mapping/export``; everything else runs without ROS."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "dust3r_ros"
LEVELS = [
    {"errors"},
    {"options", "data", "files", "interruption"},
    {"config"},
    {"predictor"},
    {"geometry", "corners"},
    {"resection", "pair_errors"},
    {
        "images",
        "pictures",
        "network",
        "geometric",
        "pairing",
        "keyframes",
        "alignment",
        "mapping",
        "store",
        "updates",
        "encoded",
    },
    {"memory"},
    {"revisit", "landmarks", "predictors", "stopwatch", "placed"},
    {"tracking", "paired"},
    {"pipeline"},
    {"batch"},
    {"evaluation", "training", "viewer"},
    {"tasks"},
    {"ros"},
    {"fleet"},
    {"cli"},
    {"__main__"},
]
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
ROS_PACKAGES = {
    "rclpy", "rcl_interfaces", "rosgraph_msgs", "builtin_interfaces", "std_msgs", "std_srvs", "sensor_msgs",
    "sensor_msgs_py", "geometry_msgs", "nav_msgs", "visualization_msgs", "diagnostic_msgs", "tf2_msgs", "tf2_ros",
    "cv_bridge", "tf_transformations", "rosbag2_py", "launch", "launch_ros", "ament_index_python",
}  # fmt: skip


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The full name of every module a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names.add(node.module or "")
            if node.module == "dust3r_ros":
                names |= {f"dust3r_ros.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_is_allowed(path: Path) -> None:
    own = part_of(path)
    assert own in LEVEL_OF, f"{own} has no place in the layers: add it to LEVELS here and to the design"
    for name in imported(path):
        root, _, rest = name.partition(".")
        if root == "dust3r_ros" and rest and rest.split(".")[0] not in ("msg", "srv", "__version__"):
            other = rest.split(".")[0]
            assert other == own or LEVEL_OF[other] < LEVEL_OF[own], f"{own} must not import {name}"
        if root in ROS_PACKAGES or name.startswith(("dust3r_ros.msg", "dust3r_ros.srv")):
            assert own == "ros", f"only ros/ may import {name}"
        if root == "open3d":
            assert path == PACKAGE / "mapping" / "export.py", "only mapping/export may import open3d"


def test_the_check_sees_what_a_file_imports(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("import a.b\nfrom dust3r_ros import data\ndef f():\n    from dust3r_ros.ros.node import x\n")
    assert imported(source) == {"a.b", "dust3r_ros", "dust3r_ros.data", "dust3r_ros.ros.node"}


BLOCKED_IMPORT = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages} or name in ("dust3r_ros.msg", "dust3r_ros.srv"):
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
try:
    import rclpy
except ImportError:
    pass
else:
    sys.exit("rclpy was not blocked")
for name in {modules}:
    importlib.import_module(name)
loaded = sorted(set({packages}) & set(sys.modules))
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""


def test_everything_outside_ros_is_imported_without_ros_and_open3d() -> None:
    modules = [module_name(p) for p in sources() if part_of(p) != "ros" and p.name != "__main__.py"]
    assert "dust3r_ros.geometry" in modules
    script = BLOCKED_IMPORT.format(packages=repr({*ROS_PACKAGES, "open3d"}), modules=repr(modules))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
