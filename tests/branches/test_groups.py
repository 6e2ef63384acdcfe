"""Normalisation groups: as if each group of images had come alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conadv
from support.nets import NAMES, conv_net, images, perturb_norms, twin


def groups_of(x, size):
    return x.split(size)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("count", [8, 9, 11])  # the last group is whole, one and three quarters
def test_a_group_is_a_plain_batch_norm_of_its_own(momentum, count):
    norm = perturb_norms(nn.BatchNorm2d(3, momentum=momentum))
    split = conadv.split_norms(twin(norm), group_size=4)
    x = torch.randn(count, 3, 5, 5)
    got = split(x)
    want = torch.cat([norm(group) for group in groups_of(x, 4)])
    assert torch.equal(got, want)
    # Running statistics: one update per group, in order.
    for key, value in norm.named_buffers():
        assert torch.equal(split.norms["clean"].get_buffer(key), value)
    assert int(split.norms["clean"].num_batches_tracked) == -(-count // 4)


def test_in_eval_mode_there_are_no_groups():
    split = conadv.split_norms(perturb_norms(nn.BatchNorm1d(3)), group_size=4).eval()
    x = torch.randn(11, 3)
    want = conadv.plain(split)(x)
    calls = []
    split.norms["clean"].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(split(x), want)
    assert calls == [1]


def test_each_branch_has_groups_of_its_own():
    split = perturb_norms(conadv.split_norms(nn.BatchNorm2d(3), group_size=4))
    plain = {branch: conadv.plain(split, branch) for branch in NAMES}
    x = torch.randn(14, 3, 5, 5)
    with conadv.route(split, [("clean", 9), ("adversarial", 5)]):
        got = split(x)
    want = [plain["clean"](g) for g in groups_of(x[:9], 4)]
    want += [plain["adversarial"](g) for g in groups_of(x[9:], 4)]
    assert torch.equal(got, torch.cat(want))


@pytest.mark.parametrize("statistics", ["affine", "shared"])
def test_shared_statistics_take_a_part_of_every_branch(statistics):
    """12 clean and 4 adversarial in groups of 8: 6 and 2 each, in order."""
    split = perturb_norms(
        conadv.split_norms(nn.BatchNorm2d(3), group_size=8, statistics=statistics)
    )
    alone = perturb_norms(conadv.split_norms(nn.BatchNorm2d(3), statistics=statistics))
    x = torch.randn(16, 3, 5, 5)
    clean, adversarial = x[:12], x[12:]
    with conadv.route(split, [("clean", 12), ("adversarial", 4)]):
        got = split(x)
    parts = []
    for i in range(2):
        group = torch.cat([clean[i * 6 : i * 6 + 6], adversarial[i * 2 : i * 2 + 2]])
        with conadv.route(alone, [("clean", 6), ("adversarial", 2)]):
            parts.append(alone(group))
    want = torch.cat([parts[0][:6], parts[1][:6], parts[0][6:], parts[1][6:]])
    assert torch.equal(got, want)
    for key, value in alone.named_buffers():
        assert torch.equal(split.get_buffer(key), value)


@pytest.mark.parametrize("sizes", [(11, 5), (12, 5), (13, 4)])
def test_shared_statistics_refuse_groups_of_unequal_parts(sizes):
    split = conadv.split_norms(nn.BatchNorm1d(3), group_size=8, statistics="shared")
    with (
        pytest.raises(ValueError, match=f"groups of 8.*{sizes[0]} clean, {sizes[1]} adversarial"),
        conadv.route(split, list(zip(NAMES, sizes, strict=True))),
    ):
        split(torch.randn(sum(sizes), 3))


@pytest.mark.parametrize("statistics", ["separate", "affine", "shared"])
def test_accumulation_is_the_big_batch(statistics):
    """Micro-batches of one group against one batch cut into groups: the same step."""
    big = perturb_norms(conadv.split_norms(conv_net(), group_size=4, statistics=statistics))
    small = twin(big)
    clean, copies = images(8), images(8)
    labels = torch.arange(8) % 5
    size = 4 if statistics == "separate" else 2  # a group holds 4 of one, or 2 of each

    with conadv.route(big, [("clean", 8), ("adversarial", 8)]):
        outputs = big(torch.cat([clean, copies]))
    F.cross_entropy(outputs, labels.repeat(2)).backward()

    for start in range(0, 8, size):
        rows = slice(start, start + size)
        with conadv.route(small, [("clean", size), ("adversarial", size)]):
            part = small(torch.cat([clean[rows], copies[rows]]))
        loss = F.cross_entropy(part, labels[rows].repeat(2))
        (loss * size / 8).backward()
        torch.testing.assert_close(part[:size], outputs[:8][rows])
        torch.testing.assert_close(part[size:], outputs[8:][rows])
    for (name, one), two in zip(big.named_parameters(), small.parameters(), strict=True):
        if one.grad is None:
            assert two.grad is None, name
        else:
            torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-4, msg=name)
    for (name, one), two in zip(big.named_buffers(), small.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_groups_count_images_and_not_their_windows():
    split = conadv.split_norms(nn.BatchNorm1d(3), group_size=2)
    norm = conadv.plain(split)
    x = torch.randn(16, 3)  # four images of four windows each
    with conadv.route(split, [("clean", 4)]):
        got = split(x)
    assert torch.equal(got, torch.cat([norm(group) for group in x.split(8)]))


def test_an_attack_sees_the_groups_of_the_training_step():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):  # (N, 4, 3): four windows per image
            return self.norm(x.flatten(0, 1)).unflatten(0, (-1, 4)).tanh().mean(dim=1)

    model = perturb_norms(conadv.split_norms(Folded(), group_size=2))
    x, labels = torch.rand(6, 4, 3), torch.arange(6) % 3
    attack = conadv.Attack(0.1)
    got = attack(model, x, labels, F.cross_entropy)
    groups = conadv.split_norms(conadv.plain(model))
    want = [
        attack(groups, part, label, F.cross_entropy)
        for part, label in zip(x.split(2), labels.split(2), strict=True)
    ]
    assert torch.equal(got, torch.cat(want))
