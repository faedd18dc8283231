"""YAML text -> plain data, strictly: a key given twice is an error, and every error knows its line."""

from __future__ import annotations

from functools import cache
from typing import Any


class YamlTextError(ValueError):
    """The text is no usable YAML. `line` counts from 1; None where the parser does not say."""

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.line = line


def parse_yaml(text: str) -> Any:
    """The data in one YAML document. Raises YamlTextError.

    Unlike YAML 1.1, `1e3` is a number, as everybody expects of a duration.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # noqa: S506 - the loader is a child of the safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise YamlTextError(problem or "cannot be parsed", mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        raise YamlTextError(f"a character that YAML does not allow: {error.reason}", _line_at(text, position)) from None
    except yaml.YAMLError as error:
        raise YamlTextError(str(error), None) from None
    except RecursionError:
        raise YamlTextError("nested too deeply", None) from None
    except (ValueError, OverflowError) as error:  # a date like 2001-99-99, a number of 5,000 digits
        raise YamlTextError(f"a value cannot be read: {error}", None) from None


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


@cache
def _loader() -> Any:
    """The safe loader, taught to refuse a key given twice. Built late: yaml costs import time.

    Not the C one: a few thousand opening brackets crash the interpreter in it. Settings files are small.
    """
    import re

    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: dict[str, int] = {}
            for name, _ in node.value:
                if not isinstance(name, yaml.ScalarNode) or name.tag == "tag:yaml.org,2002:merge":
                    continue
                line = name.start_mark.line
                if name.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{name.value}' stands here twice (first on line {seen[name.value]})",
                        name.start_mark,
                    )  # fmt: skip
                seen[name.value] = line + 1
            return super().construct_mapping(node, deep)

    StrictLoader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
    return StrictLoader
