"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dust3r_ros.errors import ExportError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well.

    Missing folders are made; the file's permissions are what the umask leaves. Raises ExportError when the system
    refuses.
    """
    path = Path(path)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        scratch = Path(name)
        os.close(handle)
        yield scratch
        scratch.chmod(0o666 & ~_umask())
        scratch.replace(path)
    except OSError as error:
        # NumPy says of a full disk only how many bytes it wrote.
        raise ExportError(f"cannot write {path}: {error.strerror or f'{error} (is the disk full?)'}") from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
