"""The multi-tensor steps equal the reference for any shapes and numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conadv.optim import LAMB, LARS, multi_tensor

shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=6)
share = st.floats(0.0, 0.99)


def pair(shapes: list[tuple[int, ...]], seed: int) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [nn.Parameter(v.clone()) for v in values], [nn.Parameter(v) for v in values]


def drive(optimizers: list[LARS] | list[LAMB], params: list[list[nn.Parameter]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(3):
        for p, q in zip(*params, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-10, atol=1e-12)


@given(
    shapes=shapes,
    lr=st.floats(0.0, 40.0),
    momentum=share,
    weight_decay=st.floats(0.0, 0.1),
    eps=st.floats(0.0, 1.0),
    flags=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_lars(
    shapes: list[tuple[int, ...]],
    lr: float,
    momentum: float,
    weight_decay: float,
    eps: float,
    flags: tuple[bool, ...],
    seed: int,
) -> None:
    params = pair(shapes, seed)
    optimizers = [
        LARS(
            own,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            eps=eps,
            nesterov=flags[0] and momentum > 0,
            lr_in_momentum=flags[1],
            maximize=flags[2],
            trust_clip=0.1 if flags[3] else None,
            foreach=foreach,
        )
        for own, foreach in zip(params, (True, False), strict=True)
    ]
    drive(optimizers, list(params), seed)


@given(
    shapes=shapes,
    # At 1 a single weight lands on zero, give or take a rounding, where the trust ratio jumps.
    lr=st.floats(0.0, 0.9),
    betas=st.tuples(share, share),
    weight_decay=st.floats(0.0, 0.1),
    flags=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_lamb(
    shapes: list[tuple[int, ...]],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    flags: tuple[bool, ...],
    seed: int,
) -> None:
    params = pair(shapes, seed)
    optimizers = [
        LAMB(
            own,
            lr=lr,
            betas=betas,
            eps=1e-3,
            weight_decay=weight_decay,
            bias_correction=flags[0],
            grad_averaging=flags[1],
            maximize=flags[2],
            trust_clip=1.0 if flags[3] else None,
            foreach=foreach,
        )
        for own, foreach in zip(params, (True, False), strict=True)
    ]
    drive(optimizers, list(params), seed)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_pieces_of_the_list_do_not_change_the_result(
    kind: type[LARS] | type[LAMB], capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = pair([(3, 4), (20,), (1,), (), (5, 5), (2, 2)], 0)
    whole = kind(params[0], lr=0.1, capturable=capturable)
    cut = kind(params[1], lr=0.1, capturable=capturable)
    for own, optimizer, elements in ((params[0], whole, 1 << 20), (params[1], cut, 13)):
        monkeypatch.setattr(multi_tensor, "CACHED_ELEMENTS", elements)
        for step in range(3):
            for index, p in enumerate(own):
                p.grad = torch.full_like(p, 0.3 + step) * (1 + index) + p.detach()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(*params, strict=True))


def test_pieces_cover_the_list_once() -> None:
    tensors = [torch.zeros(n) for n in (1, multi_tensor.CACHED_ELEMENTS + 1, 5, 0, 7)]
    pieces = list(multi_tensor.pieces(tensors))
    assert [i for piece in pieces for i in range(len(tensors))[piece]] == list(range(5))
    assert pieces == [slice(0, 1), slice(1, 2), slice(2, 5)]
    assert list(multi_tensor.pieces([])) == []
