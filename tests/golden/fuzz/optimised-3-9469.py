"""optimised: raised KeyError in _text of expression.py: 't1', call 0 (seed 3, program 9469)"""
import torch
from math import inf, nan
from torch import nn
from torch.nn import functional as F

f64, f32, f16, bf16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
i64, i32, boolean = torch.int64, torch.int32, torch.bool


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("b0", torch.tensor([-2.0, 1.0, -2.0], dtype=f32))

    def forward(self, x1, v5):
        b0 = self.b0
        b0.add_(b0)
        v3, v4 = b0.min(0, keepdim=True)
        v6 = b0.index_select(0, (v4 % 3).reshape(-1))
        v11 = torch.sub(v6, x1)
        v13 = torch.relu(v11)
        v14 = torch.rsub(v13, v3)
        v16 = v14[(v5 % 1)]
        return (v16,)


DYNAMIC = False
CALLS = [
    (
        torch.tensor([1.0], dtype=f32).reshape(()),
        torch.tensor([0], dtype=i64),
    ),
]


if __name__ == "__main__":
    import smelt

    fast = smelt.compile(Program().eval(), dynamic=DYNAMIC)
    for call in CALLS:
        print(smelt.verify(fast, *call))
