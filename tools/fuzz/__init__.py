"""Random whole programs: made, checked along the whole way from PyTorch to kernels, and minimised."""
