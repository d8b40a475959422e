"""Kernel programs as Triton source. Only ``library``, ``emulated``, ``launch`` and ``inspect`` import Triton."""
