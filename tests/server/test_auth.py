"""API keys: every route but the two probes is behind them, unknown ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer, chat_body, serving

from specdec import ConfigError, Engine
from specdec.server import ServerConfig
from specdec.server.auth import ApiKeys, cache_salt, digest_of, presented_key, read_key_file

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


def test_a_key_file_holds_keys_and_digests_and_only_digests_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# comment\n\nfirst-key\n  sha256:{digest_of('second-key').upper()}  \n")
    digests = read_key_file(path)
    assert digests == (digest_of("first-key"), digest_of("second-key"))
    keys = ApiKeys(["third-key"], digests)
    assert [keys.admits(key) for key in (b"first-key", b"second-key", b"third-key", b"sha256:", b"# comment", b"")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "# only a comment\n", "ok\nä\n", "sha256:abc\n", "sha256:" + "g" * 64, "two\x00"])
def test_a_key_file_with_a_line_that_is_no_key_or_without_any_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_key_file(path)
    assert refused.value.flag == "--api-key-file"
    assert "g" * 64 not in str(refused.value), "a key is no part of a message"


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_key_file(tmp_path / "absent")


def statuses(config: ServerConfig, make_engine: Callable[..., Engine]) -> dict[tuple[str, str], int]:
    with serving(make_engine(), config) as server:
        return {
            (path, key): httpx.get(server.url + path, headers={"x-api-key": key} if key else {}).status_code
            for path in ("/metrics", "/v1/models")
            for key in ("", "user", "watcher")
        }


def test_the_metrics_key_opens_the_metrics_alone(make_engine: Callable[..., Engine]) -> None:
    config = ServerConfig(api_key_digests=(digest_of("user"),), metrics_key="watcher")
    assert statuses(config, make_engine) == {
        ("/metrics", ""): 401, ("/metrics", "user"): 401, ("/metrics", "watcher"): 200,
        ("/v1/models", ""): 401, ("/v1/models", "user"): 200, ("/v1/models", "watcher"): 401,
    }  # fmt: skip


def test_a_metrics_key_guards_the_metrics_of_an_open_server(make_engine: Callable[..., Engine]) -> None:
    assert statuses(ServerConfig(metrics_key="watcher"), make_engine) == {
        ("/metrics", ""): 401, ("/metrics", "user"): 401, ("/metrics", "watcher"): 200,
        ("/v1/models", ""): 200, ("/v1/models", "user"): 200, ("/v1/models", "watcher"): 200,
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/metrics/", "//metrics", "//metrics//"])
def test_no_spelling_of_the_path_goes_round_the_metrics_key(path: str, make_engine: Callable[..., Engine]) -> None:
    for config in (ServerConfig(metrics_key="watcher"), ServerConfig(api_keys=("user",), metrics_key="watcher")):
        with serving(make_engine(), config) as server:
            for key, status in (("", 401), ("user", 401), ("watcher", 200)):
                headers = {"x-api-key": key} if key else {}
                assert httpx.get(server.url + path, headers=headers).status_code == status, (config, key)


def test_public_metrics_need_no_key(make_engine: Callable[..., Engine]) -> None:
    opened = statuses(ServerConfig(api_keys=("user",), has_public_metrics=True), make_engine)
    assert opened["/metrics", ""] == 200
    assert opened["/v1/models", ""] == 401
    with pytest.raises(ConfigError):
        ServerConfig(metrics_key="watcher", has_public_metrics=True)


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def test_pages_of_other_origins_are_let_in_only_where_their_origin_is_named(make_engine: Callable[..., Engine]) -> None:
    friend, stranger = {"origin": "https://friend.example"}, {"origin": "https://stranger.example"}
    config = ServerConfig(served_model_names=("tiny",), api_keys=KEYS, cors_origins=("https://friend.example",))
    with serving(make_engine(), config) as server:
        url = server.url + "/v1/chat/completions"
        leave = httpx.options(url, headers={**friend, **PREFLIGHT})
        assert leave.status_code == 204
        assert leave.headers["access-control-allow-origin"] == "https://friend.example"
        assert leave.headers["access-control-allow-headers"] == "authorization,content-type"
        refused = httpx.options(url, headers={**stranger, **PREFLIGHT})
        assert refused.status_code == 401
        assert "access-control-allow-origin" not in refused.headers
        key = {"authorization": f"Bearer {KEYS[0]}"}
        answer = httpx.post(url, headers={**friend, **key}, json=chat_body(max_tokens=1), timeout=30)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        assert answer.headers["vary"] == "origin"
        assert httpx.post(url, headers=friend, json=chat_body()).status_code == 401, "leave is no key"
        of_stranger = httpx.post(url, headers={**stranger, **key}, json=chat_body(max_tokens=1), timeout=30)
        assert "access-control-allow-origin" not in of_stranger.headers


def test_without_origins_there_is_no_cors(guarded: LiveServer) -> None:
    headers = {"origin": "https://friend.example", "x-api-key": KEYS[0]}
    assert not [name for name in httpx.get(guarded.url + "/v1/models", headers=headers).headers if "access" in name]


@pytest.mark.parametrize("origin", ["friend.example", "https://friend.example/", "https://a b", "", "null"])
def test_what_is_no_origin_is_refused_at_start(origin: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerConfig(cors_origins=(origin,))
    assert refused.value.flag == "--cors-origin"


def test_only_hosts_that_are_named_are_answered_as(make_engine: Callable[..., Engine]) -> None:
    config = ServerConfig(served_model_names=("tiny",), allowed_hosts=("llm.example.org", "*.inner.example"))
    with serving(make_engine(), config) as server:

        def status(path: str, host: str) -> int:
            return httpx.get(server.url + path, headers={"host": host}).status_code

        for host in ("llm.example.org", "LLM.example.org:8000", "a.inner.example", "a.b.inner.example:1"):
            assert status("/v1/models", host) == 200, host
        for host in ("example.org", "inner.example", "llm.example.org.evil.example", "127.0.0.1", "evilinner.example"):
            refused = httpx.get(server.url + "/v1/models", headers={"host": host})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_host"), host
            assert status("/health", host) == status("/ready", host) == 200, "probes go by address"


@pytest.mark.parametrize("host", ["https://a.example", "a.example:8000", "a b", "", "*", "*.", "a.*.example"])
def test_what_is_no_host_is_refused_at_start(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerConfig(allowed_hosts=(host,))
    assert refused.value.flag == "--allowed-host"
