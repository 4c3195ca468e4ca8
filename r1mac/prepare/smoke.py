"""The last check of a converted model: it is loaded and generates a few tokens."""

from collections.abc import Iterator
from pathlib import Path

from r1mac.catalog.arch import parse_arch
from r1mac.formats import folder as model_folder
from r1mac.machine.base import Machine
from r1mac.plan.compute import Compute, choose_compute, loaded_weight_bytes
from r1mac.prepare.files import Note, PrepareEvent, Progress
from r1mac.units import GIB, format_memory

_CONTEXT_TOKENS = 256
# Beside the weights: libraries, a short prompt and its cache.
_ROOM_BYTES = GIB


def smoke_test(folder: Path, machine: Machine) -> Iterator[PrepareEvent]:
    """Load the model in *folder* and generate with it; its tokenizer has to give back what it is given.

    A model without a tokenizer, or one that the memory does not hold now, is not tried, and that is said.

    Raises:
        BadCheckpoint: it cannot be loaded, or computes no numbers.
    """
    if not (folder / "tokenizer.json").is_file():
        yield Note("the result was not tried: it has no tokenizer.json")
        return
    arch = parse_arch(model_folder.read_config(folder))
    stored_bytes = sum(path.stat().st_size for path in model_folder.weight_files(folder))
    compute = choose_compute(arch, machine.profile())
    if compute is Compute.DEQUANTIZED:
        compute = Compute.FLOAT32  # a few tokens do not pay for taking all weights apart
    needed_bytes = loaded_weight_bytes(arch, stored_bytes, compute) + _ROOM_BYTES
    if needed_bytes > machine.available_memory_bytes():
        yield Note(
            f"the result was not tried: that takes {format_memory(needed_bytes)} of memory, and "
            f"{format_memory(machine.available_memory_bytes())} are free"
        )
        return
    from r1mac.engine.load import load_engine
    from r1mac.engine.smoke import generate_few

    steps = load_engine(folder, compute=compute, context_tokens=_CONTEXT_TOKENS, prefill_step_tokens=_CONTEXT_TOKENS)
    while True:
        try:
            done, total = next(steps)
        except StopIteration as stop:
            generate_few(stop.value)
            return
        yield Progress(task="load", title="the result, to try it", done=done, total=total)
