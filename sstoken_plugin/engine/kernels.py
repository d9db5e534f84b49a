"""Fused kernels of output head and loss that a user has switched on, where they give the loss of each token."""

from __future__ import annotations

from torch import Tensor

from sstoken_plugin.engine.linear_nll import is_trained, row_gradients


def cut_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Losses by apple's cut cross-entropy (arXiv 2411.09009); arguments and result as of `linear_nll`."""
    from cut_cross_entropy import linear_cross_entropy

    given = {} if bias is None else {"bias": bias}
    nll: Tensor = linear_cross_entropy(hidden, weight, target, reduction="none", **given)
    return nll.float()


def liger_fused_linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Losses by liger's fused kernel; arguments and result as of `linear_nll`.

    Raises:
        NotImplementedError: the head is trained.
    """
    if is_trained(weight, bias):
        raise NotImplementedError("its gradient of a trained head is a sum over all tokens, kept or not")
    return _liger_rows(hidden, weight, bias, target)


@row_gradients
def _liger_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as kernel

    nll: Tensor = kernel(hidden, weight, target, bias, reduction="none")
    return nll
