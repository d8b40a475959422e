"""Calls of transformers models with a cache of keys and values, and ``generate`` through them."""
