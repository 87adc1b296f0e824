"""The loss against PyTorch's own, and what dropout drops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deeprec.trm.layers import Block, Dropout, catalogue_loss

WIDTH = 12
N_ITEMS = 37


def problem(n, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    users_ND = scale * torch.randn(n, WIDTH, generator=generator)
    items_ID = torch.randn(N_ITEMS, WIDTH, generator=generator)
    return users_ND, items_ID, torch.randint(N_ITEMS, (n,), generator=generator)


def ours(users_ND, items_ID, targets_N, dtype):
    users_ND, items_ID = users_ND.clone().requires_grad_(), items_ID.clone().requires_grad_()
    loss = catalogue_loss(users_ND, items_ID, targets_N, dtype)
    (3 * loss).backward()  # so that the incoming gradient counts
    return loss.detach(), users_ND.grad, items_ID.grad


def expected(users_ND, items_ID, targets_N):
    """In float64, with all logits at once."""
    users_ND, items_ID = users_ND.double().requires_grad_(), items_ID.double().requires_grad_()
    loss = F.cross_entropy(users_ND @ items_ID.T, targets_N)
    (3 * loss).backward()
    return loss.detach(), users_ND.grad, items_ID.grad


def distance(tensor, other):
    """Relative, of the whole."""
    return float((tensor - other).norm() / other.norm())


# The loss


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 512, 700])
def test_the_loss_is_cross_entropy(n):
    arguments = problem(n)
    for found, wanted in zip(ours(*arguments, torch.float32), expected(*arguments), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("n", [1, 257])
def test_the_loss_in_bfloat16_is_nearly_cross_entropy(n):
    arguments = problem(n)
    found, wanted = ours(*arguments, torch.bfloat16), expected(*arguments)
    assert [tensor.dtype for tensor in found] == [torch.float32] * 3
    assert all(distance(tensor, other) < 0.02 for tensor, other in zip(found, wanted, strict=True))


@settings(max_examples=60)
@given(n=st.integers(1, 9), n_items=st.integers(1, 5), width=st.integers(1, 4), seed=st.integers(0, 1000))
def test_the_loss_of_any_shape(n, n_items, width, seed):
    generator = torch.Generator().manual_seed(seed)
    users_ND, items_ID = torch.randn(n, width, generator=generator), torch.randn(n_items, width, generator=generator)
    arguments = (users_ND, items_ID, torch.randint(n_items, (n,), generator=generator))
    for found, wanted in zip(ours(*arguments, torch.float32), expected(*arguments), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits_do_not_overflow(sign):
    """exp(90) is more than float32 holds; here logits reach thousands, and for one user all are far below zero."""
    users_ND, items_ID, targets_N = problem(300, scale=1000.0)
    items_ID[:, 0] = sign * 5.0
    users_ND[0] = 0
    users_ND[0, 0] = -sign * 1000.0
    found, wanted = ours(users_ND, items_ID, targets_N, torch.float32), expected(users_ND, items_ID, targets_N)
    assert wanted[0] > 1000
    assert all(distance(tensor, other) < 1e-4 for tensor, other in zip(found, wanted, strict=True))
    assert all(torch.isfinite(tensor).all() for tensor in ours(users_ND, items_ID, targets_N, torch.bfloat16))


def test_a_step_against_the_gradient_lowers_the_loss():
    """In bfloat16, as in training: fifty steps fit 64 users."""
    users_ND, items_ID, targets_N = problem(64)
    users_ND.requires_grad_()
    optimizer = torch.optim.Adam([users_ND], lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        catalogue_loss(users_ND, items_ID, targets_N, torch.bfloat16).backward()
        optimizer.step()
    assert F.cross_entropy(users_ND @ items_ID.T, targets_N) < 0.05


# Dropout


@settings(max_examples=60)
@given(shape=st.lists(st.integers(0, 11), min_size=1, max_size=3), rate=st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_values_are_dropped_or_scaled(shape, rate):
    """Sizes that are no multiple of 8 among them."""
    torch.manual_seed(0)
    x = torch.randn(shape) + 10
    dropped = Dropout(rate)(x)
    assert dropped.shape == x.shape
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] * 256 / (256 - round(256 * rate)))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.95])
def test_the_share_that_is_dropped(rate):
    """Over 200,000 values, and for each of the eight bytes of a word: four standard deviations or less."""
    torch.manual_seed(1)
    x = torch.ones(200_000)
    dropped = Dropout(rate)(x)
    share = round(256 * rate) / 256
    spread = (share * (1 - share) / (x.numel() / 8)) ** 0.5
    shares_8 = (dropped == 0).view(-1, 8).double().mean(0)
    assert (shares_8 - share).abs().max() < 4 * spread
    assert abs(float(dropped.double().mean()) - 1) < 4 * (share / (1 - share) / x.numel()) ** 0.5


def test_values_are_dropped_independently():
    torch.manual_seed(2)
    kept = (Dropout(0.5)(torch.ones(100_000)) != 0).double().numpy()
    for distance_ in (1, 4, 8):
        assert abs(np.corrcoef(kept[:-distance_], kept[distance_:])[0, 1]) < 0.015


def test_nothing_is_dropped_in_use_or_at_rate_zero():
    x = torch.randn(5, 7)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_masks_follow_the_seed():
    x, layer = torch.ones(3, 101), Dropout(0.5)

    def draw(seed):
        torch.manual_seed(seed)
        return layer(x), layer(x)

    first, second = draw(7)
    again, second_again = draw(7)
    assert torch.equal(first, again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(8)[0])


def test_only_what_is_kept_has_a_gradient():
    torch.manual_seed(3)
    x = torch.ones(4, 33, requires_grad=True)
    dropped = Dropout(0.25)(x)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())  # the factor of each value, which is 1 here
    assert (x.grad == 0).any()


@pytest.mark.parametrize("rate", [0.99, 0.999])
def test_any_rate_below_one_keeps_some(rate):
    """The layer takes any rate below 1."""
    torch.manual_seed(4)
    dropped = Dropout(rate)(torch.ones(20_000))
    assert torch.isfinite(dropped).all()
    assert 0 < int((dropped != 0).sum()) < 400


# The block


def test_a_block_reads_no_later_position_and_no_other_row():
    torch.manual_seed(5)
    block = Block(8, 2, 0.5).eval()
    x_BTD = torch.randn(2, 6, 8)
    changed_BTD = x_BTD.clone()
    changed_BTD[0, 4:] = torch.randn(2, 8)
    with torch.inference_mode():
        one_BTD, two_BTD = block(x_BTD), block(changed_BTD)
    torch.testing.assert_close(one_BTD[0, :4], two_BTD[0, :4])
    torch.testing.assert_close(one_BTD[1], two_BTD[1])


def test_a_block_reads_earlier_positions():
    torch.manual_seed(5)
    block = Block(8, 2, 0.5).eval()
    x_BTD = torch.randn(1, 6, 8)
    changed_BTD = x_BTD.clone()
    changed_BTD[0, 0] = torch.randn(8)
    with torch.inference_mode():
        moved_TD = (block(x_BTD) - block(changed_BTD))[0].abs()
    assert (moved_TD.amax(1) > 1e-3).all()
