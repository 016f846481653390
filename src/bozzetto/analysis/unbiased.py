"""What the paper's unbiased estimate of a layer costs: the expected error, in closed form."""

import torch
from torch import Tensor

__all__ = ["expected_error", "relative_error"]


def expected_error(
    weight: Tensor, moment: Tensor, k: int, *, terms: int = 1, taps: int = 1
) -> float:
    """Expected relative error of the paper's unbiased estimate of a layer, filled with U W.

    E‖ŷ − Wx‖² = 1/(4l) { (m−1)/k ‖Wx‖² + 1/k' [‖W‖²‖x‖² + ‖Wx‖² − 2 Σⱼ ‖W_:j‖² xⱼ²] } for l pairs
    of scaled sign matrices, U1: (k, m) and U2: (k', d) with k' = k·taps, averaged over inputs
    (Kasiviswanathan, Narodytska and Jin 2018; the second moments of pairs of signs).

    Args:
        weight: (m, d), or (g, m, d) for groups.
        moment: E[x xᵀ] of input patches, (d, d) or (g, d, d).
        k: rows of every sketch.
        terms: l.
        taps: of a convolution, whose patches are sketched jointly.

    Returns:
        The root of the mean square error over the root mean square of W x.

    Raises:
        ValueError: if k or terms is below 1, or the shapes do not fit.
    """
    if k < 1 or terms < 1:
        raise ValueError(f"an estimate needs k >= 1 and terms >= 1; got k={k}, terms={terms}")
    if moment.shape != (*weight.shape[:-2], *weight.shape[-1:] * 2):
        raise ValueError(
            f"a weight (m, d) needs a moment (d, d); got {tuple(weight.shape)} and "
            f"{tuple(moment.shape)}"
        )
    w, c = weight.double(), moment.double()
    energies = torch.diagonal(c, dim1=-2, dim2=-1)
    signal = ((w @ c) * w).sum((-2, -1))
    return relative_error(w, energies, signal, k=k, terms=terms, taps=taps)


def relative_error(
    w: Tensor, energies: Tensor, signal: Tensor, *, k: int, terms: int, taps: int
) -> float:
    """The formula of `expected_error` for E‖Wx‖² (g,) and E[xⱼ²] (g, d), in any common unit."""
    columns = w.detach().square().sum(-2)  # (..., d)
    spread = columns.sum(-1) * energies.sum(-1) - 2 * (columns * energies).sum(-1)
    error = (w.shape[-2] - 1) / k * signal + (spread + signal) / (k * taps)
    return float((error.sum() / (4 * terms) / signal.sum()).detach()) ** 0.5
