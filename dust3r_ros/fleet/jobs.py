"""What there is to do: one job for each recording, video and folder of images that is found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dust3r_ros.errors import FleetError
from dust3r_ros.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES

RECORDING_SUFFIXES = frozenset({".mcap", ".db3", ".bag"})


@dataclass(frozen=True)
class Job:
    """``source`` through the command line's ``command`` with ``options``, into ``folder``; both paths are absolute."""

    name: str
    source: Path
    folder: Path
    command: str
    options: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Of ``dust3r-ros``. Whether anything may be overwritten is for its caller to know."""
        return [self.command, str(self.source), "--out", str(self.folder), "--overwrite", *self.options]


def is_recording(path: Path) -> bool:
    """Whether it looks like a rosbag2, folder or file, or a ROS 1 bag."""
    return path.suffix.lower() in RECORDING_SUFFIXES or (path / "metadata.yaml").is_file()


def find_jobs(
    given: Sequence[Path], out: Path, *, options: Sequence[str] = (), replay_options: Sequence[str] = ()
) -> list[Job]:
    """A job for each path, and for everything inside those that are folders of recordings.

    Each writes to a folder of its own in ``out``, called after its source, with as many of the folders above as tell it
    from the others. ``replay_options`` are for recordings alone. Raises FleetError where nothing is found, and where
    two cannot be told apart.
    """
    out = _absolute(out)
    found: dict[Path, None] = {}
    for path in given:
        if not path.exists():
            raise FleetError(f"{path}: no such file or folder")
        inside = [source for source in _sources(_absolute(path)) if not source.is_relative_to(out)]
        if not inside:
            raise FleetError(f"{path}: neither a recording nor a video nor a folder with images, and none is in it")
        found.update(dict.fromkeys(inside))
    jobs = []
    for source, name in zip(found, _names(list(found))):
        extra = replay_options if is_recording(source) else ()
        command = "replay" if is_recording(source) else "reconstruct"
        jobs.append(Job(name, source, out / name, command, (*options, *extra)))
    return jobs


def _absolute(path: Path) -> Path:
    """Without ``..``: a job called so would write to the folder above, and clear it."""
    return path.resolve() if ".." in path.parts else path.absolute()


def _sources(path: Path) -> Iterator[Path]:
    """Recordings, videos and folders with images, in the order of their names; what is in such a folder is one job."""
    if is_recording(path) or path.suffix.lower() in VIDEO_SUFFIXES:
        yield path
    elif path.is_dir():
        inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
        if any(child.suffix.lower() in IMAGE_SUFFIXES and child.is_file() for child in inside):
            yield path
            return
        for child in inside:
            yield from _sources(child)


def _names(sources: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as make it different from all others, joined by ``_``."""
    names = ["" for _ in sources]
    for parts in range(1, 1 + max(len(source.parts) for source in sources)):
        undecided: defaultdict[str, list[int]] = defaultdict(list)
        for k, source in enumerate(sources):
            if not names[k]:
                undecided[_last(source, parts)].append(k)
        for name, places in undecided.items():
            if len(places) == 1 and name not in names:
                names[places[0]] = name
    missing = [str(source) for source, name in zip(sources, names) if not name]
    if missing:
        raise FleetError(f"their results would have one name: {', '.join(missing)}")
    return names


def _last(source: Path, parts: int) -> str:
    whole = [*source.parts[1:-1], source.stem if source.is_file() else source.name]
    return "_".join(whole[-parts:])
