"""smelt compiles PyTorch Transformers for inference: a graph in, a small set of fused kernels out."""

from ._version import __version__

__all__ = ["__version__"]
