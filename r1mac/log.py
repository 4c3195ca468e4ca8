"""Logging for maintainers: to stderr, quiet unless asked. Users are spoken to by ``r1mac.ui``."""

import logging
import sys

_LIBRARIES = ("huggingface_hub", "transformers", "httpx2", "filelock", "gguf")


def speak_up() -> None:
    """Send every log line of r1mac and of the libraries that it uses to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    for name in ("r1mac", *_LIBRARIES):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


def quieten_libraries() -> None:
    """Hold the libraries to errors, since they would write into the answer's margin; unless all was to speak up."""
    if logging.getLogger("r1mac").level == logging.DEBUG:
        return
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
