"""A user's own function as a kind of work: its import path, its keyword arguments, and finding it.

`call` is "package.module:function" (or the function itself, whose path is then taken), `args` a mapping of names to
JSON values (or JSON text of one). What is checked here needs no device; finding the function imports its module.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from altlas_core.rules import RefusedError, shown

MAX_ARGUMENT_CHARACTERS: Final = 64 * 1024
ALLOWED: Final = 'the import path of a function, "package.module:function"'
_ELSEWHERE: Final = "which a worker process cannot import: put it in a .py file; allowed: " + ALLOWED


def target(value: Any) -> str:
    """The rule of the field `call`. Looks at the form only."""
    if callable(value):
        value = f"{getattr(value, '__module__', None)}:{getattr(value, '__qualname__', None)}"
    module, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if module == "__main__":
        raise RefusedError(f"{shown(value)} lives in __main__ (a notebook or a script), {_ELSEWHERE}")
    if "<locals>" in name or "<lambda>" in name:
        raise RefusedError(f"{shown(value)} is made inside a function, {_ELSEWHERE}")
    parts = [*module.split("."), *name.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise RefusedError(f"{shown(value)} is no import path; allowed: {ALLOWED}")
    return f"{module}:{name}"


def arguments(value: Any) -> str:
    """The rule of the field `args`: JSON text, its keys in order, so that equal arguments are equal text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as problem:
            raise RefusedError(
                f"{shown(value)} is not JSON ({problem}); allowed: a mapping of names to values"
            ) from None
    if not isinstance(value, Mapping):
        raise RefusedError(f"{shown(value)} is no mapping; allowed: a mapping of names to JSON values")
    for name in value:
        if not isinstance(name, str) or not name.isidentifier():
            raise RefusedError(f"{shown(name)} is no name of an argument; allowed: names such as steps, batch_size")
    text = json.dumps({name: plain(each, name) for name, each in value.items()}, sort_keys=True, separators=(",", ":"))
    if len(text) > MAX_ARGUMENT_CHARACTERS:
        raise RefusedError(
            f"{len(text)} characters of JSON; allowed: up to {MAX_ARGUMENT_CHARACTERS}. Put more in a file."
        )
    return text


def plain(value: Any, at: str) -> Any:
    """The value as JSON would give it back. Raises RefusedError naming the place where that is not possible."""
    if value is None or type(value) in (bool, int, str):
        return value
    # Of a type derived from these (an enum's, numpy's) the plain value.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(each, f"{at}[{place}]") for place, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {str.__str__(name): plain(each, f"{at}.{name}") for name, each in value.items()}
    raise RefusedError(
        f"{at}: {shown(value)} ({type(value).__name__}) is no JSON value; allowed: null, true, false, finite numbers, "
        "text, lists, mappings with text as keys"
    )


def search_paths() -> tuple[str, ...]:
    """Where this process looks for modules, as absolute paths: its working directory, then sys.path."""
    return tuple(dict.fromkeys(os.path.abspath(path) for path in ("", *sys.path)))  # noqa: PTH100  # "" is a path here


def find(path: str) -> Callable[..., Any]:
    """The function of an import path. Imports its module. Raises RefusedError with what is wrong."""
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except MemoryError:
        raise  # says nothing about the function
    except (Exception, SystemExit) as problem:  # whatever the module does while it is imported
        raise RefusedError(
            f"'{path}' cannot be imported: {type(problem).__name__}: {problem}; allowed: {ALLOWED} that is found from "
            "the working directory or sys.path"
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise RefusedError(f"'{path}': {module_name} has no '{name}'; allowed: {ALLOWED}")
        found = getattr(found, part)
    if not callable(found):
        raise RefusedError(f"'{path}' is a {type(found).__name__}, no function; allowed: {ALLOWED}")
    function: Callable[..., Any] = found
    return function


def check(path: str, arguments_text: str) -> None:
    """That the function can be imported here and takes (task, **arguments). Raises RefusedError."""
    import inspect  # which takes long to load

    added = [each for each in search_paths() if each not in sys.path]
    sys.path += added
    try:
        function = find(path)
    finally:
        for each in added:
            sys.path.remove(each)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some built-in functions do not tell what they take
    try:
        signature.bind(None, **json.loads(arguments_text))
    except TypeError as problem:
        raise RefusedError(
            f"args: {arguments_text} does not fit '{path}' ({problem}); allowed: {path}{signature}, its first argument "
            "being the task"
        ) from None
