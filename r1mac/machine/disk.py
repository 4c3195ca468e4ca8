"""Where a path lies and how much room there is, the same questions on every computer."""

from pathlib import Path


def free_disk_bytes(path: Path) -> int:
    """Return the room left on the disk that holds *path* or its nearest existing parent.

    Raises:
        OSError: not even the root of the file system can be asked.
    """
    import shutil

    folder = path.absolute()
    while True:
        try:
            return shutil.disk_usage(folder).free
        except OSError:  # missing, below a file, or not ours to look at: its parent is on the same disk or nearer to it
            if folder.parent == folder:
                raise
            folder = folder.parent


def existing_parent(path: Path) -> Path:
    """Return *path* without links, or its nearest parent that exists: they are on the same volume."""
    folder = path.absolute()
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    return folder.resolve()
