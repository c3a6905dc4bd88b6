#!/usr/bin/env bash
# Make .venv with everything the package needs; does nothing when the pins have not changed since.
# PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

supported() { # supported COMMAND: is it Python 3.10 to 3.13?
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

ros_sourced() { # ros_sourced COMMAND: can it import the rclpy of a ROS 2 that is sourced?
    [ -n "${ROS_DISTRO:-}${AMENT_PREFIX_PATH:-}" ] || return 1
    "$1" - "$PWD/.venv" 2>/dev/null <<'PYTHON'
import sys

import rclpy

sys.exit(rclpy.__file__.startswith(sys.argv[1]))  # our own wheels do not count
PYTHON
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.10 to 3.13"
        echo "$PYTHON"
        return
    fi
    local candidates=(python3.11 python3.12 python3.13 python3.10 python3)
    if ros_sourced python3; then candidates=(python3); fi
    for candidate in "${candidates[@]}"; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 to 3.13 found (3.11 is the tested one): install it, or give it with PYTHON=/path/to/python"
}

python="$(find_python)"
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
mode=wheels
if ros_sourced "$python"; then mode="ros-${ROS_DISTRO:-unknown}"; fi

key="$({
    echo "$mode"
    cat requirements*.txt tools/install.sh tools/ros_wheels.py
    sed '/^\[tool\.ruff\]/q' pyproject.toml # what follows sets up the linters only
} | sha256sum)"
stamp=.venv/.dust3r_ros_installed
key="$key $PWD" # a folder that was moved is made anew: its programs name it
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then exit 0; fi

if [ "$mode" = wheels ] && [ "$(uname -sm)" != "Linux x86_64" ]; then
    fail "no ROS 2 is sourced, and its wheels exist for x86-64 Linux only, not for $(uname -sm): source a ROS 2 first"
fi
headers="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
[ -f "$headers/Python.h" ] || fail "no Python.h in $headers: install the headers of $python (on Ubuntu: python$version-dev)"
command -v "${CC:-cc}" >/dev/null || fail "no C compiler: install gcc (on Ubuntu: build-essential), or give it with CC="
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler: install g++ (on Ubuntu: build-essential), or give it with CXX="

if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module: install it (on Ubuntu: python$version-venv)"
    echo "Making .venv with Python $version ($mode)"
    if [ "$mode" = wheels ]; then "$python" -m venv .venv; else "$python" -m venv --system-site-packages .venv; fi
fi
grep -q "include-system-site-packages = $([ "$mode" = wheels ] && echo false || echo true)" .venv/pyvenv.cfg ||
    fail ".venv was made $([ "$mode" = wheels ] && echo with || echo without) a sourced ROS 2: remove it (make distclean) and run again"

pip=(env PYTHONWARNINGS=ignore .venv/bin/python -m pip --disable-pip-version-check)
if [ "$mode" = wheels ]; then
    echo "Installing Python packages (PyTorch is large: this may take some minutes)"
    "${pip[@]}" install --quiet -r requirements.txt -r requirements-build.txt -r requirements-dev.txt
    "${pip[@]}" install --quiet --no-deps --require-hashes -r requirements-ros.txt
    .venv/bin/python tools/ros_wheels.py
    "${pip[@]}" install --quiet --no-deps --no-build-isolation --editable .
else
    # The system's NumPy stays: cv_bridge and other ROS modules are compiled against it.
    echo "Installing Python packages that $ROS_DISTRO does not have (PyTorch is large: this may take some minutes)"
    .venv/bin/python -c 'import numpy; print(f"numpy=={numpy.__version__}")' >.venv/system-constraints.txt
    "${pip[@]}" install --quiet --constraint .venv/system-constraints.txt --editable ".[export,heic,train]" -r requirements-dev.txt
    command -v colcon >/dev/null || "${pip[@]}" install --quiet colcon-common-extensions
fi
echo "$key" >"$stamp"
echo "Installed: . tools/env.sh puts it in reach"
