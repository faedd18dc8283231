"""Who may call: the API keys, and the names under which this server may be spoken to."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
import stat
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from altlas_core.errors import ConfigError

KEY_VARIABLE: Final = "ALTLAS_API_KEY"
ALLOWED: Final = "a key is 16 to 512 printable ASCII characters without blanks"

_KEY = re.compile(r"[!-~]{16,512}")
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?")  # [IPv6] or name or IPv4, perhaps with a port


class Keys:
    """The keys that open the API; only their SHA-256 digests are kept. False when there are none."""

    __slots__ = ("_digests", "warning")

    def __init__(self, keys: Iterable[str], warning: str | None = None) -> None:
        self._digests = tuple(dict.fromkeys(_digest(key.encode("ascii")) for key in keys))
        self.warning = warning  # something to tell the user at start, e.g. who else can read the key file

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"<Keys: {len(self._digests)}>"

    def match(self, header: bytes | None) -> bool:
        """Whether an Authorization header says "Bearer KEY" with a key of ours.

        Every key is compared, in constant time: how long it takes does not tell how near a guess was.
        """
        if header is None or header[:7].lower() != b"bearer ":
            return False
        given = _digest(header[7:].strip(b" "))
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, given)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def load_keys(environ: Mapping[str, str], key_file: str | None) -> Keys:
    """The keys of the environment and of a file (one a line, # starts a comment line); none is fine.

    Raises ConfigError for a key that cannot be one and for a file that cannot be read. No message shows a key.
    """
    keys = [
        _checked(word, f"key {number} of the environment variable {KEY_VARIABLE}")
        for number, word in enumerate(re.split(r"[,\s]+", environ.get(KEY_VARIABLE, "").strip(", \t\r\n")), 1)
        if word
    ]
    if key_file is None:
        return Keys(keys)
    path = Path(key_file)
    try:
        mode = path.stat().st_mode
        lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise ConfigError(f"key file {key_file}: {error.strerror}; give a file with one API key a line") from None
    from_file = [
        _checked(line.strip(), f"key file {key_file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not from_file:
        raise ConfigError(f"key file {key_file}: there is no key in it; one a line, {ALLOWED}")
    others = mode & (stat.S_IRGRP | stat.S_IROTH)
    warning = f"key file {key_file} can be read by other users of this machine: chmod 600 {key_file}"
    return Keys(keys + from_file, warning if others else None)


def _checked(key: str, where: str) -> str:
    if _KEY.fullmatch(key) is None:
        wrong = f"{len(key)} characters" if not 16 <= len(key) <= 512 else "a blank or a character that is not ASCII"
        raise ConfigError(f"{where}: this is no API key ({wrong}); {ALLOWED}")
    return key


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from this machine only."""
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, keys: Keys) -> None:
    """Raise ConfigError when everybody on the network could use the GPUs: another host than loopback, and no key."""
    if not keys and not is_loopback(host):
        raise ConfigError(
            f"--host {host or repr(host)}: other machines could reach this server, and no API key is set; "
            f"set the environment variable {KEY_VARIABLE} (or a key file), or listen on 127.0.0.1"
        )


class HostNames:
    """The names a request's Host header may have: any other may be a page that lured a browser here (DNS rebinding).

    Allowed are IP addresses, localhost, this machine's name, the name listened on and those of the settings, each with
    or without a port.
    """

    __slots__ = ("allows", "names")

    def __init__(self, listened_on: str, extra: Iterable[str] = ()) -> None:
        machine = socket.gethostname()
        names = ["localhost", machine, machine.partition(".")[0], listened_on, *extra]
        self.names = frozenset(name.casefold().rstrip(".") for name in names if name)
        self.allows = lru_cache(maxsize=256)(self._allows)  # a client says the same each time

    def _allows(self, header: bytes) -> bool:
        parts = _HOST.fullmatch(header.decode("latin-1"))
        if parts is None:
            return False
        bracketed, name = parts.groups()
        try:
            if bracketed is not None:
                return ipaddress.IPv6Address(bracketed) is not None
            if name.casefold().rstrip(".") in self.names:
                return True
            return ipaddress.IPv4Address(name) is not None
        except ValueError:
            return False
