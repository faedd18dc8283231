"""Device specs as users type them: `8x A100-SXM4-80GB`, `A100`, `cpu:2`, `cuda`, `cuda:0`, `cuda:0/4`.

Only the text is judged here; whether such a device is there, and large enough to split, is for the backends to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from altlas_core.errors import DeviceError
from altlas_core.gpu_model.catalog import find_model
from altlas_core.rules import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from altlas_core.model import DeviceSpec

MAX_DEVICES: Final = 65536
MAX_SPLIT: Final = 1024
EXAMPLES: Final = "'8x A100-SXM4-80GB', 'A100', 'cpu:2', 'cuda', 'cuda:0', 'cuda:0/4'"

_SPLIT = re.compile(r"(?P<base>[^/]*)/(?P<split>[^/]*)")
_REAL = re.compile(r"(?P<kind>cpu|cuda)(?:\s*:\s*(?P<number>.*))?", re.IGNORECASE | re.DOTALL)
_COUNTED = re.compile(r"(?P<count>[-+]?[\d.]+)\s*[x×*]\s*(?P<name>.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """One entry of a machine.

    kind "simulated": `count` devices of the catalog's `model`. "cpu": `count` CPU devices. "cuda": the GPU of `index`,
    or all usable ones where it is None. `split`: parts that each device is to be cut into (1 = whole).
    """

    kind: Literal["simulated", "cpu", "cuda"]
    model: str | None = None
    count: int | None = None
    index: int | None = None
    split: int = 1

    def __str__(self) -> str:
        """The spec that gives this request."""
        if self.kind == "simulated":
            return f"{self.count}x {self.model}"
        number = self.count if self.kind == "cpu" else self.index
        text = self.kind if number is None else f"{self.kind}:{number}"
        return text if self.split == 1 else f"{text}/{self.split}"


def parse_devices(entries: str | Iterable[str]) -> list[DeviceRequest]:
    """The machine that the entries describe, in order. Case and blanks do not matter. Raises DeviceError."""
    texts = [entries] if isinstance(entries, str) else list(entries)
    requests = [_parse(text) for text in texts]
    total = sum((request.count or 1) * request.split for request in requests)
    if total > MAX_DEVICES:
        raise DeviceError(f"devices {shown(texts)}: {total} devices are too many; allowed: at most {MAX_DEVICES}")
    _refuse_twice(requests)
    return requests


def _parse(text: str) -> DeviceRequest:
    if not isinstance(text, str) or not text.strip():
        raise DeviceError(f"device {shown(text)}: is no device spec; allowed: texts like {EXAMPLES}")
    base, split = text.strip(), 1
    cut = _SPLIT.fullmatch(base)
    if cut:
        base, split = cut["base"].strip(), _number(text, "split", cut["split"], 1, MAX_SPLIT)
        if not base:
            raise DeviceError(f"device {shown(text)}: the name is missing; allowed: texts like {EXAMPLES}")
    real = _REAL.fullmatch(base)
    if real:
        return _real(text, real["kind"].lower(), real["number"], split)
    if "/" in text:
        raise DeviceError(f"device {shown(text)}: only cpu and cuda can be split; allowed: texts like {EXAMPLES}")
    return _simulated(text, base)


def _real(text: str, kind: str, number: str | None, split: int) -> DeviceRequest:
    if kind == "cpu":
        count = 1 if number is None else _number(text, "count", number, 1, MAX_DEVICES)
        return DeviceRequest("cpu", count=count, split=split)
    index = None if number is None else _number(text, "index", number, 0, MAX_DEVICES)
    return DeviceRequest("cuda", index=index, split=split)


def _simulated(text: str, base: str) -> DeviceRequest:
    counted = _COUNTED.fullmatch(base)
    name = counted["name"].strip() if counted else base
    count = _number(text, "count", counted["count"], 1, MAX_DEVICES) if counted else 1
    if _REAL.fullmatch(name):
        raise DeviceError(f"device {shown(text)}: real devices take no count in front; allowed: 'cpu:{count}', 'cuda'")
    if not name:
        raise DeviceError(f"device {shown(text)}: the name is missing; allowed: texts like {EXAMPLES}")
    try:
        return DeviceRequest("simulated", model=find_model(name).name, count=count)
    except DeviceError as problem:
        raise DeviceError(f"device {shown(text)}: {problem} Real devices: 'cpu:2', 'cuda', 'cuda:0'.") from None


def _number(text: str, what: str, digits: str, low: int, high: int) -> int:
    digits = digits.strip()
    if re.fullmatch(r"[-+]?[0-9]{1,9}", digits) and low <= int(digits) <= high:
        return int(digits)
    raise DeviceError(f"device {shown(text)}: {what} '{digits[:40]}'; allowed: a whole number from {low} to {high}")


def part_name(name: str, part: int, parts: int) -> str:
    """What part 0, 1, ... of a device that was split is called; see whole_name."""
    return f"{name} (part {part + 1} of {parts})"


def whole_name(spec: DeviceSpec) -> str:
    """The name of the device itself, of which `spec` may be a part."""
    return spec.name.removesuffix(part_name("", spec.part, spec.parts))


def group_name(spec: DeviceSpec) -> str:
    """What devices alike are called: a simulated one's model, a real one's name, "NAME (1/4)" for parts of it."""
    name = spec.model or whole_name(spec)
    return name if spec.parts == 1 else f"{name} (1/{spec.parts})"


def _refuse_twice(requests: list[DeviceRequest]) -> None:
    """One real GPU cannot be two devices of a machine (a split makes several of it)."""
    indices = [request.index for request in requests if request.kind == "cuda"]
    for index in indices:
        if indices.count(index) > 1 or (index is not None and None in indices):
            name = "cuda" if index is None else f"cuda:{index}"
            raise DeviceError(f"device '{name}' is named twice; allowed: each real GPU once ('{name}/2' splits it)")
