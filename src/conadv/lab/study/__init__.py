"""Many runs with one question: methods x batch sizes x seeds, each tuned with the same budget."""

from conadv.lab.study.files import StudyFolder, load_study, study_names
from conadv.lab.study.plan import Cell, Plan, Task, make_plan
from conadv.lab.study.schema import Study
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
