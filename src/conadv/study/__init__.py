"""Many runs with one question: methods x batch sizes x seeds, each tuned with the same budget."""

from conadv.study.files import StudyFolder, load_study, study_names
from conadv.study.plan import Cell, Plan, Task, make_plan
from conadv.study.schema import Study
from conadv.study.supervisor import run_study

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
