"""A running reply within its memory."""
