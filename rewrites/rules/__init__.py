"""The rewrite rules, one module per subject, and the stages that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..rule import Rule
from . import (
    activations,
    algebra,
    attention,
    attention_operands,
    batches,
    broadcast,
    cache,
    casts,
    constants,
    forms,
    linear,
    masks,
    motion,
    norm,
    rope,
    terms,
    views,
)

# By stage. Each stage runs with the rules of those before it, so that what it builds is in normal form too.
RULES: Mapping[str, Sequence[Rule]] = {
    "canonicalise": (
        *constants.RULES,
        *algebra.RULES,
        *casts.IDENTITIES,
        *views.RULES,
        *broadcast.RULES,
        *masks.RULES,
        *cache.RULES,
    ),
    "recognise": (
        *linear.RULES,
        *norm.RULES,
        *activations.RULES,
        *forms.RULES,
        *casts.COMPOSITES,
        *rope.RULES,
        *batches.RULES,
        *attention.RULES,
    ),
    "simplify": (
        *attention_operands.RULES,
        *cache.MASKS,
        *activations.GATED,
        *motion.RULES,
        *terms.RULES,
    ),
}

__all__ = ["RULES"]
