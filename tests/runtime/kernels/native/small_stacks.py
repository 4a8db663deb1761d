"""Runs every kernel, and a step of training in float64, in threads with small stacks, and prints
the C files that were used. A program of its own: what does not fit on a stack ends the process.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

STACK_BYTES = 1 << 18  # torch's own operators get along with it
TESTS = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(TESTS), str(TESTS / "compiler")]

import torch  # noqa: E402
from op_samples import OPS, floats, tensors, values_of  # noqa: E402

import multiway as mw  # noqa: E402
from multiway.runtime.kernels import kernels, native  # noqa: E402
from multiway.runtime.kernels.attention.sdpa import attention  # noqa: E402
from multiway.runtime.kernels.native import calls  # noqa: E402


def run_kernels(dtype: torch.dtype) -> None:
    """Every kernel with every sample of its op, forward alone and with backward."""
    for name, kernel in kernels().items():
        for sample in OPS[name].samples:
            values = values_of(OPS[name], sample, dtype=dtype)
            attrs = OPS[name].full_attrs(sample.attrs)
            if kernel.fits(attrs, {}) is not None:
                continue
            if kernel.takes is not None and kernel.takes(**values, **attrs) is not None:
                continue
            with torch.no_grad():
                kernel.run(**values, **attrs)
            for leaf in floats(values):
                leaf.requires_grad_()
            found = floats([*tensors_of(kernel.run(**values, **attrs))])
            total = sum(y.double().sum() for y in found if y.requires_grad)
            if isinstance(total, torch.Tensor):
                total.backward()


def tensors_of(found: object) -> list[torch.Tensor]:
    return tensors(list(found) if isinstance(found, tuple) else [found])


def attend(dtype: torch.dtype) -> None:
    """Attention of more tokens than the samples have: C is for those."""
    inputs = [torch.randn(1, 4, 300, 16, dtype=dtype).requires_grad_() for _ in range(3)]
    attention(*inputs, causal=True).sum().backward()


def train() -> None:
    model = mw.compile("prenorm-test", dtype=torch.float64)
    tokens = torch.arange(64).view(2, 32) % 7
    model.run("loss", tokens=tokens, labels=tokens)[0].backward()


def take_small_calls() -> None:
    """Samples are small: lets kernels take them as well."""
    for name, module in list(sys.modules.items()):
        if name.startswith("multiway.runtime.kernels."):
            for size in (
                "FEWEST",
                "FEWEST_OF_RMS_NORM",
                "FEWEST_OF_LAYER_NORM",
                "SMALL_LOGITS_BYTES",
            ):
                if hasattr(module, size):
                    setattr(module, size, 0)


def main() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        run_kernels(dtype)
        attend(dtype)
    train()
    done.append(True)


kernels()  # all are loaded now
take_small_calls()
calls.ELEMENTS_PER_THREAD = 1  # so that OpenMP's threads, whose stacks are as small, work too
torch.set_num_threads(2)
done: list[bool] = []
threading.stack_size(STACK_BYTES)
thread = threading.Thread(target=main)
thread.start()
thread.join()
if not done:
    sys.exit(1)
print(*sorted(name for name in native._found if native.library(name) is not None))
