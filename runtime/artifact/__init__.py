"""Compiled models as files: written by ``smelt.export(...).save(path)``, read by ``smelt.load(path)``."""
