"""Eight-bit arithmetic for scoring: whole numbers of 8 bits in place of float32 in every linear layer.

Weights are rounded once, per output row; inputs at each pass, per token, so that a text's result does not hang on the
largest value of its neighbours (as it would with torch's own dynamic quantisation, which takes one scale per batch).
Dettmers et al. (2022, arXiv 2208.07339) describe the row-wise scheme; their outlier columns are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPooler
from transformers.pytorch_utils import Conv1D

__all__ = ["Int8Linear", "in_int8"]

_LARGEST = 127
# At a time, so that what stands between input and output stays in the processor's cache.
_ROWS = 512


class Int8Linear(nn.Module):
    """A linear layer for scoring. A row of its input that is not finite gives a row that is not finite."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        whole, scale = _round_rows(weight.detach().float())
        self.weight = nn.Buffer(whole)  # (out, in) int8
        self.scale = nn.Buffer(scale.squeeze(1))  # (out,) float32
        self.bias = None if bias is None else nn.Buffer(bias.detach().float())

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]).float()  # (B, T, in) -> (B * T, in)
        outputs = rows.new_empty(len(rows), len(self.weight))
        for start in range(0, len(rows), _ROWS):
            whole, scale = _round_rows(rows[start : start + _ROWS])
            part = outputs[start : start + _ROWS].copy_(_multiply(whole, self.weight))
            part.mul_(scale).mul_(self.scale)  # (rows, 1) and (out,)
            if self.bias is not None:
                part.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], -1).to(inputs.dtype)


def in_int8(module: nn.Module, backbone: nn.Module) -> nn.Module:
    """Return a copy of a module for scoring with the linear layers of its backbone in int8; all else is shared.

    The head, the pooler and soft prompts stay as they are. LoRA must be merged: its own matrices are left behind.
    """
    if module is backbone:
        return _converted(module)
    return _shell(module, lambda child: in_int8(child, backbone))


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if isinstance(module, nn.Linear):
        return Int8Linear(module.weight, module.bias)
    if isinstance(module, Conv1D):  # GPT-2 stores the transpose
        return Int8Linear(module.weight.t(), module.bias)
    if isinstance(module, BertPooler):
        return module
    return _shell(module, _converted)


def _shell(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    shell = copy.copy(module)
    shell._modules = {name: child and convert(child) for name, child in module._modules.items()}
    return shell


def _round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    # (N, K) float32 -> (N, K) int8 and (N, 1) float32. In a row with NaN or infinity the scale is neither finite nor
    # harmless (NaN, or infinity times 0), so that its whole numbers need not mean anything.
    scale = rows.abs().amax(dim=1, keepdim=True).div_(_LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    return torch.div(rows, scale).round_().to(torch.int8), scale


def _multiply(rows: Tensor, weight: Tensor) -> Tensor:
    # (N, K) x (M, K) int8 -> (N, M), sums exact up to 2**24 at least. A GPU's kernel for whole numbers takes some
    # shapes only; a processor's, where it has no instructions for them, is 20 to 30 times as slow as that for float32.
    if rows.device.type == "cpu" and torch.cpu._is_vnni_supported():
        return torch._int_mm(rows, weight.t())
    return rows.float() @ weight.t().float()
