"""An adapter merged into a source on the way: each block of rows changes before anybody sees it."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from r1mac.catalog.arch import parse_arch
from r1mac.convert.abilities import value_type
from r1mac.convert.adapter_files import LowRank, read_adapter
from r1mac.convert.adapter_fit import EMBEDDING, HEAD, merged_shapes, trained_on, unchanged_matrices
from r1mac.convert.safetensors_source import copy_companions
from r1mac.convert.sources import Source
from r1mac.convert.stored import whole
from r1mac.errors import BadCheckpoint, BadRecipe

# What is kept of the changes, to measure them in the result: some 6 MB of any model. Whole groups of columns, since
# each group is quantised by itself.
_SAMPLED_MATRICES, _SAMPLED_ROWS, _SAMPLED_COLUMNS = 48, 8, 4096


class Sample(NamedTuple):
    """Rows of one matrix from *start* on, their first columns, without the adapters and with them."""

    start: int
    before: mx.array
    after: mx.array


class AdaptedSource:
    """A source with one adapter merged: ``W + scale x B A`` in float32, rounded once to the source's type.

    The definition is PEFT's ``merge_and_unload``. DoRA stretches each merged row to its learned length, which
    needs that row alone, so nothing but the rows asked for is ever read.

    Attributes:
        base: the source without this adapter.
        adapter: what is merged.
        zero_names: matrices that the adapter names and does not change.
    """

    def __init__(self, base: Source, adapter_folder: Path) -> None:
        """Merge the adapter in *adapter_folder* into *base*; the adapter's matrices are read once, to be checked.

        Raises:
            BadCheckpoint: the adapter is damaged, or is not one for this model.
            BadRecipe: the base is quantised, or the adapter of a kind that cannot be merged exactly.
        """
        self.base = base
        self.adapter = read_adapter(adapter_folder)
        self.description = f"{base.description} + {self.adapter.folder}"
        self.default_dtype: str | None = base.default_dtype
        self.is_quantized, self.quantized_bits = base.is_quantized, base.quantized_bits
        if base.is_quantized:
            raise BadRecipe(
                f"{base.description} is quantised, and an adapter merged into it would be rounded away",
                hint="merge into the unquantised base; if there is none, first dequantise: "
                f"`r1mac convert {base.description} --bits 16 -o WIDE`, then convert WIDE",
            )
        self.config = dict(base.config)
        # The head of a tied model begins as the embedding; PEFT gives both a life of their own.
        self._head_is_embedding = self._unties()
        if self._head_is_embedding:
            self.config["tie_word_embeddings"] = False
        before = dict(base.shapes())
        if self._head_is_embedding:
            before[HEAD] = before[EMBEDDING]
        self._shapes = merged_shapes(self.adapter, base.description, before, tied=_is_tied(self))
        if self.changes_vocabulary:
            self.config["vocab_size"] = self._shapes[EMBEDDING][0]
        self.zero_names = unchanged_matrices(self.adapter)
        self._to_sample = self._names_to_sample()
        self._samples: dict[str, Sample] = {}
        self._loaded: tuple[str, LowRank, mx.array, mx.array | None] | None = None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        return self._shapes

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the source."""
        replacement = self.adapter.replacements.get(name)
        return self.base.size_bytes(self._base_name(name)) if replacement is None else replacement.size_bytes

    def row_step(self, name: str) -> int:
        """Return the number of rows whose multiples ``rows`` may be asked for."""
        return 1 if name in self.adapter.replacements else self.base.row_step(self._base_name(name))

    def files(self, name: str) -> tuple[str, ...]:
        """Return the names of the base's files that ``rows`` reads for a tensor."""
        return () if name in self.adapter.replacements else self.base.files(self._base_name(name))

    def identity(self) -> Mapping[str, str]:
        """Return what tells the base and this adapter from others."""
        from r1mac.convert.abilities import identity

        found = identity(self.base)
        for path in sorted(self.adapter.folder.glob("adapter*")):
            if path.is_file():
                stat = path.stat()
                found[f"adapter {path.absolute()}"] = f"{stat.st_size} {stat.st_mtime_ns}"
        return found

    def value_type(self, name: str) -> str:
        """Return the MLX type of a tensor's values: the base's own, so that a merge rounds as the base does."""
        base_name = self._base_name(name)
        if base_name in self.base.shapes():
            return value_type(self.base, base_name)
        return self.adapter.replacements[name].value_type

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor, merged."""
        values = self.exact_rows(name, start, stop).astype(getattr(mx, self.value_type(name)))
        if name in self._to_sample:
            self._keep_sample(name, start, values)
        return values

    def sample_of(self, name: str) -> "Sample | None":
        """Return some rows of a changed matrix from before and after the merge.

        They were kept when the matrix was converted: files from the Hub are gone by the time of a measurement.
        What an earlier run converted is read again; None where that cannot be.
        """
        if name not in self._samples and name in self._to_sample:
            try:
                self.rows(name, 0, min(self.row_step(name), self._shapes[name][0]))
            except BadCheckpoint:
                return None
        return self._samples.get(name)

    @property
    def original(self) -> Source:
        """The source without any adapter."""
        return self.base.original if isinstance(self.base, AdaptedSource) else self.base

    @property
    def changed_names(self) -> set[str]:
        """The tensors that this adapter, and those merged before it, change."""
        own = (self.adapter.changes.keys() - self.zero_names) | self.adapter.replacements.keys()
        return own | self.base.changed_names if isinstance(self.base, AdaptedSource) else own

    @property
    def unchanged_names(self) -> set[str]:
        """The matrices that adapters name and leave as they are."""
        before = self.base.unchanged_names if isinstance(self.base, AdaptedSource) else set()
        return (before | self.zero_names) - self.changed_names

    def exact_rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows as ``rows`` does, before their rounding: several adapters are rounded once."""
        replacement, base_name = self.adapter.replacements.get(name), self._base_name(name)
        if replacement is not None:
            values = replacement.rows(start, stop)
        elif isinstance(self.base, AdaptedSource):
            values = self.base.exact_rows(base_name, start, stop)
        else:
            values = self.base.rows(base_name, start, stop)
        if (change := self.adapter.changes.get(name)) is not None:
            return self._merged(name, change, values, start)
        if (change := self._bias_change(name)) is not None and change.bias is not None:
            return values.astype(mx.float32) + change.bias.rows(start, stop).astype(mx.float32) * change.scale
        return values

    def write_companions(self, into: Path) -> None:
        """Copy the base's tokenizer; the adapter's where it brings tokens of its own."""
        self.base.write_companions(into)
        if self.changes_vocabulary:
            copy_companions(self.adapter.folder, into)

    def notes(self) -> list[str]:
        """Return what a person should know before the conversion."""
        found = self.base.notes() if isinstance(self.base, AdaptedSource) else []
        zeros, total = len(self.zero_names), len(self.adapter.changes) + len(self.adapter.replacements)
        if zeros == total:
            found.append(
                f"the adapter in {self.adapter.folder} changes nothing: all its {total} matrices are zero. Was it "
                "saved before it was trained?"
            )
        elif zeros:
            found.append(f"{zeros} of the {total} changes of the adapter in {self.adapter.folder} are zero")
        if self.changes_vocabulary and not (self.adapter.folder / "tokenizer.json").is_file():
            found.append(
                f"the adapter in {self.adapter.folder} has {self.config['vocab_size']} tokens and no tokenizer.json: "
                "the base's tokenizer is used, which knows no new ones"
            )
        return found

    @property
    def changes_vocabulary(self) -> bool:
        """Whether the merged embedding has more or fewer rows than the base's."""
        return self._shapes.get(EMBEDDING) != self.base.shapes().get(EMBEDDING)

    def _names_to_sample(self) -> frozenset[str]:
        shapes = self.original.shapes()
        names = sorted(
            name for name in self.changed_names if shapes.get(name) == self._shapes[name] and len(shapes[name]) > 1
        )
        return frozenset(names[:: -(-len(names) // _SAMPLED_MATRICES) or 1])

    def _keep_sample(self, name: str, start: int, values: mx.array) -> None:
        if name in self._samples:
            return
        step = self.original.row_step(name)
        stop = min(start + -(-_SAMPLED_ROWS // step) * step, start + values.shape[0])
        try:
            before = self.original.rows(name, start, stop)
        except BadCheckpoint:
            # The base's file is not needed where the adapter replaces a tensor, so it need not be on this disk.
            return
        window = (slice(_SAMPLED_ROWS), slice(_SAMPLED_COLUMNS))
        kept = Sample(start, mx.contiguous(before[window]), mx.contiguous(values[window]))
        mx.eval(kept.before, kept.after)
        self._samples[name] = kept

    def _base_name(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self._head_is_embedding else name

    def _bias_change(self, name: str) -> LowRank | None:
        change = self.adapter.changes.get(name.removesuffix(".bias") + ".weight") if name.endswith(".bias") else None
        return change if change is not None and change.bias is not None else None

    def _merged(self, name: str, change: LowRank, values: mx.array, start: int) -> mx.array:
        stop = start + values.shape[0]
        a, b = self._halves(name, change)
        rows_of_b = change.b.rows(start, stop).astype(mx.float32) if b is None else b[start:stop]
        merged = values.astype(mx.float32) + (rows_of_b @ a) * change.scale
        if change.magnitude is not None:
            lengths = mx.linalg.norm(merged, axis=1, keepdims=True)
            merged = merged * (change.magnitude.rows(start, stop).astype(mx.float32)[:, None] / lengths)
        return merged

    def _halves(self, name: str, change: LowRank) -> tuple[mx.array, mx.array | None]:
        """Return A, and B where its rows do not lie one after the other; the last matrix's are kept."""
        if self._loaded is None or self._loaded[0] != name:
            a = whole(change.a)
            b = whole(change.b).T if change.b_transposed else None
            self._loaded = (name, change, a.T if change.a_transposed else a, b)
        return self._loaded[2], self._loaded[3]

    def _unties(self) -> bool:
        touched = {EMBEDDING, HEAD} & (self.adapter.changes.keys() | self.adapter.replacements.keys())
        if not touched or not _is_tied(self.base):
            return False
        if self.adapter.ties_embeddings:
            raise BadRecipe(
                f"the adapter in {self.adapter.folder} changes {min(touched)} with ensure_weight_tying, which r1mac "
                "does not merge",
                hint="merge it with PEFT (merge_and_unload, save_pretrained), and convert the result",
            )
        if self.adapter.kind == "PEFT":
            return True
        if HEAD in touched:
            raise BadCheckpoint(
                f"the adapter in {self.adapter.folder} changes {HEAD}, which {self.base.description} does not have: "
                "its embedding is its head",
                hint=trained_on(self.adapter),
            )
        return False


def _is_tied(source: "Source | AdaptedSource") -> bool:
    try:
        return parse_arch(source.config).tied_embeddings
    except (KeyError, TypeError, ValueError):
        return False
