"""A folder and a plan become an Engine."""

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.batch import Batch
from r1mac.engine.config import config_changes, end_ids
from r1mac.engine.generate import Aids, Session
from r1mac.engine.layers.compute import on_gpu, prepare_weights
from r1mac.engine.layers.latent_attention import install_latent_attention
from r1mac.engine.layers.narrow_attention import install_narrow_attention
from r1mac.engine.layers.router import install_router
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import BadCheckpoint
from r1mac.formats.folder import read_config, read_tensors, weight_files
from r1mac.plan.compute import Compute
from r1mac.plan.memory import WIDE_BITS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loaded model. It and its sessions live on the thread that loaded it.

    Attributes:
        make_aids: makes what helps a session.
        drafting: the engine of the smaller model that drafts, if one does.
    """

    model: nn.Module
    tokenizer: Tokenizer
    template: PromptTemplate
    context_tokens: int
    prefill_step_tokens: int
    kv_bits: int = WIDE_BITS
    make_aids: Callable[[], Aids] = Aids
    drafting: "Engine | None" = None

    def session(self, *, keeps_prompts: bool = False) -> Session:
        """Return a new conversation with an empty cache; *keeps_prompts* as in ``Aids``."""
        return Session(
            self.model,
            self.tokenizer,
            self.template,
            context_tokens=self.context_tokens,
            prefill_step_tokens=self.prefill_step_tokens,
            kv_bits=self.kv_bits,
            aids=replace(self.make_aids(), keeps_prompts=keeps_prompts),
        )

    def batch(self, parallel: int, *, kept_prompts_bytes: int = 0) -> Batch:
        """Return what writes several replies at once; *kept_prompts_bytes* as in ``Batch``."""
        return Batch(
            self.model,
            self.tokenizer,
            self.template,
            parallel=parallel,
            context_tokens=self.context_tokens,
            prefill_step_tokens=self.prefill_step_tokens,
            kept_prompts_bytes=kept_prompts_bytes,
        )

    def refit(self, writer: Session | Batch, *, kept_prompts_bytes: int = 0) -> None:
        """Have a session or a batch of another plan of these weights go on under this one, between two replies.

        What it has read stays where the context has room for it. *kept_prompts_bytes* as in ``Batch``.
        """
        if isinstance(writer, Batch):
            writer.refit(
                context_tokens=self.context_tokens,
                prefill_step_tokens=self.prefill_step_tokens,
                kept_prompts_bytes=kept_prompts_bytes,
            )
        else:
            writer.refit(
                context_tokens=self.context_tokens,
                prefill_step_tokens=self.prefill_step_tokens,
                aids=self.make_aids(),
            )


def load_engine(
    folder: Path, *, compute: Compute, context_tokens: int, prefill_step_tokens: int, kv_bits: int = WIDE_BITS
) -> Generator[tuple[int, int], None, Engine]:
    """Load the MLX model in *folder*, yield the layers done and their number, and return the engine.

    Args:
        folder: config.json, safetensors and tokenizer.
        compute: the type to compute in; a GPU that MLX finds keeps the stored type.
        context_tokens: the longest conversation that memory was planned for.
        prefill_step_tokens: prompt tokens read at once.
        kv_bits: width of the cached keys and values, 16, 8 or 4.

    Raises:
        BadCheckpoint: a file is damaged, or weights, config and tokenizer do not belong together.
    """
    started = time.perf_counter()
    config = read_config(folder)
    read_tensors(folder)
    _check_files(folder)
    tokenizer = Tokenizer(folder, config_eos_ids=end_ids(folder, config))
    if tokenizer.vocab_size > config.get("vocab_size", tokenizer.vocab_size):
        raise BadCheckpoint(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens and the model {config['vocab_size']}",
            hint="use the tokenizer of the model's own repository",
        )
    template = PromptTemplate(folder, tokenizer)
    model = _load_model(folder, config)
    yield from prepare_weights(model, Compute.AS_STORED if on_gpu() else compute)
    logger.info("loaded %s in %.1f s, computing %s", folder, time.perf_counter() - started, compute.value)
    return Engine(
        model=model,
        tokenizer=tokenizer,
        template=template,
        context_tokens=context_tokens,
        prefill_step_tokens=prefill_step_tokens,
        kv_bits=kv_bits,
    )


def _check_files(folder: Path) -> None:
    """Refuse a weight file that the index does not name: mlx-lm would load it over those that it does."""
    unnamed = sorted(path.name for path in set(folder.glob("model*.safetensors")) - set(weight_files(folder)))
    if unnamed:
        raise BadCheckpoint(
            f"{folder} holds {unnamed[0]}, which its index does not name",
            hint="delete that file if it does not belong to this model, or fetch the model again",
        )


def _load_model(folder: Path, config: dict[str, Any]) -> nn.Module:
    try:
        model = mlx_lm_api.load_lazily(folder, config_changes(config))
    except (
        ValueError,
        LookupError,
        ArithmeticError,
        TypeError,
        AssertionError,
        AttributeError,
        RuntimeError,
        FileNotFoundError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise BadCheckpoint(
            f"the weights in {folder} are not a whole {config.get('model_type')!r} model: {reason}",
            hint="fetch or convert the model again",
        ) from error
    install_latent_attention(model)
    install_narrow_attention(model)
    install_router(model)
    return model
