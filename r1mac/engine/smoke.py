"""A few tokens from a model, to see that what it computes are numbers."""

import mlx.core as mx

from r1mac.engine.load import Engine
from r1mac.errors import BadCheckpoint

_TEXT = "The sky is blue because"
_TOKENS = 3


def generate_few(engine: Engine) -> str:
    """Return the text of the likeliest tokens after a short beginning.

    Raises:
        BadCheckpoint: a logit is not finite, or all are the same.
    """
    token_ids = engine.tokenizer.encode(_TEXT)
    begin = len(token_ids)
    for _ in range(_TOKENS):
        logits = engine.model(mx.array([token_ids]))[0, -1].astype(mx.float32)
        if not mx.all(mx.isfinite(logits)).item() or mx.all(logits == logits[0]).item():
            raise BadCheckpoint(
                "the converted model does not compute: its logits are not finite, or all the same",
                hint="the source may be damaged, or needs --dtype bfloat16",
            )
        token_ids.append(int(mx.argmax(logits).item()))  # type: ignore[arg-type]
    return engine.tokenizer.decode(token_ids[begin:])
