"""Many runs with one question: methods x batch sizes x seeds, each tuned with the same budget."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from conadv.lab.study.files import StudyFolder, load_study, study_names
from conadv.lab.study.schema import Study

if TYPE_CHECKING:
    from conadv.lab.study.plan import Cell, Plan, Task, make_plan
    from conadv.lab.study.supervisor import run_study

__all__ = [
    "Cell",
    "Plan",
    "Study",
    "StudyFolder",
    "Task",
    "load_study",
    "make_plan",
    "run_study",
    "study_names",
]


def __getattr__(name: str) -> Any:
    """What plans and runs a study, imported on demand: to read one takes no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "supervisor" if name == "run_study" else "plan"
    module = "supervisor" if name == "run_study" else "plan"
    return getattr(import_module(f"{__name__}.{module}"), name)
