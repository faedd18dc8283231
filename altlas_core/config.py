"""config.yaml, ALTLAS_ environment variables and --set flags -> Settings, or one ConfigError naming every mistake.

Precedence: overrides > environment > file > default.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from altlas_core.config_schema import BUILTIN_STRATEGIES, Settings, rules_of, sections_of
from altlas_core.errors import ConfigError, nearest
from altlas_core.rules import RefusedError, shown
from altlas_core.yaml_text import YamlTextError, parse_yaml

__all__ = ["Settings", "all_keys", "from_dict", "load_config", "to_dict", "with_overrides"]

ENV_PREFIX: Final = "ALTLAS_"
NOT_SETTINGS: Final = frozenset({"ALTLAS_API_KEY"})  # a secret of the HTTP API, never written to a report
MAX_FILE_BYTES: Final = 2**20
MIN_LIKENESS: Final = 0.6  # of two names, 1 = equal; less alike than this is no hint


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    extra_strategies: Iterable[str] = (),
    overrides_from: str = "override",
) -> Settings:
    """Read and check the settings.

    path: a YAML file; None reads no file. overrides: full dotted key -> value; a text is parsed as YAML, as from
    `--set key=value`. environ: None = the process's. extra_strategies: names allowed beside the built-in ones.
    overrides_from: what a message calls an override.

    Raises ConfigError naming file (or flag, or environment variable), key, value and what is allowed.
    """
    found = _Found(tuple(extra_strategies))
    if path is not None:
        found.add_tree(_read_file(Path(path)), f"{path}: ")
    found.add_environment(os.environ if environ is None else environ)
    found.add_overrides(overrides or {}, f"{overrides_from} ")
    return found.settings()


def with_overrides(settings: Settings, overrides: Mapping[str, Any], extra_strategies: Iterable[str] = ()) -> Settings:
    """A copy with the given full dotted keys changed and checked. Raises ConfigError."""
    selection = settings.gpu.selection
    own = {*selection.strategies, selection.default_strategy, *extra_strategies}.difference(BUILTIN_STRATEGIES)
    found = _Found(tuple(sorted(own)))
    found.add_tree(to_dict(settings), "settings: ")
    found.add_overrides(overrides)
    return found.settings()


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings in the shape of config.yaml: nested dicts and lists that JSON and YAML can hold."""
    tree = _plain(settings)
    assert isinstance(tree, dict)
    return tree


def from_dict(tree: Mapping[str, Any], source: str = "settings", extra_strategies: Iterable[str] = ()) -> Settings:
    """The inverse of to_dict; what is left out takes its default. Raises ConfigError."""
    found = _Found(tuple(extra_strategies))
    found.add_tree(tree, f"{source}: ")
    return found.settings()


def all_keys() -> tuple[str, ...]:
    """Every full dotted key there is, in the order of the file."""
    return tuple(_keys(Settings, ""))


def _keys(kind: type[Any], prefix: str) -> Iterator[str]:
    sections = sections_of(kind)
    for item in dataclasses.fields(kind):
        if item.name in sections:
            yield from _keys(sections[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def _nearest_key(name: str) -> str:
    """A hint at the key or section that was meant, wherever it stands: `timeout` means gpu.workload.timeout."""
    from difflib import SequenceMatcher

    def likeness(known: str) -> float:
        whole = SequenceMatcher(None, name.casefold(), known).ratio()
        return whole + SequenceMatcher(None, name.casefold().rpartition(".")[2], known.rpartition(".")[2]).ratio()

    sections = {key[: place.start()] for key in all_keys() for place in re.finditer(r"\.", key)}
    best = max((*sorted(sections), *all_keys()), key=likeness)
    return f" Did you mean '{best}'?" if likeness(best) >= 2 * MIN_LIKENESS else ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read_file(path: Path) -> Mapping[Any, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping. Raises ConfigError."""
    try:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes, so it is no settings file")
        text = path.read_text(encoding="utf-8-sig")
        tree = parse_yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give a YAML file, or leave it out to use the defaults.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory. Give a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        line = error.line if isinstance(error, YamlTextError) else None
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{where}: not usable YAML: {error}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: holds {shown(tree)}; allowed: a mapping with {', '.join(_children(Settings))}")
    return tree


def _children(kind: type[Any]) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(kind))


@dataclass(slots=True)
class _Found:
    """Values gathered so far by full dotted key, where each came from, and every mistake met on the way.

    A source is how a message about it begins: "config.yaml: ", "--set ".
    """

    extra_strategies: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add_tree(self, tree: Mapping[Any, Any], source: str) -> None:
        """All keys of a nested mapping."""
        self._add_section(Settings, "", tree, source)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """ALTLAS_A__B=value for a.b. Any other ALTLAS_ name but NOT_SETTINGS is a mistake: an underscore too few."""
        for name in sorted(environ):
            if not name.startswith(ENV_PREFIX) or name in NOT_SETTINGS:
                continue
            parts = name.removeprefix(ENV_PREFIX).lower().split("__")
            if len(parts) == 1 and parts[0] not in _children(Settings):
                known = [ENV_PREFIX + key.upper().replace(".", "__") for key in all_keys()]
                hint = nearest(name, known)
                self.problems.append(
                    f"environment variable {name}: is no setting; allowed: {ENV_PREFIX} and a key of config.yaml, "
                    f"with __ between its levels.{hint}"
                )
                continue
            self._add_text(".".join(parts), environ[name], f"environment variable {name}: ", empty_is_unset=True)

    def add_overrides(self, overrides: Mapping[str, Any], source: str = "override ") -> None:
        """Full dotted keys; texts are parsed as YAML."""
        for name, value in overrides.items():
            if isinstance(value, str):
                self._add_text(name, value, source)
            else:
                self._add_at(Settings, name.split("."), "", value, source)

    def settings(self) -> Settings:
        """The checked settings. Raises ConfigError with all mistakes, one a line."""
        self._check_strategies()
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        built: Settings = _build(Settings, "", self.values)
        return built

    def _add_text(self, name: str, text: str, source: str, empty_is_unset: bool = False) -> None:
        try:
            value = parse_yaml(text)
        except YamlTextError as error:
            self.problems.append(f"{source}{name}: {shown(text)} is not usable YAML: {error}")
            return
        self._add_at(Settings, name.split("."), "", value, source, unset=empty_is_unset and not text.strip())

    def _add_at(
        self, kind: type[Any], parts: list[str], prefix: str, value: Any, source: str, unset: bool = False
    ) -> None:
        name, rest = parts[0], parts[1:]
        sections = sections_of(kind)
        if not rest and unset and name in _children(kind):
            return
        if not rest:
            self._add_section(kind, prefix, {name: value}, source)
        elif name in sections:
            self._add_at(sections[name], rest, f"{prefix}{name}.", value, source, unset)
        elif name in rules_of(kind):
            whole = f"{prefix}{name}.{'.'.join(rest)}"
            self.problems.append(f"{source}{whole}: {prefix}{name} has no keys inside; set it as a whole")
        else:
            self._unknown(kind, prefix, ".".join(parts), source)

    def _add_section(self, kind: type[Any], prefix: str, tree: Mapping[Any, Any], source: str) -> None:
        sections, known = sections_of(kind), rules_of(kind)
        for name, value in tree.items():
            if name in sections:
                self._add_inner(sections[name], f"{prefix}{name}", value, source)
            elif name in known:
                self._add_value(f"{prefix}{name}", known[name], value, source)
            else:
                self._unknown(kind, prefix, str(name), source)

    def _add_inner(self, kind: type[Any], name: str, value: Any, source: str) -> None:
        if value is None:  # `gpu:` with nothing under it
            return
        if isinstance(value, Mapping):
            self._add_section(kind, f"{name}.", value, source)
            return
        allowed = ", ".join(_children(kind))
        self.problems.append(f"{source}{name}: {shown(value)} is not a mapping; allowed: a mapping with {allowed}")

    def _add_value(self, name: str, rule: Any, value: Any, source: str) -> None:
        try:
            self.values[name] = rule(value)
            self.origins[name] = source
        except RefusedError as problem:
            self.problems.append(f"{source}{name}{problem.at}: {problem}")

    def _unknown(self, kind: type[Any], prefix: str, name: str, source: str) -> None:
        allowed = ", ".join(_children(kind))
        inside = f"in {prefix[:-1]}" if prefix else "at the top"
        hint = _nearest_key(prefix + name)
        self.problems.append(f"{source}unknown key '{prefix}{name}'; allowed {inside}: {allowed}.{hint}")

    def _check_strategies(self) -> None:
        """Each listed strategy exists, and the default is one of those listed."""
        listed_key, default_key = "gpu.selection.strategies", "gpu.selection.default_strategy"
        known = tuple(dict.fromkeys((*BUILTIN_STRATEGIES, *self.extra_strategies)))
        listed = self.values.get(listed_key, BUILTIN_STRATEGIES)
        for name in listed:
            if name not in known:
                self.problems.append(
                    f"{self.origins[listed_key]}{listed_key}: unknown strategy {shown(name)}; "
                    f"allowed: {', '.join(known)}.{nearest(name, known)}"
                )
        default = self.values.get(default_key, BUILTIN_STRATEGIES[0])
        if default not in listed and default not in self.extra_strategies:
            source = self.origins.get(default_key) or self.origins.get(listed_key, "default ")
            self.problems.append(
                f"{source}{default_key}: {shown(default)} is not among {listed_key}; "
                f"allowed: {', '.join(listed)}.{nearest(default, listed)}"
            )


def _build(kind: type[Any], prefix: str, values: Mapping[str, Any]) -> Any:
    inner = {name: _build(child, f"{prefix}{name}.", values) for name, child in sections_of(kind).items()}
    own = {name: values[prefix + name] for name in rules_of(kind) if prefix + name in values}
    return kind(**inner, **own)
