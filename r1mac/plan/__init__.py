"""Arithmetic only: what needs how much memory, and does it fit."""
