"""A user's strategy in a file of theirs: "my.py:choose" -> the function, registered under its name."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from altlas_core.errors import StrategyError, nearest
from altlas_core.strategies import STRATEGIES, register_strategy

ALLOWED: Final = 'a strategy\'s name, or a function in a file as "my.py:choose"'


def resolve(text: str) -> str:
    """The name of the strategy that `text` means; a name stays as it is, for the settings to check.

    "folder/my.py:choose" imports that file (anew each time) and registers the function `choose(task, gpus)` as the
    strategy "choose"; what lies beside the file can be imported from then on. Raises StrategyError with one line.
    """
    if not is_function(text):
        return text
    path_text, _, name = text.rpartition(":")
    path = Path(path_text)
    if not path_text.endswith(".py") or not name.isidentifier():
        raise StrategyError(f"strategy {text!r}: allowed: {ALLOWED}")
    if name in STRATEGIES:
        raise StrategyError(f"strategy {text!r}: '{name}' is built in; give the function a name of its own")
    module = _imported(path)
    if not hasattr(module, name):
        own = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        there = f" There are: {', '.join(own)}." if own else " It has no function."
        raise StrategyError(f"{path}: has no function '{name}'.{nearest(name, own)}{there}")
    try:
        register_strategy(name, getattr(module, name))
    except StrategyError as problem:
        raise StrategyError(f"{path}: {problem}") from None
    return name


def is_function(text: str) -> bool:
    """Whether a function in a file is meant (perhaps badly written), and not a strategy's name."""
    return ":" in text or "/" in text or text.endswith(".py")


def absolute(text: str) -> str:
    """The same with the file's whole path, to be used from another working directory."""
    path, colon, name = text.rpartition(":")
    return f"{Path(path).absolute()}{colon}{name}" if is_function(text) else text


def _imported(path: Path) -> ModuleType:
    """The module in a file, under a name that no import statement finds. Raises StrategyError."""
    if not path.is_file():
        raise StrategyError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; allowed: {ALLOWED}")
    path = path.absolute()
    spec = spec_from_file_location(f"_altlas_strategy.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # it stays: the function may import what lies beside it when it is called
    try:
        with redirect_stdout(sys.stderr):  # what it prints is not part of our output
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # whatever the file does while it is imported
        del sys.modules[spec.name]
        reason = " ".join(str(problem.msg if isinstance(problem, SyntaxError) else problem).split())
        where = _line(problem, path)
        raise StrategyError(f"{path}{where}: cannot be imported: {type(problem).__name__}: {reason}") from None
    return module


def _line(problem: BaseException, path: Path) -> str:
    """ ", line 7" of the file itself where the trouble came up; nothing where that is elsewhere."""
    if isinstance(problem, SyntaxError):
        return f", line {problem.lineno}" if problem.filename == str(path) else ""
    lines = []
    trace: Any = problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f", line {lines[-1]}" if lines else ""
