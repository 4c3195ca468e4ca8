"""Tokens that are drafted, and checked several at a time."""
