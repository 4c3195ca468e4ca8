"""The only users of rich and prompt_toolkit."""
