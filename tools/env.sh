# Source this in bash or zsh, from any folder, to use what `make build` made: `. tools/env.sh`.
# It puts the environment's Python, rclpy, dust3r_ros (these sources) with its messages, and the programs in reach.
# Where a ROS 2 is sourced already it only adds the environment and the workspace to it.

if [ -n "${BASH_SOURCE:-}" ]; then
    _root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
elif [ -n "${ZSH_VERSION:-}" ]; then
    _root="$(cd "$(dirname "${(%):-%x}")/.." && pwd)"
else
    _root="${DUST3R_ROS_ROOT:-$PWD}"
fi

# _front NAME FOLDER: put FOLDER first in the list NAME, once.
_front() {
    eval "_list=\":\${$1:-}:\""
    while :; do
        case "$_list" in
            *":$2:"*) _list="${_list%%":$2:"*}:${_list#*":$2:"}" ;;
            *"::"*) _list="${_list%%"::"*}:${_list#*"::"}" ;;
            *) break ;;
        esac
    done
    _list=":$2$_list"
    _list="${_list#:}"
    export "$1=${_list%:}"
}

_venv="${DUST3R_ROS_VENV:-$_root/.venv}"
_front PATH "$_venv/bin"
_packages="$("$_venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
_version="${_packages#"$_venv/lib/"}"
if [ -d "$_venv/share/rclpy" ]; then # the wheels are a ROS prefix
    for _folder in "$_packages"/ros_*.libs; do _front LD_LIBRARY_PATH "$_folder"; done
    _front LD_LIBRARY_PATH "$_venv/lib"
    _front AMENT_PREFIX_PATH "$_venv"
    _front CMAKE_PREFIX_PATH "$_venv"
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # the library path is set: the wheels need not restart Python
    export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO="${ROS_DISTRO:-kilted}"
fi
if [ -d "$_root/install/share/dust3r_ros" ]; then # what `make build` made, after the sources: edits count at once
    _front LD_LIBRARY_PATH "$_root/install/lib"
    _front AMENT_PREFIX_PATH "$_root/install"
    _front CMAKE_PREFIX_PATH "$_root/install"
    for _folder in "$_root/install/lib/${_version%%/*}"/*-packages "$_root/install/local/lib/${_version%%/*}"/*-packages; do
        if [ -d "$_folder" ]; then _front PYTHONPATH "$_folder"; fi
    done
fi
_front PYTHONPATH "$_root"

unset -f _front
unset _root _venv _packages _version _folder _list
