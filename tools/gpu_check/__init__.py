"""``make gpu-check``: what only a GPU can show, by the machine's own Python, PyTorch and Triton alone.

Nothing here imports TVM, transformers or a package for terminals: none of them needs to be there.
"""
