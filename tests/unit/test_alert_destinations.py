"""A webhook reaches the public internet and what is allowed besides; what it is sent is signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import threading
from pathlib import Path

import pytest

from qwenstack.core.refusals import Refusal
from qwenstack.studio.alerts.destination import (
    AddressRefused,
    check_address,
    check_url,
    parse_networks,
)
from qwenstack.studio.alerts.signing import KeyUnusable, make_key, secret_of, signature
from qwenstack.studio.alerts.webhooks import ATTEMPTS_MAX, backoff_s
from qwenstack.studio.settings import AlertSettings, Settings, check

INSIDE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:db8::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
]
PUBLIC = ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_of_an_inner_network_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused, match="not a public address"):
        check_address(ipaddress.ip_address(address), "https", ())


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_reached_over_https_alone(address: str) -> None:
    check_address(ipaddress.ip_address(address), "https", ())
    with pytest.raises(AddressRefused, match="https only"):
        check_address(ipaddress.ip_address(address), "http", ())


def test_what_the_setting_allows_is_reached_in_either_way_and_nothing_beside_it() -> None:
    allowed = parse_networks(["10.0.0.0/8", "fd00::/8"])
    for scheme in ("http", "https"):
        for address in ("10.255.0.1", "::ffff:10.0.0.1", "fd00::7"):
            check_address(ipaddress.ip_address(address), scheme, allowed)
    with pytest.raises(AddressRefused):
        check_address(ipaddress.ip_address("11.0.0.1"), "http", allowed)
    with pytest.raises(AddressRefused):
        check_address(ipaddress.ip_address("127.0.0.1"), "https", allowed)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "https://",
        "https://user:word@hooks.example.com/",
        "https://hooks.example.com/#part",
        "https://hooks.example.com:99999/",
        "https://[::1/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/latest/meta-data",
        "http://hooks.example.com/",
        "https://hooks..example.com/",
        "https://.example.com/",
        f"https://{'a' * 64}.example.com/",
        "https://hooks.example.com/\r\nhost: other",
        "https://hooks.example.com/" + "x" * 2000,
    ],
)
def test_a_url_that_nothing_could_be_sent_to_is_refused_when_it_is_set(url: str) -> None:
    with pytest.raises(Refusal) as refused:
        check_url(url, ())
    assert refused.value.param == "url"


def test_a_networks_setting_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"alerts\.allow_networks"):
        check(Settings(alerts=AlertSettings(allow_networks=("10.0.0.1/8",))))


def test_a_signature_is_hmac_sha256_over_id_timestamp_and_body(tmp_path: Path) -> None:
    path = tmp_path / "alerts.key"
    make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    secret = secret_of(path, "whk_1")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = hmac.new(key, b'alr_1.1700000000.{"a":1}', hashlib.sha256).digest()
    assert signature(secret, "alr_1", 1_700_000_000, b'{"a":1}') == (
        "v1," + base64.b64encode(expected).decode()
    )
    # The example of the specification (Standard Webhooks, "Signature scheme").
    assert (
        signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            b'{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_each_webhook_has_a_secret_of_its_own_that_stays(tmp_path: Path) -> None:
    path = tmp_path / "alerts.key"
    make_key(path)
    first = secret_of(path, "whk_1")
    make_key(path)
    assert secret_of(path, "whk_1") == first
    assert secret_of(path, "whk_2") != first


def test_processes_that_make_the_key_at_once_agree_on_one(tmp_path: Path) -> None:
    path, found = tmp_path / "alerts.key", set()

    def act() -> None:
        make_key(path)
        found.add(secret_of(path, "whk_1"))

    threads = [threading.Thread(target=act) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["alerts.key"]


@pytest.mark.parametrize("content", ["", "zz" * 32, "ab" * 31])
def test_a_key_file_that_holds_no_key_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "alerts.key"
    path.write_text(content)
    with pytest.raises(KeyUnusable, match=r"alerts\.key holds no key"):
        secret_of(path, "whk_1")
    path.unlink()
    with pytest.raises(KeyUnusable, match="is missing"):
        secret_of(path, "whk_1")


def test_attempts_grow_apart_up_to_an_hour_and_end_after_about_a_day() -> None:
    waits = [backoff_s(attempts) for attempts in range(1, ATTEMPTS_MAX)]
    assert 4 <= waits[0] <= 6
    assert all(wait <= 1.2 * 3600 for wait in waits)
    assert 12 * 3600 < sum(waits) < 36 * 3600
    assert backoff_s(10**9) <= 1.2 * 3600
