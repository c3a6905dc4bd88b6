"""Where the command line begins: ``dust3r-ros`` and ``python -m dust3r_ros``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; an interrupt while it is still importing ends it quietly."""
    try:
        from dust3r_ros import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
