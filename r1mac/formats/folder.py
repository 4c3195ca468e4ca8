"""A folder that holds a model: which files it has, and that none points elsewhere."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from r1mac.errors import BadCheckpoint
from r1mac.formats.safetensors import TensorEntry, read_header

INDEX_NAME = "model.safetensors.index.json"
_HEADER = ".header"
# Digests by name, of files that come and go.
DIGESTS_NAME = ".digests.json"
# How the files of layers that predict further tokens begin: other loaders take ``model*.safetensors`` only.
PREDICTION_STEM = "mtp"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

# Copied byte for byte from a source to a converted model, where they exist.
COMPANION_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        BadCheckpoint: the file is missing, or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCheckpoint(
            f"{path.parent} has no {path.name}", hint="name the folder that holds the model's config.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not valid JSON: {error}", hint="fetch or copy that file again") from error
    if not isinstance(data, dict):
        raise BadCheckpoint(f"{path} holds {type(data).__name__}, not an object", hint="fetch or copy that file again")
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's config.json.

    Raises:
        BadCheckpoint: it is missing, not JSON, or wants code from the folder to be run.
    """
    config = read_json(folder / "config.json")
    if "model_file" in config:
        raise BadCheckpoint(
            f"{folder / 'config.json'} wants to run {config['model_file']!r}, and r1mac runs no code that comes "
            "with a model",
            hint="use a model of a known architecture: llama, qwen2, qwen3 or deepseek_v3",
        )
    return config


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a model, in order: those that its index names, else all that are there.

    Raises:
        BadCheckpoint: there are none, one is missing, or the index names a file outside the folder.
    """
    if (folder / INDEX_NAME).exists():
        return _indexed_files(folder)
    present = {path for path in folder.glob("[!.]*.safetensors") if path.is_file()}
    files = tuple(sorted(present | expected_files(folder, "*.safetensors")))
    if files:
        return files
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise BadCheckpoint(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run code when it is opened",
            hint="use a safetensors copy of the model, or convert it with the tool that made it",
        )
    raise BadCheckpoint(f"{folder} has no .safetensors file", hint="name the folder that holds the model's weights")


def read_tensors(folder: Path) -> dict[str, tuple[Path, TensorEntry]]:
    """Return every tensor of a model by name, with its file, having checked all headers.

    A file that is not there yet is described by its header alone, where that is there (``header_path``).

    Raises:
        BadCheckpoint: as ``weight_files`` and ``read_header`` do, or a tensor is in two files.
    """
    tensors: dict[str, tuple[Path, TensorEntry]] = {}
    for path in weight_files(folder):
        here = path.is_file()
        for name, entry in read_header(path if here else header_path(path), header_only=not here).items():
            if name in tensors:
                raise BadCheckpoint(
                    f"the tensor {name} is in both {tensors[name][0].name} and {path.name}",
                    hint="delete the file that does not belong to this model",
                )
            tensors[name] = (path, entry)
    return tensors


def expected_files(folder: Path, pattern: str) -> set[Path]:
    """Return the weight files named like *pattern* that are known by their headers, and may come later."""
    return {path.with_name(path.name[1 : -len(_HEADER)]) for path in folder.glob(f".{pattern}{_HEADER}")}


def header_path(path: Path) -> Path:
    """Return where the header of the weight file *path* is, in a folder whose weight files come and go."""
    return path.with_name(f".{path.name}{_HEADER}")


def file_identities(files: Iterable[Path]) -> dict[str, str]:
    """Return by name what tells each of *files* from what it was before or will be.

    Its digest where its folder has a list of them (``DIGESTS_NAME``), else its size and the time of its last change.
    """
    known: dict[Path, dict[str, Any]] = {}
    found = {}
    for path in files:
        if path.parent not in known:
            listed = path.parent / DIGESTS_NAME
            known[path.parent] = read_json(listed) if listed.is_file() else {}
        if (digest := known[path.parent].get(path.name)) is not None:
            found[path.name] = str(digest)
        else:
            stat = path.stat()
            found[path.name] = f"{stat.st_size} bytes, changed {stat.st_mtime_ns}"
    return found


def is_plain_name(name: object) -> bool:
    """Tell whether *name* is a file name and not a way out of its folder."""
    return (
        isinstance(name, str)
        and bool(name)
        and name not in {".", ".."}
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )


def _indexed_files(folder: Path) -> tuple[Path, ...]:
    weight_map = read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{folder / INDEX_NAME} has no weight_map", hint="fetch or copy that file again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not is_plain_name(name) or not name.endswith(".safetensors"):
            raise BadCheckpoint(
                f"{INDEX_NAME} points to {name!r}, which is not a safetensors file beside it",
                hint=f"do not use this model; it lies in {folder}",
            )
        if not (folder / name).is_file() and not header_path(folder / name).is_file():
            raise BadCheckpoint(f"{folder} lacks {name}, which its index names", hint="fetch or copy that file again")
    return tuple(folder / name for name in names)
