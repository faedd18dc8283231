"""What notebooks call: their parameters, a scenario's run, and showing what came of it.

`python -m altlas_core.notebook --refresh` executes notebooks/ on the default simulated machine and stores the outputs
that are committed, and that nbval compares.
"""

from altlas_core.notebook.display import show, show_checks, show_table
from altlas_core.notebook.session import NotebookError, Session, start
from altlas_core.notebook.tour import settings, show_machine

__all__ = ["NotebookError", "Session", "settings", "show", "show_checks", "show_machine", "show_table", "start"]
