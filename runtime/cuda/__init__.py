"""The runtime of ``target="cuda"``: Triton kernels on PyTorch's tensors, replayed as CUDA graphs."""
