"""The workspace that colcon built: messages and sources are one package, programs and files are where ROS looks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2")
pytest.importorskip("dust3r_ros.msg", reason="the workspace is not built or sourced: make build, . tools/env.sh")

ROOT = Path(__file__).resolve().parents[2]
IMPORT_BOTH = """
import dust3r_ros.config, dust3r_ros.msg, dust3r_ros.srv
print(dust3r_ros.config.__file__)
print(dust3r_ros.msg.__file__)
"""


@pytest.fixture(scope="module")
def prefix() -> Path:
    """The folder that dust3r_ros is installed in."""
    for folder in os.environ["AMENT_PREFIX_PATH"].split(":"):
        if (Path(folder) / "share" / "ament_index" / "resource_index" / "packages" / "dust3r_ros").exists():
            return Path(folder)
    pytest.fail("dust3r_ros is not in the ament index")


def built_packages(prefix: Path) -> Path:
    (found,) = (p.parent.parent for p in prefix.glob("**/*-packages/dust3r_ros/msg"))
    return found


def import_both(*python_path: Path) -> list[str]:
    """Where a new interpreter, elsewhere, with ``python_path`` before the rest finds sources and messages."""
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and not (Path(p) / "dust3r_ros").is_dir()]
    environment = {**os.environ, "PYTHONPATH": ":".join([*map(str, python_path), *rest])}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_BOTH], env=environment, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_sources_come_from_the_tree_and_messages_from_the_install(prefix: Path):
    built = built_packages(prefix)
    sources, messages = import_both(ROOT, built)
    assert Path(sources) == ROOT / "dust3r_ros" / "config.py"
    assert Path(messages) == built / "dust3r_ros" / "msg" / "__init__.py"


def test_the_install_is_complete_without_the_tree(prefix: Path):
    built = built_packages(prefix)
    sources, messages = import_both(built)
    assert Path(sources) == built / "dust3r_ros" / "config.py"
    assert Path(messages).is_relative_to(built)


def test_every_source_file_is_installed(prefix: Path):
    built = built_packages(prefix)
    sources = [p.relative_to(ROOT) for p in (ROOT / "dust3r_ros").rglob("*.py")]
    assert [str(p) for p in sources if not (built / p).exists()] == [], "new files: run make build"


@pytest.mark.parametrize("name", ["dust3r_node", "dust3r-ros"])
def test_ros2_run_finds_the_programs(prefix: Path, name: str):
    program = prefix / "lib" / "dust3r_ros" / name
    assert program.is_file()
    assert os.access(program, os.X_OK)


@pytest.mark.parametrize("folder", ["config", "launch"])
def test_parameter_and_launch_files_are_in_the_share_folder(prefix: Path, folder: str):
    names = [p.name for p in (ROOT / folder).iterdir() if p.is_file()]
    assert names
    assert [n for n in names if not (prefix / "share" / "dust3r_ros" / folder / n).exists()] == []


@pytest.mark.parametrize("name", ["msg/Status.msg", "srv/SaveMap.srv"])
def test_the_built_message_has_the_fields_of_the_file(name: str):
    import dust3r_ros.msg
    import dust3r_ros.srv

    text = re.sub(r"#.*", "", (ROOT / name).read_text(encoding="utf-8"))
    parts = [[line.split()[1] for line in part.splitlines() if line.strip()] for part in text.split("---")]
    stem = Path(name).stem
    if name.startswith("msg/"):
        built = [getattr(dust3r_ros.msg, stem)]
    else:
        service = getattr(dust3r_ros.srv, stem)
        built = [service.Request, service.Response]
    assert [list(b.get_fields_and_field_types()) for b in built] == parts


def test_a_status_survives_serialisation():
    from rclpy.serialization import deserialize_message, serialize_message

    from dust3r_ros.msg import Status

    status = Status(model="geometric", trained=True, frames_received=2**40, focal_px=525.5, metric=True)
    status.header.frame_id = "map"
    assert deserialize_message(serialize_message(status), Status) == status
