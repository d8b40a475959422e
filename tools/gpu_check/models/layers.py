"""What the models share: norms, and random weights that keep signals of the size of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised values of the same shape and dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def with_random_weights(model: nn.Module, dtype: torch.dtype, device: torch.device, seed: int = 0) -> nn.Module:
    """A model made under ``torch.device("meta")`` with memory and random weights, in eval mode.

    Matrices are normal with a deviation of ``1 / sqrt(fan in)``, embeddings of 1, norms are near one, biases small: a
    wrong or missing one shows. The same seed gives the same weights on the same kind of device.
    """
    model = model.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _fill(parameter, module, name, generator)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.normal_(generator=generator)
    return model


def _fill(parameter: Tensor, module: nn.Module, name: str, generator: torch.Generator) -> None:
    if parameter.dim() > 1:
        fan_in = 1 if isinstance(module, nn.Embedding) else parameter[0].numel()
        parameter.normal_(0, fan_in**-0.5, generator=generator)
        return
    parameter.normal_(0, 0.1, generator=generator)
    if name == "weight":  # of a norm
        parameter.add_(1)


def matrix_bytes(model: nn.Module) -> int:
    """The bytes of the weights that one call reads: all but embeddings, of which it reads a few rows."""
    own = [p for m in model.modules() if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)]
    return sum(p.nbytes for p in {id(p): p for p in own}.values())
