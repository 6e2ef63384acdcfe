"""Routing: in force inside the block, gone afterwards, whatever happens in between."""

import pytest
import torch
from torch import nn

import conadv
from support.nets import NAMES, conv_net, images, perturb_norms


@pytest.fixture
def model():
    return perturb_norms(conadv.split_norms(conv_net()))


def layouts(model):
    return [router.layout for router in conadv.branches.branches.find_routers(model)]


def output_of(model, branch):
    return conadv.plain(model, branch).eval()(images_of)


images_of = images(6)


def assert_plain(model):
    """Nothing is routed: every image goes through the first branch."""
    assert layouts(model) == [None] * len(layouts(model))
    assert torch.equal(model.eval()(images_of), output_of(model, "clean"))


@pytest.mark.parametrize("sizes", [(6, 2), (2, 6), (1, 7)])
def test_a_whole_network_routed_is_two_networks(model, sizes):
    """In eval mode, where rows are independent, all the way from images to outputs."""
    model.eval()
    x = images(8)
    with conadv.route(model, list(zip(NAMES, sizes, strict=True))):
        got = model(x)
    want = [conadv.plain(model, b)(part) for b, part in zip(NAMES, x.split(sizes), strict=True)]
    torch.testing.assert_close(got, torch.cat(want))


def test_training_through_a_whole_network(model):
    """Outputs, every gradient and every running statistic, against two plain networks."""
    model.train()
    x = images(8)
    plain = {branch: conadv.plain(model, branch) for branch in NAMES}
    with conadv.route(model, [("clean", 5), ("adversarial", 3)]):
        got = model(x)
    want = torch.cat([plain["clean"](x[:5]), plain["adversarial"](x[5:])])
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    convolution = model[0].weight.grad
    both = plain["clean"][0].weight.grad + plain["adversarial"][0].weight.grad
    torch.testing.assert_close(convolution, both, atol=1e-4, rtol=1e-4)
    for index in (1, 4, 8):
        for branch in NAMES:
            mine, other = model[index].norms[branch], plain[branch][index]
            for key, value in other.named_parameters():
                torch.testing.assert_close(
                    mine.get_parameter(key).grad, value.grad, atol=1e-4, rtol=1e-4
                )
            for key, value in other.named_buffers():
                torch.testing.assert_close(mine.get_buffer(key), value)


def test_only_the_branch_that_is_used_changes(model):
    before = {n: b.clone() for n, b in model.named_buffers()}
    with conadv.route(model.train(), "adversarial"):
        model(images()).sum().backward()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == (".clean." in name), name
    for name, parameter in model.named_parameters():
        if ".norms." in name:
            assert (parameter.grad is None) == (".clean." in name), name


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_ends_the_block(model, error):
    def fail(*_):
        raise error

    model[3].register_forward_hook(fail)
    with pytest.raises(error), conadv.route(model, "adversarial"):
        model(images_of)
    model[3]._forward_hooks.clear()
    assert_plain(model)


def test_blocks_nest(model):
    model.eval()
    with conadv.route(model, "adversarial"):
        with conadv.route(model, "clean"):
            assert torch.equal(model(images_of), output_of(model, "clean"))
        assert torch.equal(model(images_of), output_of(model, "adversarial"))
        with pytest.raises(ValueError, match="clean, adversarial"), conadv.route(model, "wrong"):
            pass
        assert torch.equal(model(images_of), output_of(model, "adversarial"))
        with conadv.route(model):  # the first branch, not the one around
            assert torch.equal(model(images_of), output_of(model, "clean"))
    assert_plain(model)


def test_early_exits_end_the_block(model):
    def first():
        for _ in range(3):
            with conadv.route(model, "adversarial"):
                return model(images_of)

    first()
    assert_plain(model)
    for _ in range(2):
        with conadv.route(model, "adversarial"):
            break
    assert_plain(model)


def test_generators_that_end_crosswise(model):
    def inside(branch):
        with conadv.route(model, branch):
            yield
            yield

    one, two = inside("adversarial"), inside("clean")
    next(one), next(two)
    one.close()  # begun first, ended first
    assert layouts(model) == [(("clean", -1),)]
    two.close()
    assert_plain(model)
    abandoned = inside("adversarial")
    next(abandoned)
    del abandoned
    assert_plain(model)


def test_parts_that_were_split_on_their_own_are_all_routed():
    stem = conadv.split_norms(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    head = conadv.split_norms(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    model = perturb_norms(nn.Sequential(stem, head)).eval()
    x = torch.rand(6, 4)
    with conadv.route(model, "adversarial"):
        got = model(x)
    assert torch.equal(got, conadv.plain(model, "adversarial")(x))
    assert layouts(model) == [None, None]
    third = conadv.split_norms(nn.BatchNorm1d(4), ("clean", "other"))
    both = nn.Sequential(stem, third)
    with pytest.raises(ValueError, match="clean, other"), conadv.route(both, "adversarial"):
        pass
    assert stem[1].router.layout is None


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("noisy", "clean, adversarial"),
        ([("noisy", 3)], "clean, adversarial"),
        ([("noisy", 0), ("clean", 3)], "clean, adversarial"),
        ([("clean", -1)], "0 or more"),
        ([("clean", 2.5)], "0 or more"),
        ([("clean", True)], "0 or more"),
        ([("clean", 0), ("adversarial", 0)], "no images"),
        ([], "no images"),
        (["clean"], "pairs"),
        ([("clean", 1, 2)], "pairs"),
    ],
)
def test_refused_layouts(model, layout, message):
    with pytest.raises(ValueError, match=message), conadv.route(model, layout):
        pass
    assert_plain(model)


@pytest.mark.parametrize("layout", [[("clean", 5)], [("clean", 4), ("adversarial", 3)]])
def test_rows_must_match(model, layout):
    with (
        pytest.raises(ValueError, match=r"6 rows.*4 clean, 3 adversarial, 7|6 rows.*5 clean, 5"),
        conadv.route(model, layout),
    ):
        model(images_of)
    assert_plain(model)


def test_counts_and_forms_of_a_layout(model):
    model.eval()
    want = None
    for layout in (
        [("clean", 4), ("adversarial", 2)],
        (("clean", 4), ("adversarial", 2)),
        [("clean", 4), ("clean", 0), ("adversarial", torch.tensor(2))],
        {"clean": 4, "adversarial": 2},
        [("clean", 1), ("clean", 3), ("adversarial", 2)],
    ):
        with conadv.route(model, layout):
            got = model(images_of)
        want = got if want is None else want
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("statistics", ["separate", "affine", "shared"])
def test_windows_of_an_image_follow_it(statistics):
    """Windowed attention folds each image into several rows, in the order of the images."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            n = x.shape[0]
            x = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 1, 3, 5)
            x = self.norm(x.flatten(0, 2))
            x = x.unflatten(0, (n, 2, 2)).permute(0, 3, 1, 4, 2, 5)
            return x.flatten(2, 3).flatten(3, 4)

    folded = perturb_norms(conadv.split_norms(Windows(), statistics=statistics))
    whole = conadv.split_norms(nn.BatchNorm2d(3), statistics=statistics)
    whole.load_state_dict({k.removeprefix("norm."): v for k, v in folded.state_dict().items()})
    x = images(6)
    with conadv.route(folded, [("clean", 4), ("adversarial", 2)]):
        got = folded(x)
    with conadv.route(whole, [("clean", 4), ("adversarial", 2)]):
        want = whole(x)
    torch.testing.assert_close(got, want)
