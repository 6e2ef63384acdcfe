"""Read run folders, and make one self-contained page or a table of them.

Nothing here runs a model or needs the code that made a run: the run folder is the only contract.
Needs the ``report`` extra (jinja2, plotly, pyyaml).
"""

from conadv.report.page import render_report, write_report
from conadv.report.runs import Run, find_runs, read_run
from conadv.report.tables import markdown_table

__all__ = ["Run", "find_runs", "markdown_table", "read_run", "render_report", "write_report"]
