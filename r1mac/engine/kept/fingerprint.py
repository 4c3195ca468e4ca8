"""What tells one model's weights from another's, without reading all of them."""

import hashlib
from pathlib import Path

from r1mac.formats.folder import weight_files

_SAMPLES = 4
_SAMPLE_BYTES = 4096
_MAX_HEADER_BYTES = 2**27


def model_fingerprint(folder: Path) -> str:
    """Return 32 hexadecimal digits that another model, or this one after any change, does not have.

    It is taken from what the folder says of the model (config, index, and the digests that a conversion keeps), and
    of each weight file from its name, size, time of change, header and a few samples of its contents: two finetunes
    of one model have files of the same names and sizes. A copy that keeps the files' times keeps the fingerprint.

    Raises:
        BadCheckpoint: there are no weights.
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(b"r1mac model 1\0")
    descriptions = (path for path in folder.glob("*.json") if not path.name.startswith("tokenizer"))
    for path in sorted(descriptions):
        digest.update(b"%s\0%s\0" % (path.name.encode(), hashlib.sha256(path.read_bytes()).digest()))
    for path in weight_files(folder):
        with path.open("rb", buffering=0) as file:
            status = path.stat()
            digest.update(b"%s\0%d\0%d\0" % (path.name.encode(), status.st_size, status.st_mtime_ns))
            header_bytes = min(int.from_bytes(file.read(8), "little"), _MAX_HEADER_BYTES)
            digest.update(file.read(header_bytes))
            for sample in range(_SAMPLES):
                file.seek((2 * sample + 1) * status.st_size // (2 * _SAMPLES))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
