"""Bytes on disk: headers and folders, no arrays."""
