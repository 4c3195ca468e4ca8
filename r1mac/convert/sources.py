"""Weights to convert, as a stream: a folder of safetensors or a GGUF file, read by ranges of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from r1mac.errors import BadCheckpoint, BadRecipe
from r1mac.formats import folder as model_folder


class Source(Protocol):
    """Weights under their Hugging Face names, with all that a model folder needs beside them.

    Attributes:
        config: the contents of config.json.
        description: what and where it is, for provenance.
        default_dtype: type of the converted model where the recipe does not say; None keeps each tensor's own.
        is_quantized: whether matrices are quantised already. Block FP8 does not count: DeepSeek published nothing
            finer.
        quantized_bits: mean width of their codes, or None where it is not counted (a GGUF is often the only copy).
    """

    config: dict[str, Any]
    description: str
    default_dtype: str | None
    is_quantized: bool
    quantized_bits: float | None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        ...

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the source."""
        ...

    def row_step(self, name: str) -> int:
        """Return the number of rows whose multiples ``rows`` may be asked for."""
        ...

    def files(self, name: str) -> tuple[str, ...]:
        """Return the names of the files that ``rows`` reads for a tensor; none where one file is the source."""
        ...

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor, dequantised if it was quantised."""
        ...

    def write_companions(self, into: Path) -> None:
        """Put the tokenizer's and other files that go with the weights into a folder."""
        ...


def open_source(path: Path, adapters: Sequence[Path] = (), *, prediction: bool = True) -> Source:
    """Open a folder of safetensors, one safetensors file, or a GGUF file; only headers are read.

    *adapters* are merged in their order. Without *prediction* layers behind the last one (MTP) are not there.

    Raises:
        BadCheckpoint: it is damaged, of an unknown kind, or not there; or an adapter does not fit it.
        BadRecipe: it is quantised in a way that is not read, or adapters were to be merged into what is quantised.
    """
    source = _open_plain(path, prediction=prediction)
    if adapters:
        from r1mac.convert.adapter import AdaptedSource

        for adapter in adapters:
            source = AdaptedSource(source, adapter)
    return source


def requantization_note(source: Source, *, bits: int) -> str | None:
    """Return what to say about converting a source that is quantised already, or None where it is not.

    To 16 bits is dequantising. More bits than the source has would cost memory and bring nothing back.

    Raises:
        BadRecipe: *bits* is more than the source's mean width.
    """
    had = source.quantized_bits
    if had is None:
        return None
    if bits >= 16:  # noqa: PLR2004
        return f"{source.description} is quantised to {had:.3g} bits; 16 bits write out what those stand for"
    if bits > had:
        raise BadRecipe(
            f"{source.description} is quantised to {had:.3g} bits already, and {bits} bits would only make it larger",
            hint=f"convert the original weights, or use --bits {int(had)} or fewer, or 16",
        )
    return (
        f"{source.description} is quantised to {had:.3g} bits already: quality is lost twice; the original weights "
        "would give a better model of the same size"
    )


def _open_plain(path: Path, *, prediction: bool) -> Source:
    from r1mac.convert.safetensors_source import SafetensorsSource

    if path.is_dir():
        if any(path.glob("[!.]*.gguf")) and not any(path.glob("[!.]*.safetensors")):
            return _open_gguf(path)
        return SafetensorsSource(path, prediction=prediction)
    if path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    if not path.exists():
        raise BadCheckpoint(f"there is nothing at {path}", hint="check the path")
    if path.suffix == ".safetensors":
        if not (path.parent / "config.json").is_file():
            raise BadCheckpoint(
                f"there is no config.json beside {path.name}",
                hint="put the config.json and tokenizer files of its model into the same folder",
            )
        return SafetensorsSource(path.parent, single_file=path, prediction=prediction)
    if path.suffix in model_folder.PICKLE_SUFFIXES:
        raise BadCheckpoint(
            f"{path.name} is a pickle file, which can run code when it is opened",
            hint="use a safetensors or GGUF copy of the model",
        )
    raise BadCheckpoint(
        f"{path.name} is neither a folder nor a safetensors or GGUF file",
        hint="name a model's folder, or a .safetensors or .gguf file",
    )


def _open_gguf(path: Path) -> Source:
    from r1mac.convert.gguf_source import GGUFSource

    return GGUFSource(path)
