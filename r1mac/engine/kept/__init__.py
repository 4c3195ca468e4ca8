"""What stays on the disk: replies at work, and what models have read."""
