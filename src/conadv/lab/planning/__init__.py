"""What a step costs on N devices: a model of compute, network, loader and memory.

Knows nothing of recipes or of the trainer: it is given a model to count, sizes and a method, and
returns figures. ``conadv plan`` translates a recipe into these.
"""

from conadv.errors import PlanError
from conadv.lab.planning.hardware import (
    DeviceType,
    Link,
    all_reduce_seconds,
    device_type,
    device_types,
    flat_link,
    link_named,
    links,
    parse_rate,
    ring_seconds,
)
from conadv.lab.planning.job import SCHEDULES, Dealt, Job, Loader, Method, deal
from conadv.lab.planning.memory import memory_of
from conadv.lab.planning.network import Network, count
from conadv.lab.planning.plan import (
    Comparison,
    StepPlan,
    compare,
    device_counts,
    plan_step,
    published,
)
from conadv.lab.planning.timing import Rates, Timing, step_timing
from conadv.lab.planning.weights import WeightMethod
from conadv.trainer.probe.memory import Memory

__all__ = [
    "SCHEDULES",
    "Comparison",
    "Dealt",
    "DeviceType",
    "Job",
    "Link",
    "Loader",
    "Memory",
    "Method",
    "Network",
    "PlanError",
    "Rates",
    "StepPlan",
    "Timing",
    "WeightMethod",
    "all_reduce_seconds",
    "compare",
    "count",
    "deal",
    "device_counts",
    "device_type",
    "device_types",
    "flat_link",
    "link_named",
    "links",
    "memory_of",
    "parse_rate",
    "plan_step",
    "published",
    "ring_seconds",
    "step_timing",
]
