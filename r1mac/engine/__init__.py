"""The loaded model and what it says."""
