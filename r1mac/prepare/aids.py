"""What helps the sessions of a loaded model: its memory watched, what it has read kept, tokens drafted."""

from pathlib import Path
from typing import TYPE_CHECKING

from r1mac import paths
from r1mac.catalog.arch import LatentAttention
from r1mac.formats.folder import read_config
from r1mac.machine.base import Machine
from r1mac.plan.fit import ContextNeeds, MemoryPlan
from r1mac.plan.memory import WIDE_BITS
from r1mac.prepare.drafting import NOBODY, Draft
from r1mac.prepare.planning import Judgement, arch_of
from r1mac.settings import CHOICES, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from r1mac.engine.drafts.speculation import Speculation
    from r1mac.engine.drafts.step_costs import Gauge
    from r1mac.engine.generate import Aids
    from r1mac.engine.kept.prompt_cache import PromptCache
    from r1mac.engine.load import Engine
    from r1mac.engine.memory.supervision import MemoryTerms

_GB = 10**9


def aids_maker(
    judgement: Judgement,
    machine: Machine,
    folder: Path,
    settings: Settings,
    *,
    draft: Draft | None = None,
    drafting: "Engine | None" = None,
    former: "PromptCache | None" = None,
) -> "Callable[[], Aids]":
    """Return what makes the aids of each session of the model in *folder*, which runs as *judgement* says.

    *drafting* is the engine of *draft*, if a model drafts. *former* is what was read under an earlier plan of the
    same loaded weights; it goes on.
    """
    from r1mac.engine.generate import Aids
    from r1mac.engine.kept.fingerprint import model_fingerprint

    fingerprint = model_fingerprint(folder)
    memory = _memory_terms(judgement, machine)
    prompt_cache = former or _prompt_cache(judgement.plan, fingerprint, settings)
    if former is not None:
        former.held.limit(judgement.plan.kept_prompts_bytes)

    def make() -> Aids:
        speculation = None
        if draft is not None and drafting is not None:
            speculation = _model_drafts(judgement, fingerprint, draft, drafting)
        elif settings.draft != NOBODY:
            speculation = _text_drafts(judgement, fingerprint)
        return Aids(memory=memory, prompt_cache=prompt_cache, speculation=speculation, fingerprint=fingerprint)

    return make


def _memory_terms(judgement: Judgement, machine: Machine) -> "MemoryTerms":
    from r1mac.engine.memory.supervision import MemoryTerms
    from r1mac.engine.memory.watch import Watch

    plan, wish = judgement.plan, judgement.wish
    needs = ContextNeeds(
        wish.arch,
        judgement.hardware,
        compute=plan.compute,
        stored_bytes=wish.weights.stored_bytes,
        kv_bits=plan.kv_bits,
        scratch_factor=wish.scratch_factor,
    )
    prices = {bits: needs.bytes_per_token(bits) for bits in CHOICES["kv_bits"] if bits <= plan.kv_bits}
    # A plan that was forced past the budget may have what it said.
    ceiling_bytes = max(plan.budget_bytes, plan.total_bytes)
    return MemoryTerms(
        make_watch=lambda: Watch(machine, ceiling_bytes=ceiling_bytes),
        # A width that saves nothing is none.
        kv_bytes_per_token={
            bits: price for bits, price in prices.items() if bits == plan.kv_bits or price < prices[plan.kv_bits]
        },
        newest_token_bytes=needs.bytes_per_token(WIDE_BITS),
        tensor_count=wish.arch.layer_count * (1 if isinstance(wish.arch.attention, LatentAttention) else 2),
        least_step_tokens=needs.steps[-1],
        scratch_bytes=lambda step_tokens, context_tokens, bits: needs.scratch_bytes(context_tokens, step_tokens, bits),
    )


def _prompt_cache(plan: MemoryPlan, fingerprint: str, settings: Settings) -> "PromptCache | None":
    from r1mac.engine.kept.block_folder import BlockFolder
    from r1mac.engine.kept.prompt_cache import PromptCache

    limit_bytes = None if settings.prompt_cache_gb is None else round(settings.prompt_cache_gb * _GB)
    if limit_bytes == 0 and not plan.kept_prompts_bytes:
        return None
    folder = None if limit_bytes == 0 else BlockFolder(paths.prompt_cache_dir(), limit_bytes=limit_bytes)
    return PromptCache(folder, model=fingerprint, computing=plan.compute.value, memory_bytes=plan.kept_prompts_bytes)


def _text_drafts(judgement: Judgement, fingerprint: str) -> "Speculation":
    from r1mac.engine.drafts.lookup import LookupDrafter
    from r1mac.engine.drafts.speculation import Speculation

    return Speculation(LookupDrafter(), _gauge(judgement, judgement.plan, fingerprint))


def _model_drafts(judgement: Judgement, fingerprint: str, draft: Draft, drafting: "Engine") -> "Speculation":
    from r1mac.engine.drafts.model import ModelDrafter
    from r1mac.engine.drafts.speculation import Speculation
    from r1mac.engine.kept.fingerprint import model_fingerprint
    from r1mac.engine.transcript import Transcript

    drafter = ModelDrafter(
        Transcript(drafting.model, prefill_step_tokens=drafting.prefill_step_tokens),
        _gauge(judgement, draft.plan, model_fingerprint(draft.folder)),
        vocab_size=judgement.wish.arch.vocab_size,
        own_vocab_size=arch_of(read_config(draft.folder), draft.title).vocab_size,
    )
    return Speculation(drafter, _gauge(judgement, judgement.plan, fingerprint))


def _gauge(judgement: Judgement, plan: MemoryPlan, fingerprint: str) -> "Gauge":
    from r1mac.engine.drafts.step_costs import CostBook, Gauge

    hardware = judgement.hardware
    machine = f"{hardware.chip}, {hardware.gpu_core_count} GPU cores"
    book = CostBook(paths.step_costs_file())
    return Gauge(book, machine=machine, fingerprint=fingerprint, compute=plan.compute.value)
