"""Logging for maintainers: to stderr, quiet unless asked. Users are spoken to by ``r1mac.ui``."""

import logging
import sys


def set_up(*, verbose: bool) -> None:
    """Send r1mac's own log lines to stderr: all of them with *verbose*, else warnings only.

    Other libraries' loggers are held to errors, since they would write into the answer's margin.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger = logging.getLogger("r1mac")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logger.propagate = False
    for name in ("huggingface_hub", "transformers", "httpx2", "filelock", "gguf"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.ERROR)
