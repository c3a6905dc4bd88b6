"""The recording that the demo renders for itself: a walk through a room, with the truth."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dust3r_ros.errors import Dust3rError
from dust3r_ros.ros.bag_writer import write_bag
from dust3r_ros.ros.processes import Child
from dust3r_ros.training.sequences import walk_through_room

FRAMES, RATE_HZ = 110, 10.0
WIDTH, HEIGHT = 480, 360
RENDER_S = 900.0  # at most: some 20 s on a quiet machine


def rendered_bag(folder: Path, say: Callable[[str], None]) -> Path:
    """The bag in ``folder``, rendered in a process of its own unless an earlier run left it there.

    Raises RosError when the process fails or takes too long.
    """
    bag = folder / "rendered_room"
    if (bag / "metadata.yaml").is_file():
        say(f"using the room rendered before, {bag}")
        return bag
    say("rendering a walk through a room")
    # One thread: rendering is many small steps, and threads that wait for each other only take time from others.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with Child("dust3r_ros.ros.demo_bag", [str(bag)], folder / "render.log", environment) as child:
        child.start().wait(RENDER_S)
    return bag


def main(argv: Sequence[str] | None = None) -> int:
    """Render the bag to the folder named by the one argument; it appears whole or not at all."""
    (name,) = sys.argv[1:] if argv is None else argv
    bag = Path(name)
    partial = bag.with_name(f"{bag.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_bag(walk_through_room(FRAMES, WIDTH, HEIGHT, rate_hz=RATE_HZ), partial / bag.name)
        shutil.rmtree(bag, ignore_errors=True)
        (partial / bag.name).rename(bag)
    except Dust3rError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
