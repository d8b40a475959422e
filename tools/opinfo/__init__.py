"""``smelt opinfo``: PyTorch's own database of operators and samples, run through the backend of ``torch.compile``."""
