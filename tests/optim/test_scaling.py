"""Learning rate by batch size."""

import pytest

from conadv.optim import linear_lr, sqrt_lr


def test_rules() -> None:
    assert linear_lr(0.1, 256, 8192) == pytest.approx(3.2)
    assert sqrt_lr(0.1, 256, 1024) == pytest.approx(0.2)
    assert linear_lr(0.1, 256, 256) == sqrt_lr(0.1, 256, 256) == 0.1
    assert linear_lr(0.4, 256, 64) == pytest.approx(0.1)


@pytest.mark.parametrize("rule", [linear_lr, sqrt_lr])
@pytest.mark.parametrize(
    ("values", "message"),
    [((-1.0, 1, 1), "base_lr=-1"), ((1.0, 0, 1), "base_batch=0"), ((1.0, 1, 0), "batch=0")],
)
def test_values_out_of_range(rule, values, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        rule(*values)
