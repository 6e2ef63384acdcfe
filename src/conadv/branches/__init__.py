"""Branch normalisation: convert a model, route images, give the plain model back."""

from conadv.branches.branches import branch_names, plain, route, split_norms

__all__ = [
    "branch_names",
    "plain",
    "route",
    "split_norms",
]
