"""How much is lost where tensor cores add products of float8 with fewer bits than float32.

``python -m tests.codegen.measure_float8_sums`` prints it.

A model of them, by what DeepSeek reports of H800 (arXiv 2412.19437, section 3.5.2): an instruction aligns 32 products
and the sum before to the largest exponent among them, keeps the highest 14 bits of each, and adds those exactly. Bits
are cut off either toward zero or, as by shifting two's complements, downward. Errors are root mean squares over the
size of the result, of products of normal rows and weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

INSTRUCTION = 32  # terms
BITS = 13  # after the leading one
COUNT = 1024  # results


def quantised(x: Tensor) -> Tensor:
    """Numbers of float8 whose rows have scales of their own."""
    scaled = x / x.abs().amax(1, keepdim=True) * 448
    return scaled.float().to(torch.float8_e4m3fn).double()


def cut(x: Tensor, exponent: Tensor, downward: bool) -> Tensor:
    """The highest bits of numbers that are aligned to an exponent."""
    place = 2.0 ** (exponent - BITS)
    return (torch.floor if downward else torch.trunc)(x / place) * place


def exponent_of(x: Tensor) -> Tensor:
    """Of the largest number of each row."""
    return torch.floor(torch.log2(x.abs().amax(1, keepdim=True).clamp_min(1e-30)))


def summed(products: Tensor, promoted: int, downward: bool) -> Tensor:
    """The sums of rows, which leave the tensor cores to be added in float32 after ``promoted`` terms."""
    total, inside = torch.zeros(len(products)), torch.zeros(len(products), 1, dtype=torch.float64)
    for start in range(0, products.shape[1], INSTRUCTION):
        parts = torch.cat([products[:, start : start + INSTRUCTION], inside], 1)
        inside = cut(parts, exponent_of(parts), downward).sum(1, keepdim=True)
        inside = cut(inside, exponent_of(inside), downward)
        if (start + INSTRUCTION) % promoted == 0:
            total, inside = total + inside[:, 0].float(), torch.zeros_like(inside)
    return total + inside[:, 0].float()


def rms(x: Tensor) -> float:
    """The root mean square."""
    return float(x.double().square().mean().sqrt())


def main() -> None:
    """Print a line for each number of terms, and what rounding the result would lose."""
    torch.manual_seed(0)
    print("terms  cut     after 64  after 128  never     bfloat16  float16")
    for terms in (512, 4096, 16384):
        a, b = (quantised(torch.randn(COUNT, terms, dtype=torch.float64)) for _ in range(2))
        products = a * b
        exact = products.sum(1)
        size = rms(exact)
        rounded = [rms((exact / size).to(t).double() - exact / size) for t in (torch.bfloat16, torch.float16)]
        for downward in (False, True):
            lost = [rms(summed(products, n, downward) - exact) / size for n in (64, 128, terms)]
            name = "down" if downward else "to zero"
            print(f"{terms:<6} {name:<7} " + "  ".join(f"{x:.2e}" for x in (*lost, *rounded)))


if __name__ == "__main__":
    main()
