"""The local API that other programs speak already."""
