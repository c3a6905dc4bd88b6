"""How fast the network runs here: ``dust3r-ros bench`` under the name that `make bench` looks for.

    python benchmark/network.py [--architecture 224_linear] [--dtypes auto float32] [--out network.json]

See ``dust3r-ros bench --help``.
"""

import sys

from dust3r_ros.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
