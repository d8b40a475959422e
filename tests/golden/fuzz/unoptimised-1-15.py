"""unoptimised: raised AssertionError in offsets of grid.py: in0 is read or written out of range, call 0 (seed 1, program 15)"""
import torch
from math import inf, nan
from torch import nn
from torch.nn import functional as F

f64, f32, f16, bf16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
i64, i32, boolean = torch.int64, torch.int32, torch.bool


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("b0", torch.tensor([0.1562274992465973, 0.32800447940826416, -0.06744816154241562, 0.951909065246582, 0.5697354674339294, -1.0429571866989136, 0.6167795658111572, 0.004576899576932192, -2.0412707328796387, -0.25916391611099243, -0.1920475959777832, 0.9557999968528748, 0.9850916266441345, 1.2397311925888062, 0.8126180171966553, -1.1055678129196167, 2.42999005317688, -0.6376883387565613, -0.8307315111160278, 1.7450627088546753, 0.21417300403118134, -0.7702873349189758, -0.7787890434265137, 0.07579176872968674, 1.8521798849105835, 1.0922106504440308, -0.9462328553199768, -0.5686072707176208, -0.3732927143573761, 0.31909796595573425, 0.24869780242443085, -0.7120941281318665], dtype=f32).reshape((8, 4)))

    def forward(self):
        b0 = self.b0
        v11 = F.linear(b0, b0)
        return (v11,)


DYNAMIC = True
CALLS = [
    (
    ),
]


if __name__ == "__main__":
    import smelt

    fast = smelt.compile(Program().eval(), dynamic=DYNAMIC)
    for call in CALLS:
        print(smelt.verify(fast, *call))
