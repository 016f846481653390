"""Folding an axis and unfolding it: signs and block sums in as few passes over memory as torch has.

Fold takes n values to k: signs, then the sum of the blocks of length k. Unfold is its adjoint. Both
are linear, so each is the gradient of the other.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

__all__ = ["fold", "unfold"]

# Values from which on a pass saved outweighs another operation, and a gradient written in Python
# what autograd makes of two operations; measured by `benchmarks/run.py layers`' machine.
_PASS, _GRADIENT = 1 << 15, 1 << 18


def fold(x: Tensor, signs: Tensor, k: int, dim: int = -1) -> Tensor:
    """y_j = Σ_i signs_(ik+j) · x_(ik+j) along `dim`: (..., n, ...) -> (..., k, ...); signs (n,)."""
    signs = signs if signs.dtype is x.dtype else signs.to(x.dtype)
    dim = dim if dim < 0 else dim - x.ndim
    trains = x.requires_grad and _own_gradient(x.numel())
    return _Fold.apply(x, signs, k, dim) if trains else _fold(x, signs, k, dim)


def unfold(y: Tensor, signs: Tensor, dim: int = -1, onto: Tensor | None = None) -> Tensor:
    """x_i = signs_i · y_(i mod k) + onto_i along `dim`: (..., k, ...) -> (..., n, ...).

    `onto` broadcasts to the result, with the length n along `dim`.
    """
    signs = signs if signs.dtype is y.dtype else signs.to(y.dtype)
    dim = dim if dim < 0 else dim - y.ndim
    trains = y.requires_grad or (onto is not None and onto.requires_grad)
    onto = onto if onto is None else onto.to(y.dtype)
    if trains and _own_gradient(y.numel() // y.shape[dim] * len(signs)):
        return _Unfold.apply(y, signs, dim, onto)
    return _unfold(y, signs, dim, onto)


def _own_gradient(count: int) -> bool:
    """Whether to take the gradient written here; a compiler writes its own."""
    return not torch.compiler.is_compiling() and count >= _GRADIENT and torch.is_grad_enabled()


def _fold(x: Tensor, signs: Tensor, k: int, dim: int) -> Tensor:
    if _is_last_in_memory(x, dim):
        return _fold(x.movedim(dim, -1), signs, k, -1).movedim(-1, dim)
    n = len(signs)
    signs = signs if dim == -1 else signs.view(-1, *[1] * (-1 - dim))
    if not torch.compiler.is_compiling() and _in_blocks(x, n, k):
        y = x.narrow(dim, 0, k) * signs[:k]
        for start in range(k, n, k):
            size = min(k, n - start)
            block, own = x.narrow(dim, start, size), signs[start : start + size]
            y.narrow(dim, 0, size).addcmul_(block, own)
        return y
    signed = x * signs
    if missing := -n % k:
        signed = F.pad(signed, (0, 0) * (-1 - dim) + (0, missing))
    return _in_two(signed, dim, k).sum(dim - 1)


def _in_two(x: Tensor, dim: int, k: int) -> Tensor:
    """An axis as blocks of k: what `unflatten` gives, which takes longer than small sums."""
    if x.ndim == 1:
        return x.view(-1, k)
    return x.view(*x.shape[:dim], x.shape[dim] // k, k, *x.shape[dim:][1:])


def _in_blocks(x: Tensor, n: int, k: int) -> bool:
    """Whether a pass over each block beats two over all.

    Not where rounding would add up, nor where autograd would write a pass for each block.
    """
    many = x.numel() >= _PASS * -(-n // k) and x.dtype in (torch.float32, torch.float64)
    return many and not (x.requires_grad and torch.is_grad_enabled())


def _is_last_in_memory(x: Tensor, dim: int) -> bool:
    """Whether channels lie together, which the result should keep."""
    return dim != -1 and not torch.compiler.is_compiling() and x.stride(dim) == 1 < x.stride(-1)


def _unfold(y: Tensor, signs: Tensor, dim: int, onto: Tensor | None = None) -> Tensor:
    if _is_last_in_memory(y, dim):
        onto = onto if onto is None else onto.movedim(dim, -1)
        return _unfold(y.movedim(dim, -1), signs, -1, onto).movedim(-1, dim)
    n, k = len(signs), y.shape[dim]
    if left := n % k:
        whole = n - left
        parts = (None, None) if onto is None else onto.split([whole, left], dim)
        first = _unfold(y, signs[:whole], dim, parts[0])
        last = _unfold(y.narrow(dim, 0, left), signs[whole:], dim, parts[1])
        return torch.cat([first, last], dim)
    signs = signs if dim == -1 else signs.view(-1, *[1] * (-1 - dim))
    if k == n:
        return _signed(y, signs, onto)
    base = onto if onto is None else _in_two(onto, dim, k)
    x = _signed(y.unsqueeze(dim - 1), _in_two(signs, dim, k), base)
    before, after = x.shape[: dim - 1], x.shape[dim:][1:]
    return x.reshape(*before, n, *after)  # not flatten: torch's older vmap does not know it


def _signed(y: Tensor, signs: Tensor, onto: Tensor | None) -> Tensor:
    if onto is None:
        return y * signs
    if signs.shape[-1] == 1 and onto.numel() == signs.numel() and _may_write():
        # A sign and a bias for a whole plane: with two such operands torch computes value by value.
        return (y * signs).add_(onto)
    return torch.addcmul(onto, y, signs)


def _may_write() -> bool:
    """Whether a new tensor can be written to: not where another may be batched and this one not."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


class _Fold(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, signs: Tensor, k: int, dim: int) -> Tensor:
        return _fold(x, signs, k, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, signs, *ctx.rest = inputs
        ctx.save_for_backward(signs)
        ctx.save_for_forward(signs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (signs,), (_, dim) = ctx.saved_tensors, ctx.rest
        return unfold(grad_outputs[0], signs, dim), None, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (signs,), (k, dim) = ctx.saved_tensors, ctx.rest
        return fold(grad_inputs[0], signs, k, dim)


class _Unfold(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, signs: Tensor, dim: int, onto: Tensor | None) -> Tensor:
        return _unfold(y, signs, dim, onto)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        y, signs, ctx.dim, onto = inputs
        ctx.k, ctx.base = y.shape[ctx.dim], None if onto is None else onto.shape
        ctx.save_for_backward(signs)
        ctx.save_for_forward(signs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (signs,), (gradient,) = ctx.saved_tensors, grad_outputs
        wanted, _, _, based = ctx.needs_input_grad
        y = fold(gradient, signs, ctx.k, ctx.dim) if wanted else None
        return y, None, None, gradient.sum_to_size(ctx.base) if based else None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (signs,), (y, _, _, onto) = ctx.saved_tensors, grad_inputs
        return unfold(y, signs, ctx.dim, onto)
