"""plotly.js as the reports carry it: the file of the installed plotly package, marked to be compiled in one go."""

from __future__ import annotations

import re
from importlib import resources
from typing import Final

# The whole library is one function. V8 only skims a function that has no parentheses round it, and reads its 4.8 MB
# again when it is called, a moment later. With them it is compiled at once, which takes a third off a page's start.
_HEAD: Final = re.compile(r"(\(typeof self !== \"undefined\" \? self : this, )(\(\) => \{)")
_TAIL: Final = re.compile(r"(\})(\)\);?\s*)$")
_HEAD_WITHIN: Final = 2_000  # characters from the start
_TAIL_WITHIN: Final = 200  # characters from the end


def drawing_library() -> str:
    """The source of plotly.js. Where the package wraps it in another way than expected, as it is: only slower."""
    source = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return compiled_at_once(source)


def compiled_at_once(source: str) -> str:
    """The same program with parentheses round the one function that holds it, which browsers take as: needed now."""
    head, tail = _HEAD.search(source[:_HEAD_WITHIN]), _TAIL.search(source[-_TAIL_WITHIN:])
    if not head or not tail:
        return source
    end = len(source) - len(tail[2])
    return f"{source[: head.start(2)]}({source[head.start(2) : end]}){source[end:]}"
