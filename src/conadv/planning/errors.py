"""What the planner refuses."""

from conadv.errors import ConadvError


class PlanError(ConadvError, ValueError):
    """Hardware that is not known, or a number of devices that cannot carry the batch."""
