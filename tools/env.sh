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

_front PATH "$_root/.venv/bin"
for _packages in "$_root"/.venv/lib/python3*/site-packages; do :; done
_python="${_packages%/*}"
_python="${_python##*/}" # python3.11
if [ -d "$_root/.venv/share/rclpy" ]; then # the wheels are a ROS prefix
    for _folder in "$_packages"/ros_*.libs; do _front LD_LIBRARY_PATH "$_folder"; done
    _front LD_LIBRARY_PATH "$_root/.venv/lib"
    _front AMENT_PREFIX_PATH "$_root/.venv"
    _front CMAKE_PREFIX_PATH "$_root/.venv"
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # the library path is set: the wheels need not restart Python
    export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=kilted
    export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$_root/config/fastdds.xml}" # raw images
fi
if [ -d "$_root/install/share/dust3r_ros" ] && [ -z "${DUST3R_ROS_UNDERLAY_ONLY:-}" ]; then # what `make build` made
    _front LD_LIBRARY_PATH "$_root/install/lib"
    _front AMENT_PREFIX_PATH "$_root/install"
    _front CMAKE_PREFIX_PATH "$_root/install"
    for _folder in lib/$_python/site-packages lib/$_python/dist-packages local/lib/$_python/dist-packages; do
        if [ -d "$_root/install/$_folder" ]; then _front PYTHONPATH "$_root/install/$_folder"; fi
    done
fi
_front PYTHONPATH "$_root" # before the installed copy: edits count at once

unset -f _front
unset _root _packages _python _folder _list
