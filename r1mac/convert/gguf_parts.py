"""A GGUF model in one file or several: which files belong together, read as one."""

import re
from pathlib import Path

from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import GGUFFile, GGUFTensor, read_gguf

# llama.cpp's own naming of the parts.
_PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def read_parts(path: Path) -> tuple[GGUFFile, tuple[Path, ...]]:
    """Return a GGUF model and its files: *path* is its file, any one of its parts, or the folder that holds them.

    Raises:
        BadCheckpoint: a part is missing, parts do not belong together, or a folder holds several models.
    """
    if path.is_dir():
        path = _only_model(path)
    match = _PART.match(path.name)
    count = int(match["count"]) if match else 1
    paths = tuple(
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") if match else path
        for number in range(1, count + 1)
    )
    if missing := [part.name for part in paths if match and not part.is_file()]:
        raise BadCheckpoint(
            f"{path.parent} lacks {len(missing)} of the {count} parts of {path.name}, the first is {missing[0]}",
            hint="fetch the missing parts into that folder",
        )
    files = [read_gguf(part) for part in paths]
    for number, file in enumerate(files):
        _check_place(file, number, count)
    return _joined(files), paths


def _only_model(folder: Path) -> Path:
    files = sorted(file for file in folder.glob("[!.]*.gguf") if file.is_file())
    models = {(match["stem"], match["count"]) if (match := _PART.match(file.name)) else file.name for file in files}
    if len(models) != 1:
        raise BadCheckpoint(
            f"{folder} holds {len(models)} GGUF models ({', '.join(file.name for file in files[:3])} …)",
            hint="name one of the files",
        )
    return files[0]


def _check_place(file: GGUFFile, number: int, count: int) -> None:
    said = int(file.metadata.get("split.count", 1) or 1)
    if said != count:
        raise BadCheckpoint(
            f"{file.path.name} is one of {said} parts, and its name says {count}",
            hint="give the parts their names back: NAME-00001-of-00003.gguf and so on",
        )
    if count > 1 and int(file.metadata.get("split.no", number)) != number:
        raise BadCheckpoint(
            f"{file.path.name} is part {int(file.metadata['split.no']) + 1} by its contents",
            hint="give the parts their names back: NAME-00001-of-00003.gguf and so on",
        )


def _joined(files: list[GGUFFile]) -> GGUFFile:
    first, tensors = files[0], dict[str, GGUFTensor]()
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise BadCheckpoint(
                    f"the tensor {name} is in {file.path.name} and in an earlier part", hint="fetch the parts again"
                )
            tensors[name] = tensor
    said = first.metadata.get("split.tensors.count")
    if len(files) > 1 and said is not None and int(said) != len(tensors):
        raise BadCheckpoint(
            f"the {len(files)} parts of {first.path.name} hold {len(tensors)} tensors and should hold {said}",
            hint="fetch the parts again",
        )
    return GGUFFile(first.path, first.metadata, tensors)
