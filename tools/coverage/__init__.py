"""``smelt coverage``: how architectures of transformers fare."""
