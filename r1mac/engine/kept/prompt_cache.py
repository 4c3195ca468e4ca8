"""What the model has read before: in memory for conversations that alternate, on the SSD for the next start."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from r1mac.engine.kept.block_folder import BlockFolder
from r1mac.engine.kept.blocks import Block, BlockTensor, block_name, chain_root, next_digest
from r1mac.engine.kept.held_prefixes import HeldPrefixes
from r1mac.engine.prefix import shared_prefix
from r1mac.engine.transcript import HeldPrefix, Transcript
from r1mac.plan.memory import CACHE_BLOCK_TOKENS
from r1mac.units import format_size

logger = logging.getLogger(__name__)

# Fewer tokens than this are read by the model as fast as by the disk.
_LEAST_TOKENS = 16
# Blocks that are read and checked while the one before them goes into the cache.
_READ_AHEAD = 2
_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What a transcript took over.

    Attributes:
        tokens: of the conversation that need not be read now.
        source: where they were.
        note: what a person should know; None if all went well.
    """

    tokens: int
    source: Literal["memory", "disk"]
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a transcript left on the disk.

    Attributes:
        tokens: how many of its tokens are on the disk now.
        written_bytes: what was written for it just now.
        note: why it is not all that it should be; None if it is, or if that was said before.
    """

    tokens: int
    written_bytes: int
    note: str | None = None


class _Link(NamedTuple):
    """A block's place in a chain, and how many of its tokens are wanted."""

    parent: str
    token_ids: tuple[int, ...]
    wanted: int

    @property
    def name(self) -> str:
        return block_name(self.parent, self.token_ids)


class PromptCache:
    """The prompt caches of one loaded model. Lives on the thread that loaded it.

    Nothing that happens to the files stops a reply: what cannot be read is read by the model, what cannot be
    written is told in a note.

    Args:
        folder: the blocks on disk; None keeps nothing there.
        model: fingerprint of the model (``engine.kept.fingerprint``).
        computing: the type in which it computes.
        memory_bytes: the most to hold in memory beside the transcript at work.
    """

    def __init__(self, folder: BlockFolder | None, *, model: str, computing: str, memory_bytes: int = 0) -> None:
        self.held: HeldPrefixes[HeldPrefix] = HeldPrefixes(memory_bytes)
        self._folder = folder
        self._model = model
        self._computing = computing
        self._told: set[str] = set()

    def adopt(
        self, transcript: Transcript, token_ids: Sequence[int], *, worth_tokens: int | None = None
    ) -> Adopted | None:
        """Have *transcript* hold the longest known prefix of *token_ids*, and return what came from elsewhere.

        What the transcript held of another conversation is put aside, if there is memory for it.

        Args:
            transcript: what the model has read; afterwards it may also hold tokens that do not belong here
                (``Transcript.rewind_to`` cuts them off).
            token_ids: the conversation; the last of them is to be read in any case.
            worth_tokens: how many of the transcript's tokens are worth keeping, such as its last prompt: a thought
                is not part of any later prompt. All, if that is not said.
        """
        wanted = token_ids[:-1]
        own = transcript.shared_with(wanted)
        held, in_memory = self.held.longest(wanted)
        on_disk = self.longest(token_ids, kv_bits=transcript.kv_bits)
        most = max(own, in_memory, on_disk)
        elsewhere = most >= own + _LEAST_TOKENS
        taken = None
        if elsewhere and held is not None and in_memory + _LEAST_TOKENS > on_disk:
            taken = self.held.take(held, in_memory, losing_at_most=CACHE_BLOCK_TOKENS)
        worth = len(transcript) if worth_tokens is None else min(worth_tokens, len(transcript))
        if worth >= own + CACHE_BLOCK_TOKENS and worth * _token_bytes(transcript) <= self.held.limit_bytes:
            self.held.put(transcript.hold(worth, fitted=elsewhere and own < CACHE_BLOCK_TOKENS))
        if taken is not None:
            kv_bits = transcript.kv_bits
            transcript.adopt(taken)
            transcript.requantize(kv_bits)
            return Adopted(tokens=in_memory, source="memory")
        return self.restore(transcript, token_ids) if elsewhere else None

    def longest(self, token_ids: Sequence[int], *, kv_bits: int) -> int:
        """Return how many tokens of a conversation seem to be on the disk. Reads no more than a header or two."""
        return sum(link.wanted for link in self._chain(token_ids[:-1], kv_bits))

    def restore(self, transcript: Transcript, token_ids: Sequence[int]) -> Adopted | None:
        """Have *transcript* hold what the disk knows of *token_ids*, in place of what it has read of other tokens.

        Beside the cache there are never more than a few blocks in memory. Returns None where nothing came of it.
        """
        wanted = token_ids[:-1]
        chain = self._chain(wanted, transcript.kv_bits)
        skipped = transcript.shared_with(wanted) // CACHE_BLOCK_TOKENS
        if self._folder is None or len(chain) <= skipped:
            return None
        transcript.keep(skipped * CACHE_BLOCK_TOKENS)
        transcript.reserve(len(token_ids))
        for link, block in zip(chain[skipped:], _read(self._folder, chain[skipped:]), strict=True):
            if block is None or not _load(transcript, link, block):
                self._folder.drop(link.parent, link.token_ids)
                break
            transcript.keep(len(transcript) - len(link.token_ids) + link.wanted)
        self._folder.touch([link.name for link in chain])
        lost = sum(link.wanted for link in chain) - len(transcript)
        note = f"a part of the prompt cache was damaged and dropped: {lost} tokens are read again" if lost else None
        return Adopted(tokens=len(transcript), source="disk", note=note)

    def store(self, transcript: Transcript, tokens: int | None = None, *, tail: bool = True) -> Stored:
        """Write what the disk lacks of the first *tokens* that *transcript* has read.

        Args:
            transcript: what the model has read.
            tokens: how many of its tokens are worth it; all, if that is not said.
            tail: also what does not fill a block; without it a reply at work is written block by block, each once.
        """
        if self._folder is None:
            return Stored(tokens=0, written_bytes=0)
        count = len(transcript) if tokens is None else min(tokens, len(transcript))
        links = list(self._links(transcript.token_ids[:count], transcript.kv_bits))
        if links and len(links[-1].token_ids) < (_LEAST_TOKENS if tail else CACHE_BLOCK_TOKENS):
            links.pop()
        there = 0
        while there < len(links) and (found := self._found(self._folder, links[there])) is not None:
            links[there] = found
            there += 1
        written_bytes, there, note = self._write(transcript, links, there)
        self._folder.touch([link.name for link in links[:there]])
        return Stored(tokens=sum(link.wanted for link in links[:there]), written_bytes=written_bytes, note=note)

    def drop_after(self, transcript: Transcript, tokens: int) -> None:
        """Delete the blocks of *transcript* that begin after its first *tokens*: no later prompt will hold them."""
        links = list(self._links(transcript.token_ids, transcript.kv_bits))
        for link in links[-(-tokens // CACHE_BLOCK_TOKENS) :]:
            if self._folder is not None:
                self._folder.drop(link.parent, link.token_ids)

    def _write(self, transcript: Transcript, links: list[_Link], there: int) -> tuple[int, int, str | None]:
        """Write the blocks from number *there* on; return the bytes, how many are there now, and what went wrong."""
        if self._folder is None or there == len(links):  # nothing is new
            return 0, there, None
        missing_tokens = sum(link.wanted for link in links[there:])
        one_token_bytes = _token_bytes(transcript)
        needed_bytes = missing_tokens * one_token_bytes
        granted_bytes = self._folder.make_room(needed_bytes, {link.name for link in links})
        earlier = self._folder.following(links[there].parent)
        first, written_bytes = links[there], 0
        for number in range(there, len(links)):
            link = links[number]
            start = number * CACHE_BLOCK_TOKENS
            if link.wanted * one_token_bytes > granted_bytes:
                limit = format_size(self._folder.limit_bytes)
                note = self._once("limit", f"the prompt cache may take {limit}: not all of this conversation is kept")
                return written_bytes, number, note
            granted_bytes -= link.wanted * one_token_bytes
            tensors = _tensors(transcript.export(start, start + link.wanted))
            try:
                written_bytes += self._folder.write(
                    Block(parent=link.parent, token_ids=link.token_ids, tensors=tensors)
                )
            except OSError as error:
                logger.info("a block of the prompt cache was not written", exc_info=True)
                note = self._once("disk", f"the prompt cache was not written: {error.strerror or error}")
                return written_bytes, number, note
        for token_ids in earlier:
            if len(token_ids) < len(first.token_ids) and first.token_ids[: len(token_ids)] == token_ids:
                self._folder.drop(first.parent, token_ids)
        return written_bytes, len(links), None

    def _once(self, reason: str, note: str) -> str | None:
        """Return *note* if nobody was told of that reason before: a reply at work stores every so often."""
        told = reason in self._told
        self._told.add(reason)
        return None if told else note

    def _found(self, folder: BlockFolder, link: _Link) -> _Link | None:
        """Return the block on the disk that is *link* or, where that does not fill one, begins with its tokens."""
        if folder.has(link.parent, link.token_ids):
            return link
        if link.wanted == CACHE_BLOCK_TOKENS:
            return None
        longer = (other for other in folder.following(link.parent) if other[: link.wanted] == link.token_ids)
        return next((link._replace(token_ids=other) for other in longer), None)

    def _links(self, token_ids: Sequence[int], kv_bits: int) -> Iterator[_Link]:
        """Yield the blocks of a conversation; the last one may be short."""
        parent = chain_root(self._model, self._computing, kv_bits)
        for start in range(0, len(token_ids), CACHE_BLOCK_TOKENS):
            link = _Link(parent, tuple(token_ids[start : start + CACHE_BLOCK_TOKENS]), 0)
            yield link._replace(wanted=len(link.token_ids))
            parent = next_digest(parent, link.token_ids)

    def _chain(self, token_ids: Sequence[int], kv_bits: int) -> list[_Link]:
        """Return the blocks on the disk that a conversation begins with; of the last one maybe only some tokens."""
        if self._folder is None:
            return []
        chain: list[_Link] = []
        for link in self._links(token_ids, kv_bits):
            if len(link.token_ids) == CACHE_BLOCK_TOKENS and self._folder.has(link.parent, link.token_ids):
                chain.append(link)
                continue
            others = [
                _Link(link.parent, other, shared_prefix(other, link.token_ids))
                for other in self._folder.following(link.parent)
            ]
            best = max(others, key=lambda other: other.wanted, default=None)
            if best is not None and best.wanted >= _LEAST_TOKENS:
                chain.append(best)
            break
        return chain


def _read(folder: BlockFolder, links: Sequence[_Link]) -> Iterator[Block | None]:
    """Yield the blocks in order, the next ones being read and checked meanwhile."""
    with ThreadPoolExecutor(max_workers=_READ_AHEAD) as readers:
        coming: deque[Future[Block | None]] = deque()
        left = deque(links)
        try:
            while left or coming:
                while left and len(coming) < _READ_AHEAD:
                    link = left.popleft()
                    coming.append(readers.submit(folder.read, link.parent, link.token_ids))
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def _token_bytes(transcript: Transcript) -> int:
    """Return what one token of a transcript's cache takes."""
    return sum(array.nbytes for array in transcript.export(0, 1).values())


def _load(transcript: Transcript, link: _Link, block: Block) -> bool:
    """Append a block to the transcript, and tell whether it is one of this model."""
    try:
        transcript.load(link.token_ids, {name: _array(tensor) for name, tensor in block.tensors.items()})
    except (ValueError, KeyError) as error:
        logger.info("a block of the prompt cache does not belong to this model: %s", error)
        return False
    return True


def _array(tensor: BlockTensor) -> mx.array:
    dtype = _DTYPES[tensor.dtype]
    # numpy has no bfloat16; it travels as what it is made of.
    carrier: Any = np.uint16 if dtype.size == 2 else np.uint32  # noqa: PLR2004
    values = np.frombuffer(tensor.data, dtype=carrier).reshape(tensor.shape)
    return mx.array(values).view(dtype)


def _tensors(arrays: Mapping[str, mx.array]) -> dict[str, BlockTensor]:
    """Return the bytes of arrays, evaluated together."""
    whole = {name: mx.contiguous(array) for name, array in arrays.items()}
    mx.eval(list(whole.values()))
    return {
        name: BlockTensor(
            _DTYPE_NAMES[array.dtype],
            tuple(array.shape),
            memoryview(array.view(mx.uint16 if array.dtype.size == 2 else mx.uint32)).cast("B"),  # type: ignore[arg-type]  # noqa: PLR2004
        )
        for name, array in whole.items()
    }
