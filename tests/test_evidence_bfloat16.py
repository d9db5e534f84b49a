"""Products of bfloat16 matrices by float32: what an instruction gives, and nothing else changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from evidence import bfloat16
from evidence.autocast import AutocastPlugin

pytestmark = pytest.mark.fast
# Between two neighbours in bfloat16 there is 2**-7 of a number at most.
SPACING = 2.0**-7


@pytest.fixture(autouse=True)
def kernels_of_pytorch():
    """Before a test, since another of this process may have had a training, and after it."""

    def back():
        bfloat16.by_float32.cache_clear()
        torch.backends.cuda.enable_flash_sdp(True)

    back()
    yield
    back()


def made(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


PRODUCTS = {
    "mm": (torch.mm, (made(5, 70), made(70, 9))),
    "transposed": (lambda a, b: a @ b.T, (made(5, 70), made(9, 70))),
    "bmm": (torch.bmm, (made(3, 5, 70), made(3, 70, 9))),
    "linear": (functional.linear, (made(2, 5, 70), made(9, 70), made(9))),
    "addmm": (lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), (made(5, 9), made(5, 70), made(70, 9))),
    "baddbmm": (torch.baddbmm, (made(3, 5, 9), made(3, 5, 70), made(3, 70, 9))),
    "attention": (functional.scaled_dot_product_attention, (made(2, 3, 5, 8), made(2, 3, 6, 8), made(2, 3, 6, 8))),
}
# Ours for the losses of response tokens (`linear_nll`).
INTO_MEMORY = {
    "mm": (torch.mm, (made(5, 70), made(9, 70).T)),
    "addmm": (torch.addmm, (made(9), made(5, 70), made(9, 70).T)),
}


def found(product, factors, dtype):
    leaves = [factor.to(dtype, copy=True).requires_grad_() for factor in factors]
    result = product(*leaves)
    result.backward(made(*result.shape).to(dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves)]


def after_and_before(name, after, before):
    """Return a product and its gradients by float32, beside those of PyTorch's own kernels, in a precision each."""
    expected = found(*PRODUCTS[name], before)
    bfloat16.by_float32()
    return zip(found(*PRODUCTS[name], after), expected, strict=True)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_and_its_gradients_are_those_of_exact_sums_rounded_once(name):
    for narrow, exact in after_and_before(name, torch.bfloat16, torch.float64):
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(narrow.double(), exact, rtol=SPACING, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "attention"])
def test_other_precisions_are_computed_as_before(name):
    for after, before in after_and_before(name, torch.float32, torch.float32):
        assert torch.equal(after, before)


def test_attention_in_other_precisions_differs_by_the_order_of_its_sums_alone():
    for after, before in after_and_before("attention", torch.float32, torch.float32):
        torch.testing.assert_close(after, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", INTO_MEMORY)
def test_a_product_is_written_to_the_memory_that_is_named(name, dtype):
    product, factors = INTO_MEMORY[name]
    factors = [factor.to(dtype) for factor in factors]
    bfloat16.by_float32()
    memory = torch.zeros(7, 9, dtype=dtype)
    result = product(*factors, out=memory[:5])
    assert result.data_ptr() == memory.data_ptr()
    assert not memory[5:].any()
    torch.testing.assert_close(
        memory[:5].double(), product(*(factor.double() for factor in factors)), rtol=SPACING, atol=1e-4
    )


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_model_under_autocast_trains_by_it_where_instructions_are_missing(monkeypatch, is_fast):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: is_fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AutocastPlugin().pre_model_load(None)
    rounded = []
    real = torch.Tensor.bfloat16
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: rounded.append(tensor.dtype) or real(tensor))
    layer = torch.nn.Linear(70, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(made(2, 5, 70, dtype=torch.float32))
    found.float().sum().backward()
    # Forward, and the gradient of the weights.
    assert rounded == ([] if is_fast else [torch.float32, torch.float32])
    assert layer.weight.grad.dtype == torch.float32
    assert torch.backends.cuda.flash_sdp_enabled() is is_fast


class Model(nn.Sequential):
    """A frozen layer, a trained one and a frozen output head."""

    def __init__(self):
        super().__init__(nn.Linear(16, 32), nn.Linear(32, 8), nn.Linear(8, 4))
        self[0].requires_grad_(False)
        self[2].requires_grad_(False)

    def get_output_embeddings(self):
        return self[2]


def test_a_frozen_weight_is_cast_once_and_computes_what_autocast_does():
    """Autocast itself casts a frozen weight in every pass; one that is trained it has to."""
    model = Model()
    inputs = made(4, 16, dtype=torch.float32).requires_grad_()

    def computed():
        with torch.autocast("cpu", torch.bfloat16):
            lowered = model(inputs)
        gradients = torch.autograd.grad(lowered.float().sum(), [inputs, *model[1].parameters()])
        return [lowered, *gradients, model(inputs)]

    before = computed()
    AutocastPlugin().post_model_load(None, model)
    assert all(torch.equal(*pair) for pair in zip(before, computed(), strict=True))
    model[0].weight.data.zero_()
    lowered, *_, exact = computed()
    assert torch.equal(lowered, before[0])
    assert not torch.equal(exact, before[-1])


@pytest.mark.parametrize("layer", [1, 2], ids=["trained", "the output head"])
def test_other_weights_are_cast_in_every_pass(layer):
    model, inputs = Model(), made(4, 16, dtype=torch.float32)
    AutocastPlugin().post_model_load(None, model)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(inputs)
    model[layer].weight.data.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model(inputs), before)


def test_a_weight_that_was_cast_to_measure_trains():
    model, inputs = Model(), made(4, 16, dtype=torch.float32)
    AutocastPlugin().post_model_load(None, model)
    inputs.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            model(inputs)
        model(inputs).sum().backward()
    assert model[1].weight.grad.any()
    assert inputs.grad.any()
