"""The output head's own path to losses and gradients, against the ordinary one."""

from __future__ import annotations

import pytest
import torch
from counting import products_over
from torch.nn import functional

from sstoken_plugin.engine import linear_nll as module
from sstoken_plugin.engine.linear_nll import linear_nll, row_gradients

ROWS, WIDTH, VOCABULARY = 23, 16, 50


@pytest.fixture(params=["all at once", "in chunks", "in chunks, some held", "in chunks, none held"])
def pieces(request, monkeypatch):
    """However the work is cut, and whatever waits for the backward pass of a trained head."""
    if request.param != "all at once":
        monkeypatch.setattr(module, "LEAST_ROWS", 5)
        monkeypatch.setattr(module, "ELEMENTS", 5 * VOCABULARY)
    held = {"in chunks, some held": 2 * 5 * VOCABULARY * 4, "in chunks, none held": 0}
    if request.param in held:
        monkeypatch.setattr(module, "HELD_BYTES", held[request.param])


def head(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(VOCABULARY, (ROWS,), generator=generator)


def ordinary(hidden, weight, bias, target):
    return functional.cross_entropy(functional.linear(hidden, weight, bias).float(), target, reduction="none")


def losses_and_gradients(losses, arguments, counts):
    nll = losses(*arguments)
    trained = [tensor for tensor in arguments[:3] if tensor is not None and tensor.requires_grad]
    return nll.detach(), torch.autograd.grad((nll * counts).sum(), trained)


@pytest.mark.parametrize("trained", ["hidden", "hidden, weight", "hidden, weight, bias"])
@pytest.mark.parametrize("kept", ["some", "none", "all", "weighted"])
def test_losses_and_gradients_are_the_ordinary_ones(pieces, trained, kept):
    hidden, weight, bias, target = head()
    weight.requires_grad_("weight" in trained)
    bias = bias if "bias" in trained else None
    counts = {
        "some": torch.arange(ROWS) % 3 == 0,
        "none": torch.zeros(ROWS),
        "all": torch.ones(ROWS),
        "weighted": torch.linspace(-1, 1, ROWS),
    }[kept]
    arguments = (hidden, weight, bias, target)
    torch.testing.assert_close(
        losses_and_gradients(linear_nll, arguments, counts),
        losses_and_gradients(ordinary, arguments, counts),
        rtol=0, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_applies_as_to_a_linear_layer(pieces, dtype):
    arguments = head(dtype)
    counts = torch.arange(ROWS) % 3 == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = losses_and_gradients(linear_nll, arguments, counts)
        own = losses_and_gradients(ordinary, arguments, counts)
    torch.testing.assert_close(ours[0], own[0], rtol=0, atol=1e-5)
    for one, other in zip(ours[1], own[1], strict=True):
        assert one.dtype == other.dtype == dtype
        # Gradients over the vocabulary are summed in another order, in bfloat16.
        torch.testing.assert_close(one, other, rtol=2e-2, atol=5e-2)


def test_no_rows_have_no_losses_and_gradients_of_zero():
    hidden, weight, bias, target = head()
    nll = linear_nll(hidden[:0], weight, bias, target[:0])
    assert nll.shape == (0,)
    assert not any(gradient.any() for gradient in torch.autograd.grad(nll.sum(), (hidden, weight, bias)))


def test_a_pass_without_gradient_has_losses_and_no_more():
    hidden, weight, bias, target = head()
    with torch.no_grad(), products_over(VOCABULARY) as rows:
        nll = linear_nll(hidden, weight, bias, target)
    torch.testing.assert_close(nll, ordinary(hidden, weight, bias, target).detach())
    assert nll.grad_fn is None
    assert sum(rows) == ROWS


@pytest.mark.parametrize(
    ("trained", "cost"),
    [(False, 2 * ROWS), (True, ROWS + 2 * 8)],
    ids=["frozen: no row twice", "trained: backward on kept rows alone"],
)
def test_the_cost_of_a_step_is_that_of_the_rows_that_are_needed(trained, cost):
    """In rows of products over the vocabulary."""
    hidden, weight, _, target = head()
    weight.requires_grad_(trained)
    kept = torch.arange(ROWS) % 3 == 0
    with products_over(VOCABULARY) as rows:
        linear_nll(hidden, weight, None, target)[kept].sum().backward()
    assert sum(rows) == cost


@pytest.mark.parametrize("trained", [False, True])
def test_a_dropped_row_that_is_not_finite_spoils_no_gradient(trained):
    hidden, weight, _, target = head()
    weight.requires_grad_(trained)
    kept = torch.arange(ROWS) != 4
    with torch.no_grad():
        hidden[4] = torch.inf
    nll = linear_nll(hidden, weight, None, target)
    assert not torch.isfinite(nll[4])
    for gradient in torch.autograd.grad(nll[kept].sum(), (hidden, weight) if trained else hidden):
        assert torch.isfinite(gradient).all()


def test_a_kernel_that_can_only_scale_all_rows_alike_serves_any_of_them():
    arguments = (*head()[:2], None, head()[3])
    arguments[1].requires_grad_(False)
    serves = row_gradients(OneScale.apply)
    counts = torch.linspace(-1, 1, ROWS)
    torch.testing.assert_close(
        losses_and_gradients(serves, arguments, counts), losses_and_gradients(ordinary, arguments, counts)
    )
    with torch.no_grad():
        assert serves(*arguments).grad_fn is None


class OneScale(torch.autograd.Function):
    """Per-token losses whose backward pass reads one number, as liger's does."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, target):
        with torch.enable_grad():
            rows = hidden.detach().requires_grad_()
            nll = ordinary(rows, weight, bias, target)
            ctx.save_for_backward(torch.autograd.grad(nll.sum(), rows)[0])
        return nll.detach()

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad[0], None, None, None
