"""Headless Chromium, for the tests of the page."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
_QUIET = ("quic", "background-networking", "component-update", "sync", "gpu")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser that asks nobody for anything by itself."""
    # What makes MLX fast on Linux is not for a browser.
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.delenv("LD_PRELOAD", raising=False)
        started = stack.enter_context(playwright.sync_playwright())
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in _QUIET)]
        )
        yield browser
        browser.close()
