"""What is declared, in three places, agrees: package.xml, pyproject.toml and the pinned requirements."""

import ast
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from programs import load_program

import dust3r_ros

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]

# What a module is called by pip and by rosdep, or the package that brings it; "" where rosdep has no name.
DECLARED_AS = {
    "OpenEXR": ("openexr", ""),
    "PIL": ("pillow", "python3-pil"),
    "cv2": ("opencv-python-headless", "python3-opencv"),
    "httpx": ("huggingface-hub", "python3-huggingface-hub-pip"),
    "huggingface_hub": ("huggingface-hub", "python3-huggingface-hub-pip"),
    "matplotlib": ("matplotlib", "python3-matplotlib"),
    "numpy": ("numpy", "python3-numpy"),
    "open3d": ("open3d", "python3-open3d-pip"),
    "pycolmap": ("pycolmap", ""),
    "rosbags": ("rosbags", "python3-rosbags-pip"),
    "safetensors": ("safetensors", ""),
    "scipy": ("scipy", "python3-scipy"),
    "torch": ("torch", "python3-pytorch-pip"),
    "skimage": ("scikit-image", "python3-skimage"),
    "tqdm": ("tqdm", "python3-tqdm"),
    "trimesh": ("trimesh", ""),
    "yaml": ("pyyaml", "python3-yaml"),
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pyproject_dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"] + _of_extras(project)]


def _of_extras(project: dict[str, Any]) -> list[str]:
    """What the package can use beyond its dependencies, but for developers' tools and Ray, which is large and only for
    those who have a cluster: ``make install`` leaves it out.
    """
    extras = project["optional-dependencies"]
    return [line for name, lines in extras.items() if name not in ("dev", "fleet") for line in lines]


def pins(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    return [Requirement(line.split("--hash")[0]) for line in lines if line and not line.startswith("#")]


def package_xml() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def ros_dependencies() -> set[str]:
    return {str(e.text) for e in package_xml() if e.tag.endswith("depend")}


def imported_modules() -> set[str]:
    """Top-level names that the package and its launch files import, and that neither Python nor the package has."""
    names: set[str] = set()
    for path in [*(ROOT / "dust3r_ros").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"dust3r_ros", "_typeshed"}


def load_tool(name: str) -> ModuleType:
    return load_program(ROOT / "tools" / f"{name}.py")


def test_every_import_is_declared_to_pip_or_to_ros():
    with_pip = {canonical(r.name) for r in pyproject_dependencies()}
    with_ros = ros_dependencies()
    missing = []
    for module in sorted(imported_modules()):
        pip_name, ros_name = DECLARED_AS.get(module, ("", module))
        if pip_name and pip_name not in with_pip:
            missing.append(f"{module}: {pip_name} in pyproject.toml")
        if ros_name and ros_name not in with_ros:
            missing.append(f"{module}: {ros_name} in package.xml")
    assert not missing


def test_one_version():
    assert package_xml().findtext("version") == dust3r_ros.__version__
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["version"] == dust3r_ros.__version__


def test_the_messages_and_services_are_all_built():
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    interfaces = [p.relative_to(ROOT).as_posix() for folder in ("msg", "srv") for p in (ROOT / folder).iterdir()]
    assert [name for name in interfaces if f'"{name}"' not in cmake] == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-ros.txt", "requirements-build.txt"])
def test_requirements_are_pinned_exactly(name: str):
    assert [str(r) for r in pins(name) if not re.fullmatch(r"==[^=*]+", str(r.specifier))] == []


def test_the_pins_are_what_pip_install_accepts():
    accepted = {canonical(r.name): r for r in pyproject_dependencies() if r.marker is None or r.marker.evaluate()}
    pinned = {canonical(r.name): r for r in pins("requirements.txt") if r.marker is None or r.marker.evaluate()}
    assert set(pinned) == set(accepted)
    for name, pin in pinned.items():
        version = str(pin.specifier).removeprefix("==")
        assert accepted[name].specifier.contains(version), f"{name} {version} is outside {accepted[name].specifier}"


def test_every_ros_wheel_has_the_hashes_of_all_pythons():
    text = (ROOT / "requirements-ros.txt").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line.startswith("ros-")]
    counts = {line.split("==")[0]: len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)) for line in lines}
    assert counts["ros-rclpy"] == 4
    assert set(counts.values()) <= {1, 4}  # 1: the wheel is the same for each Python


BUILDER = """set_target_properties(m PROPERTIES INTERFACE_INCLUDE_DIRECTORIES \
"/opt/python/cp311-cp311/include/python3.11;/opt/python/cp311-cp311/lib/python3.11/site-packages/numpy/_core/include")
"""


def test_cmake_files_of_the_wheels_are_made_to_name_this_python():
    text = load_tool("ros_wheels").rewritten(BUILDER, "/here/include", "/here/packages")
    assert '"/here/include;/here/packages/numpy/_core/include"' in text


def test_rewriting_the_wheels_is_checked_and_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tool = load_tool("ros_wheels")
    cmake = tmp_path / "share" / "std_msgs" / "cmake" / "std_msgsExport.cmake"
    cmake.parent.mkdir(parents=True)
    cmake.write_text(BUILDER, encoding="utf-8")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ros_wheels.py", "--prefix", str(tmp_path), *arguments])
        return int(tool.main())

    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
    assert "/opt/python" not in cmake.read_text(encoding="utf-8")
