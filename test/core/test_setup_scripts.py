"""tools/install.sh says in one line what a machine lacks; tools/env.sh may be sourced twice."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("bash", "cat", "dirname", "env", "grep", "sed", "sha256sum", "uname")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A clone in which only a few programs are on the PATH (its ``bin``), and no Python."""
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        (tmp_path / "bin" / program).symlink_to(found)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for path in [*ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    return tmp_path


def program(machine: Path, name: str, script: str = "exit 0") -> None:
    path = machine / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def python(machine: Path, version: str = "3.11", *, headers: bool = True, venv: bool = True) -> None:
    """A pretended interpreter that answers what install.sh asks."""
    include = machine / "include"
    include.mkdir(exist_ok=True)
    if headers:
        (include / "Python.h").touch()
    major, minor = version.split(".")
    supported = (3, 10) <= (int(major), int(minor)) <= (3, 13)
    program(machine, f"python{version}", f"""case "$*" in
        *rclpy*) exit 1 ;;
        *"(3, 10)"*) exit {0 if supported else 1} ;;
        *"%d.%d"*) echo {version} ;;
        *sysconfig*) echo {include} ;;
        *ensurepip*) exit {0 if venv else 1} ;;
        *) echo "went on: $*"; exit 9 ;;
        esac""")  # fmt: skip


def install(machine: Path, **variables: str) -> str:
    """What install.sh printed, which must fail."""
    done = subprocess.run(
        [machine / "tools" / "install.sh"],
        env={"PATH": str(machine / "bin"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    return (done.stderr + done.stdout).strip()


def test_no_python(machine: Path):
    assert install(machine).startswith("error: no Python 3.10 to 3.13 found")


def test_python_too_old(machine: Path):
    python(machine, "3.9")
    assert install(machine).startswith("error: no Python 3.10 to 3.13 found")
    assert install(machine, PYTHON="python3.9") == "error: PYTHON=python3.9 is not Python 3.10 to 3.13"


def test_no_python_headers(machine: Path):
    python(machine, headers=False)
    assert install(machine).endswith("install the headers of python3.11 (on Ubuntu: python3.11-dev)")


def test_no_c_compiler(machine: Path):
    python(machine)
    assert install(machine).startswith("error: no C compiler")


def test_no_cpp_compiler(machine: Path):
    python(machine)
    program(machine, "cc")
    assert install(machine).startswith("error: no C++ compiler")


def test_no_venv_module(machine: Path):
    python(machine, "3.12", venv=False)
    program(machine, "cc")
    program(machine, "c++")
    assert install(machine) == "error: python3.12 has no venv module: install it (on Ubuntu: python3.12-venv)"


def test_another_processor_without_ros(machine: Path):
    python(machine)
    (machine / "bin" / "uname").unlink()
    program(machine, "uname", "echo Linux aarch64")
    assert "x86-64 Linux only, not for Linux aarch64: source a ROS 2 first" in install(machine)


def test_a_complete_machine_goes_on_to_make_the_environment(machine: Path):
    python(machine)
    program(machine, "cc")
    program(machine, "c++")
    assert "went on: -m venv .venv" in install(machine)


def test_the_preferred_python_is_chosen(machine: Path):
    for version in ("3.10", "3.11", "3.12"):
        python(machine, version)
    program(machine, "cc")
    program(machine, "c++")
    assert install(machine).startswith("Making .venv with Python 3.11 (wheels)")


def sourced(folder: Path, times: int) -> dict[str, str]:
    command = f". {folder}/tools/env.sh; " * times + "env -0"
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        timeout=60,
    )
    return dict(item.split("=", 1) for item in done.stdout.split("\0") if "=" in item)


def test_the_environment_may_be_sourced_twice(tmp_path: Path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    packages = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    (packages / "ros_rcl.libs").mkdir(parents=True)
    (tmp_path / ".venv" / "share" / "rclpy").mkdir(parents=True)
    (tmp_path / "install" / "share" / "dust3r_ros").mkdir(parents=True)
    built = tmp_path / "install" / "lib" / "python3.11" / "site-packages"
    built.mkdir(parents=True)

    once = sourced(tmp_path, 1)
    assert once["PYTHONPATH"] == f"{tmp_path}:{built}"
    assert once["AMENT_PREFIX_PATH"] == f"{tmp_path}/install:{tmp_path}/.venv"
    assert once["LD_LIBRARY_PATH"] == f"{tmp_path}/install/lib:{tmp_path}/.venv/lib:{packages}/ros_rcl.libs"
    assert once["PATH"].startswith(f"{tmp_path}/.venv/bin:")
    assert not [name for name in once if name.startswith("_") and name not in ("_", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")]
    for name, value in sourced(tmp_path, 2).items():
        if name.endswith("PATH"):
            assert value == once[name]
