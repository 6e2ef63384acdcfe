"""Read run folders, and make one self-contained page or a table of them.

Nothing here runs a model or needs the code that made a run: the run folder is the only contract.
Needs the ``report`` extra (jinja2, pyyaml, scipy).
"""

from conadv.lab.report.page import render_report, write_report
from conadv.lab.report.runs import Run, read_run
from conadv.lab.report.study.runs import Material, StudyFacts, find_runs, gather
from conadv.lab.report.tables import markdown_table

__all__ = [
    "Material",
    "Run",
    "StudyFacts",
    "find_runs",
    "gather",
    "markdown_table",
    "read_run",
    "render_report",
    "write_report",
]
