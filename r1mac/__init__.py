"""Run DeepSeek-R1 on a Mac: converter, tuner and runtime on MLX."""

__version__ = "0.1.0"
