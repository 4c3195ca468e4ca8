"""Files that a test writes again and again."""

from pathlib import Path


def write_anew(path: Path, content: bytes) -> None:
    """Write *path* as a new file: cutting off one that is there makes ext4 wait for the disk each time."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
