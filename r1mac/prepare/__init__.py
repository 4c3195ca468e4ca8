"""A name becomes a loaded model: where run, and whatever else needs an engine, begins.

name (target) -> does it fit (planning) -> files on this disk (files) -> engine (loading).
"""
