"""ONNX Runtime as a peer of ``generate``: the model exported with its cache as inputs and outputs, and a loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .peers import _quiet, _require


class WithPast(nn.Module):
    """A decoder as a function of tokens, positions and the keys and values that came before, of each layer in turn."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """Logits [B, 1, vocab] of the last token, then all keys and values [B, H, P + Q, D]."""
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        found = self.model(
            input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return (found.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def onnx_generate(model: Any, prompt: Tensor, threads: int) -> Callable[[int], Tensor]:
    """What continues a prompt greedily. Keys and values stay in ONNX Runtime's memory from step to step.

    Raises:
        PeerError: ONNX Runtime is not installed.
    """
    _require("onnxruntime", "onnx", "onnxscript")
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path, shape = _export(model, Path(folder))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    results = [x.name for x in session.get_outputs()]

    def run(tokens: int) -> Tensor:
        batch = prompt.shape[0]
        past = [_value(torch.zeros(batch, shape[0], 0, shape[1])) for _ in names[2:]]
        found, given = prompt, prompt
        for _ in range(tokens):
            start = found.shape[1] - given.shape[1]
            positions = torch.arange(start, found.shape[1]).expand(batch, -1).contiguous()
            binding = session.io_binding()
            for name, value in zip(names, (_value(given), _value(positions), *past), strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in results:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            given = torch.from_numpy(logits.numpy())[:, -1].argmax(-1, keepdim=True)
            found = torch.cat([found, given], -1)
        return found

    def _value(tensor: Tensor) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())

    return run


def _export(model: Any, folder: Path) -> tuple[Path, tuple[int, int]]:
    """The model as ONNX, of any batch and lengths; and the heads and width of its cache."""
    from transformers.cache_utils import DynamicCache

    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(input_ids=torch.zeros(2, 3, dtype=torch.int64), past_key_values=cache, use_cache=True)
    past = [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]
    ids, positions = torch.zeros(2, 4, dtype=torch.int64), torch.arange(3, 7).expand(2, -1).contiguous()
    batch, query, length = (torch.export.Dim(name) for name in ("batch", "query", "past"))
    sizes = {"input_ids": {0: batch, 1: query}, "position_ids": {0: batch, 1: query}}
    dynamic = sizes | {"past": [{0: batch, 2: length} for _ in past]}
    path = folder / "model.onnx"
    wrapped = WithPast(model).eval()
    torch.onnx.export(wrapped, (ids, positions, past), path, dynamic_shapes=dynamic, dynamo=True, verbose=False)
    return path, (past[0].shape[1], past[0].shape[3])
