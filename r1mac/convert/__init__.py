"""Weights of any kind to an MLX model, tensor by tensor."""
