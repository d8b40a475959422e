"""The models that are measured, in plain PyTorch with random weights: transformers need not be installed."""
