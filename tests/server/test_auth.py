"""API keys: every route but the two probes is behind them, unknown ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer, chat_body, serving

from specdec import ConfigError, Engine
from specdec.server import ServerConfig
from specdec.server.auth import ApiKeys, cache_salt, presented_key

KEYS = ("first-key", "second-key")
GUARDED = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/tiny"),
    ("GET", "/metrics"), ("GET", "/version"), ("GET", "/"), ("GET", "/no/such/route"), ("DELETE", "/v1/models"),
    ("OPTIONS", "/v1/chat/completions"), ("GET", "//health"), ("GET", "/health/../metrics"), ("GET", "/health/x"),
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded(make_engine: Callable[..., Engine]) -> Iterator[LiveServer]:
    with serving(make_engine(), ServerConfig(served_model_names=("tiny",), api_keys=KEYS)) as server:
        yield server


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {}, {"authorization": "Bearer wrong"}, {"authorization": "first-key"}, {"authorization": "Basic first-key"},
        {"authorization": "Bearer"}, {"x-api-key": ""}, {"x-api-key": "first-key "[:-2]}, {"api-key": "first-key"},
        {"authorization": "Bearer wrong", "x-api-key": "first-key"},
    ],
)  # fmt: skip
def test_without_a_valid_key_every_route_is_a_401(
    guarded: LiveServer, method: str, path: str, headers: dict[str, str]
) -> None:
    response = httpx.request(method, guarded.url + path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("header", ["Bearer", "bearer", "x-api-key"])
def test_any_of_the_keys_opens_in_either_header(guarded: LiveServer, key: str, header: str) -> None:
    headers = {"x-api-key": key} if header == "x-api-key" else {"authorization": f"{header} {key}"}
    assert httpx.get(guarded.url + "/v1/models", headers=headers).status_code == 200
    answer = httpx.post(guarded.url + "/v1/chat/completions", headers=headers, json=chat_body(max_tokens=1), timeout=30)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_probes_and_the_reference_need_no_key(guarded: LiveServer, path: str) -> None:
    assert httpx.get(guarded.url + path).status_code == 200


def test_callers_with_different_keys_share_no_cached_prefix(guarded: LiveServer) -> None:
    def num_cached(key: str) -> int:
        body = chat_body(max_tokens=1, messages=[{"role": "user", "content": "a long shared prefix " * 20}])
        answer = httpx.post(guarded.url + "/v1/chat/completions", json=body, headers={"x-api-key": key}, timeout=30)
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert num_cached(KEYS[0]) == 0
    assert num_cached(KEYS[0]) > 0
    assert num_cached(KEYS[1]) == 0


@given(st.binary(max_size=40), st.lists(st.text("abc-", min_size=1, max_size=5), max_size=4))
def test_a_key_is_admitted_iff_it_is_one_of_the_keys(key: bytes, keys: list[str]) -> None:
    assert ApiKeys(keys).admits(key) == (key in {known.encode() for known in keys})
    for known in keys:
        assert ApiKeys(keys).admits(known.encode())


def test_a_salt_is_the_keys_own_and_does_not_show_it() -> None:
    assert cache_salt(None) == ""
    assert cache_salt(b"a") != cache_salt(b"b")
    assert "first-key" not in cache_salt(b"first-key")


def test_authorization_counts_before_x_api_key() -> None:
    assert presented_key([(b"authorization", b"Bearer a"), (b"x-api-key", b"b")]) == b"a"
    assert presented_key([(b"authorization", b"Basic a"), (b"x-api-key", b"b")]) is None
    assert presented_key([]) is None


@pytest.mark.parametrize("key", ["", " a", "a\n", "ä", "a\x00"])
def test_a_key_that_no_header_can_carry_is_refused_at_start(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerConfig(api_keys=("good", key))
    assert refused.value.flag == "--api-key"
