"""Who may call: keys from the environment and a file, what a header must say, which names the server answers to."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altlas_core.api.keys import HostNames, Keys, check_exposure, is_loopback, load_keys
from altlas_core.errors import ConfigError

ONE, TWO, THREE = "first-key-0123456789", "second-key-987654321", "third!key~with#signs"


def bearer(key: str) -> bytes:
    return b"Bearer " + key.encode()


def test_keys_come_from_the_environment_separated_by_commas_or_blanks_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who: the laptop\n\n  {THREE}  \n  # another\n")
    file.chmod(0o600)
    keys = load_keys({"ALTLAS_API_KEY": f" {ONE}, {TWO}\n"}, str(file))
    assert len(keys) == 3
    assert all(keys.match(bearer(key)) for key in (ONE, TWO, THREE))
    assert keys.warning is None


def test_without_keys_there_are_none_and_no_header_matches() -> None:
    for environ in ({}, {"ALTLAS_API_KEY": ""}, {"ALTLAS_API_KEY": " ,\n"}):
        keys = load_keys(environ, None)
        assert not keys
        assert not keys.match(bearer(ONE))


def test_the_scheme_is_bearer_in_any_case_and_nothing_else() -> None:
    keys = Keys([ONE, TWO])
    for header in (b"Bearer " + ONE.encode(), b"bearer " + TWO.encode(), b"BEARER   " + TWO.encode() + b" "):
        assert keys.match(header)
    wrong = [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        ONE.encode(),
        b"Basic " + ONE.encode(),
        bearer(ONE)[:-1],
        bearer(ONE + "x"),
    ]
    wrong += [bearer(ONE.upper()), bearer(f"{ONE} {TWO}"), bearer(f"{ONE}, Bearer {TWO}"), b"Bearer\t" + ONE.encode()]
    assert not any(keys.match(header) for header in wrong)


@given(st.binary(max_size=64))
def test_no_other_bytes_match(header: bytes) -> None:
    assert not Keys([ONE]).match(header)
    assert not Keys([ONE]).match(b"Bearer " + header)


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counting(left: bytes, right: bytes) -> bool:
        nonlocal compared
        compared += 1
        return left == right

    monkeypatch.setattr("altlas_core.api.keys.hmac.compare_digest", counting)
    keys = Keys([ONE, TWO, THREE])
    for key in (ONE, TWO, THREE, "none of the three keys"):
        compared = 0
        keys.match(bearer(key))
        assert compared == 3


@pytest.mark.parametrize("bad", ["fifteen-chars-x", "x" * 513, "schlüssel-0123456789", "nul\x00-0123456789abc"])
def test_what_is_no_key_is_an_error_that_says_where_and_what_is_allowed_but_not_the_key(
    bad: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"key 2 of the environment variable ALTLAS_API_KEY.*16 to 512") as caught:
        load_keys({"ALTLAS_API_KEY": f"{ONE},{bad}"}, None)
    assert bad not in str(caught.value)
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{bad}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"keys, line 2.*16 to 512") as caught:
        load_keys({}, str(file))
    assert bad not in str(caught.value)


def test_a_key_of_a_file_may_hold_no_blank(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ONE} {TWO}\n")
    with pytest.raises(ConfigError, match=r"line 1.*a blank"):
        load_keys({}, str(file))


def test_keys_of_the_shortest_and_the_longest_length_are_taken() -> None:
    assert len(load_keys({"ALTLAS_API_KEY": f"{'x' * 16} {'y' * 512}"}, None)) == 2


def test_a_key_file_that_is_missing_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_keys({}, str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="directory"):
        load_keys({}, str(tmp_path))
    (tmp_path / "empty").write_bytes(b"# nothing\n\xff\xfe"[:10])
    with pytest.raises(ConfigError, match="there is no key in it"):
        load_keys({}, str(tmp_path / "empty"))


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_file_that_others_can_read_is_warned_of(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    file.write_text(ONE)
    file.chmod(mode)
    warning = load_keys({}, str(file)).warning
    assert warning is not None
    assert f"chmod 600 {file}" in warning
    assert ONE not in warning


def test_no_text_of_keys_shows_one() -> None:
    keys = Keys([ONE, TWO])
    assert repr(keys) == str(keys) == f"{keys}" == "<Keys: 2>"


def test_loopback_is_127_slash_8_the_ipv6_one_and_localhost() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "", "10.0.0.1", "128.0.0.1", "example.org", "127.0.0.1.nip.io"]))


def test_another_host_than_loopback_needs_keys() -> None:
    check_exposure("127.0.0.1", Keys([]))
    check_exposure("0.0.0.0", Keys([ONE]))
    for host in ("0.0.0.0", "::", "", "gpu-box"):
        with pytest.raises(ConfigError, match=r"ALTLAS_API_KEY.*127\.0\.0\.1"):
            check_exposure(host, Keys([]))


def test_the_server_answers_to_addresses_localhost_its_own_names_and_those_of_the_settings() -> None:
    names = HostNames("gpu-box.lan", ["models.example.org"])
    allowed = "127.0.0.1 127.0.0.1:8000 10.1.2.3:80 [::1] [::1]:8000 [fe80::2] localhost LOCALHOST:1 localhost.:8000"
    allowed += f" gpu-box.lan gpu-box.lan:8000 Models.Example.org:443 {socket.gethostname()}:8000"
    assert [host for host in allowed.split() if not names.allows(host.encode())] == []
    refused = (
        "evil.example localhost.evil.example evil.example:8000 ::1 [::1 [127.0.0.1] 127.0.0.1.nip.io 127.1 a@localhost"
    )
    refused += " localhost:x localhost:123456 localhost/ example.org localhost,evil.example 0x7f000001 2130706433"
    assert [host for host in [*refused.split(), "", " localhost", "a, localhost"] if names.allows(host.encode())] == []


@given(st.binary(max_size=40))
def test_any_bytes_of_a_host_header_are_judged_without_an_error(header: bytes) -> None:
    assert HostNames("127.0.0.1").allows(header) in (True, False)
