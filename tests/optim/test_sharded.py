"""LARS and LAMB under fully_shard: norms of whole tensors, as in one process."""

import pytest
import torch

from support import dtensors, gloo, sharded
from support.optimizers import IMPLEMENTATIONS, make

pytestmark = pytest.mark.slow  # starting the ranks takes seconds
every_kind = pytest.mark.parametrize("kind", ["lars", "lamb"])
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
    torch.float32: {"rtol": 1e-6, "atol": 1e-8},
    # A norm that differs in its last digit may round single weights to their neighbour.
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return gloo.run_cases("support.sharded", 2, tmp_path_factory)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return gloo.run_cases("support.dtensors", 4, tmp_path_factory)


def assert_equals_one_process(ranks, placement, option, implementation, dtype, shapes) -> None:
    name = ("given", placement, option, implementation, str(dtype))
    # In half precision the implementations round in different places.
    same = "reference" if dtype in (torch.float64, torch.float32) else implementation
    expected = dtensors.given(option, same, dtype=dtype, shapes=shapes)
    for found in gloo.of_case(ranks, *name):
        torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    start = dtensors.values(shapes, 0, dtype)
    assert not all(torch.equal(a, b) for a, b in zip(start, expected, strict=True))


@pytest.mark.parametrize(
    ("option", "implementation", "dtype", "shapes"), dtensors.options_for("rows")
)
def test_every_option_equals_one_process(two, option, implementation, dtype, shapes) -> None:
    assert_equals_one_process(two, "rows", option, implementation, dtype, shapes)


@pytest.mark.parametrize("placement", ["columns", "replicated", "one rank each"])
@pytest.mark.parametrize("option", ["lars", "lamb"])
def test_other_placements(two, placement: str, option: str) -> None:
    shapes = 5 if placement == "columns" else len(dtensors.SHAPES)
    assert_equals_one_process(two, placement, option, "foreach", torch.float64, shapes)


@pytest.mark.parametrize("placement", ["Replicate", "Partial"])
@every_kind
def test_gradients_that_lie_otherwise(two, placement: str, kind: str) -> None:
    params = [torch.nn.Parameter(t) for t in dtensors.values(5, 0, torch.float64)]
    for p, grad in zip(params, dtensors.values(5, 9, torch.float64), strict=True):
        p.grad = grad
    make(kind, "reference", params).step()
    for found in gloo.of_case(two, "gradients", kind, placement):
        torch.testing.assert_close(found, [p.detach() for p in params], **TOLERANCE[torch.float64])


@pytest.mark.parametrize("placement", ["hybrid", "both"])
@pytest.mark.parametrize("option", ["lars", "lamb"])
def test_a_mesh_of_two_dimensions(four, placement: str, option: str) -> None:
    """Replicas are counted once, parts along both dimensions all."""
    shapes = 5 if placement == "both" else len(dtensors.SHAPES)
    assert_equals_one_process(four, placement, option, "foreach", torch.float64, shapes)


@every_implementation
@every_kind
def test_a_sharded_model_trains_as_a_whole_one(two, kind: str, implementation: str) -> None:
    expected = sharded.trained(None, kind, "reference")
    for found in gloo.of_case(two, "trained", kind, implementation):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@every_implementation
@every_kind
def test_a_step_is_one_all_reduce(two, kind: str, implementation: str) -> None:
    for counts in gloo.of_case(two, "communication", kind, implementation):
        assert list(counts.values()) == [1] and "allreduce" in next(iter(counts))


@every_kind
def test_a_whole_state_goes_through_a_checkpoint(two, kind: str) -> None:
    expected = sharded.trained(None, kind, "reference")
    state = sharded.full_state(None, kind)["optimizer"]["state"]
    for found in gloo.of_case(two, "round trip", kind):
        torch.testing.assert_close(found["sharded"], expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found["from one"], expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            found["full"]["optimizer"]["state"], state, rtol=1e-9, atol=1e-12
        )


@every_kind
def test_a_state_from_two_ranks_goes_on_in_one_process(two, kind: str) -> None:
    state = gloo.of_case(two, "round trip", kind)[0]["full"]
    expected = sharded.trained(None, kind, "reference")
    found = sharded.resume(state, None, kind)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@every_kind
def test_the_ranks_own_state_goes_through_a_file(two, kind: str) -> None:
    expected = gloo.of_case(two, "trained", kind, "foreach")
    torch.testing.assert_close(gloo.of_case(two, "own state", kind), expected, rtol=0, atol=0)


@every_kind
def test_what_cannot_be_served_is_refused(two, kind: str) -> None:
    for messages in gloo.of_case(two, "refusals", kind):
        assert "full_state_dict=True" in messages["whole"]
        assert "is a DTensor, the parameter is an ordinary tensor" in messages["sharded"]
        assert "Redistribute it" in messages["partial"]


def test_bias_and_norm_stay_in_the_second_group(two) -> None:
    for first, second in gloo.of_case(two, "groups"):
        assert first == [(7, 5), (3, 7), (1, 3)]
        assert second == [(7,), (7,), (7,), (3,), (1,)]


def test_a_backward_through_changed_weights_is_refused(two) -> None:
    for found in gloo.of_case(two, "stale backward"):
        assert "modified by an inplace operation" in found["message"]
