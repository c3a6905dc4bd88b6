"""Make the ROS wheels of PyPI in this interpreter's environment fit to build messages against.

Their CMake files name the Python of the machine that built them. ``python tools/ros_wheels.py`` rewrites those
paths to this interpreter's; run again, it changes nothing. ``--check`` only says whether that is still to do.
"""

import argparse
import re
import sys
import sysconfig
from pathlib import Path

BUILDER_INCLUDE = re.compile(r"/opt/python/[^/;\"]+/include/python3\.\d+")
BUILDER_PACKAGES = re.compile(r"/opt/python/[^/;\"]+/lib/python3\.\d+/site-packages")


def rewritten(text: str, include: str, packages: str) -> str:
    """``text`` of a CMake file with the builder's header and package folders replaced."""
    return BUILDER_PACKAGES.sub(packages, BUILDER_INCLUDE.sub(include, text))


def foreign_files(prefix: Path) -> list[Path]:
    """The CMake files of the ament packages in ``prefix`` that name the builder's Python."""
    found = []
    for path in sorted(prefix.glob("share/*/cmake/**/*.cmake")):
        text = path.read_text(encoding="utf-8")
        if BUILDER_INCLUDE.search(text) or BUILDER_PACKAGES.search(text):
            found.append(path)
    return found


def main() -> int:
    """Rewrite, or check; the exit code is 1 when ``--check`` finds work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when there is work")
    parser.add_argument("--prefix", type=Path, default=Path(sys.prefix), help="environment (default: this one)")
    arguments = parser.parse_args()
    files = foreign_files(arguments.prefix)
    if arguments.check:
        return 1 if files else 0
    include, packages = sysconfig.get_paths()["include"], sysconfig.get_paths()["purelib"]
    for path in files:
        path.write_text(rewritten(path.read_text(encoding="utf-8"), include, packages), encoding="utf-8")
    print(f"ROS wheels: {len(files)} CMake files now name {include}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
