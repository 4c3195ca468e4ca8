"""What runs inside a model: weights in their type, caches, attention, router."""
