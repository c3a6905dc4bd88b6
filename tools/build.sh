#!/usr/bin/env bash
# Build the messages and the workspace with colcon into build/ and install/; does nothing when nothing it reads changed.
# The Python sources are linked, not copied: an edit needs no build, a new file does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -x .venv/bin/python ]; then
    echo "error: no .venv: run make install first" >&2
    exit 1
fi
DUST3R_ROS_UNDERLAY_ONLY=1 . tools/env.sh
for name in PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH LD_LIBRARY_PATH; do # a shell may have what is built here
    export "$name=$(tr ':' '\n' <<<"${!name:-}" | awk -v own="$PWD/install" 'index($0, own) != 1' | paste -sd :)"
done
sources=(CMakeLists.txt package.xml msg srv scripts tools/tf2_msgs tools/build.sh)
key="$({
    echo "$PWD ${AMENT_PREFIX_PATH:-}"
    cat .venv/.dust3r_ros_installed 2>/dev/null || true
    find "${sources[@]}" -type f | sort | xargs sha256sum
    find dust3r_ros config launch -type f -not -name '*.pyc' | sort
} | sha256sum)"
stamp=install/.dust3r_ros_built
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then exit 0; fi

packages=(.)
.venv/bin/python -c 'import tf2_msgs.msg' 2>/dev/null || packages+=(tools/tf2_msgs)
mkdir -p build
# ROS 2 tools may have been built with another Python than the environment's: name it.
if ! colcon build --merge-install --symlink-install --paths "${packages[@]}" --cmake-args \
    -DPython3_EXECUTABLE="$PWD/.venv/bin/python" -DBUILD_TESTING=OFF >build/build.log 2>&1; then
    tail -n 60 build/build.log >&2
    echo "error: colcon build failed; the whole log is build/build.log" >&2
    exit 1
fi
find install -xtype l -delete # links to sources that were removed or renamed
echo "$key" >"$stamp"
echo "Built: $(sed -n 's/^Summary: //p' build/build.log)"
