"""A panel that runs a reconstruction of images dropped into the page."""

from __future__ import annotations

import io
import logging
import lzma
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dust3r_ros.errors import Dust3rError, ImageError
from dust3r_ros.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key
from dust3r_ros.viewer.page import Viewer
from dust3r_ros.viewer.scene import ViewedScene

log = logging.getLogger(__name__)

_UNREADABLE = (  # what a damaged, encrypted or unusual .zip raises
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, NotImplementedError, RuntimeError, EOFError,
)  # fmt: skip

AUTOMATIC = "automatic"
_MOST_WINDOW = 20
_MOST_LISTED = 12
_MOST_UNPACKED = 4 * 10**9  # bytes of a .zip


@dataclass(frozen=True)
class Upload:
    """A file dropped into the page."""

    name: str
    content: bytes


@dataclass(frozen=True)
class RunSettings:
    """What a visitor chose: the scene ``graph`` by its name, where ``automatic`` leaves it to the number of images;
    ``window`` views before each for the graphs that have one.
    """

    graph: str = AUTOMATIC
    window: int = 3


Progress = Callable[[str, int, int], None]
Runner = Callable[[Sequence[Upload], RunSettings, Progress], ViewedScene]
"""Makes a scene of files. Raises a Dust3rError that says what is wrong with them."""


def unpacked(file: Upload) -> list[Upload]:
    """The images and videos of a .zip, in natural order; any other file as it is.

    Raises ImageError for a .zip that is damaged, encrypted, too large or has no images in it.
    """
    if Path(file.name).suffix.lower() != ".zip":
        return [file]
    try:
        with zipfile.ZipFile(io.BytesIO(file.content)) as archive:
            inside = [entry for entry in archive.infolist() if _is_wanted(entry.filename)]
            if sum(entry.file_size for entry in inside) > _MOST_UNPACKED:
                raise ImageError(f"more than {_MOST_UNPACKED // 10**9} GB when unpacked")
            inside.sort(key=lambda entry: natural_key(entry.filename))
            found = [Upload(entry.filename, archive.read(entry)) for entry in inside]
    except _UNREADABLE as error:
        raise ImageError(f"this .zip cannot be read ({error})") from error
    if not found:
        raise ImageError("no images are in this .zip")
    return found


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


class RunPanel:
    """Drop images in, choose the graph, run. One run at a time; what is wrong with the files is said in the panel."""

    def __init__(self, viewer: Viewer, runner: Runner, graphs: Sequence[str], window: int) -> None:
        self._viewer, self._runner = viewer, runner
        self._files: list[Upload] = []
        self._busy = threading.Lock()
        gui = viewer.server.gui
        with viewer.controls.tabs.add_tab("Run"):
            self._add = gui.add_upload_button(
                "Add an image, a video or a .zip",
                mime_type="image/*,video/*,.zip,.heic,.heif",
                hint="The browser takes one file at a time: for many images, a .zip of them",
            )
            self._list = gui.add_markdown("No images yet.")
            self._graph = gui.add_dropdown("Scene graph", (AUTOMATIC, *graphs), initial_value=AUTOMATIC)
            self._window = gui.add_slider("Window", 1, _MOST_WINDOW, 1, min(window, _MOST_WINDOW))
            self._run = gui.add_button("Reconstruct", disabled=True)
            self._clear = gui.add_button("Remove all images", disabled=True)
            self._bar = gui.add_progress_bar(0.0, visible=False)
            self._said = gui.add_markdown("")
        self._add.on_upload(self._added)
        self._clear.on_click(self._cleared)
        self._run.on_click(self._start)

    def _added(self, event: Any) -> None:
        file = event.target.value
        try:
            self._files += unpacked(Upload(file.name, file.content))
            self._said.content = ""
        except Dust3rError as error:
            self._said.content = f"**{file.name} was not added:** {error}"
        self._listed()

    def _cleared(self, _: Any) -> None:
        self._files.clear()
        self._listed()

    def _listed(self) -> None:
        names = [f"- {file.name}" for file in self._files]
        if len(names) > _MOST_LISTED:
            names = [*names[: _MOST_LISTED - 1], f"- ... {len(names)} files in all"]
        self._list.content = "\n".join(names) or "No images yet."
        self._run.disabled = self._clear.disabled = not self._files

    def _start(self, _: Any) -> None:
        if not self._busy.acquire(blocking=False):
            return
        threading.Thread(target=self._work, name="viewer run", daemon=True).start()

    def _work(self) -> None:
        self._run.disabled, self._bar.visible, self._said.content = True, True, ""
        try:
            settings = RunSettings(self._graph.value, int(self._window.value))
            self._viewer.show(self._runner(tuple(self._files), settings, self._progress))
            self._said.content = "Done."
        except Dust3rError as error:
            log.warning("%s", error)
            self._said.content = f"**This did not work:** {error}"
        finally:
            self._run.disabled, self._bar.visible = False, False
            self._busy.release()

    def _progress(self, stage: str, done: int, whole: int) -> None:
        self._bar.value = 100.0 * done / whole if whole else 0.0
        self._said.content = f"{stage}: {done} of {whole}" if whole else stage
