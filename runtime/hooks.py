"""Whether something is to run around a module's ``forward``, as ``nn.Module.__call__`` finds out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as everywhere


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, all modules have some, or PyTorch traces it or has compiled it in place."""
    own = module.__dict__  # in which nn.Module has these: to ask a module for each takes twice the time
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks
        or everywhere._global_backward_pre_hooks
        or module._compiled_call_impl is not None
        or torch._C._get_tracing_state()
    )
