"""Keys: who may call, and what a key is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from service.keys.repository import Keys
from service.keys.secret import generate
from service.settings import Settings
from service.tables import DEFAULT_TENANT
from tests.api.gateway import Gateway, serve


class TestBearer:
    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Basic dXNlcjpwYXNz", "Bearer nonsense", f"Bearer {generate()}"],
        ids=["none", "empty", "no key", "basic", "no such form", "unknown"],
    )
    def test_without_a_live_key(self, gateway: Gateway, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header}
        answer = gateway.client().get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")

    def test_scheme_in_any_case(self, gateway: Gateway) -> None:
        _, key = gateway.tenant()
        assert (
            gateway.client().get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200
        )

    def test_comes_before_everything_else(self, gateway: Gateway) -> None:
        stranger = gateway.client()
        assert stranger.get("/v1/models?limt=1").status_code == 401
        assert stranger.get("/v1/models?limit=none").status_code == 401
        assert stranger.post("/v1/jobs", content=b"{").status_code == 401
        assert (
            stranger.post("/v1/jobs", content=b"x" * (gateway.settings.max_json_bytes + 1)).status_code == 401
        )

    def test_revoked_and_expired(self, gateway: Gateway) -> None:
        with gateway.database.session() as session:
            keys = Keys(session, DEFAULT_TENANT)
            revoked, one = keys.create("revoked")
            keys.revoke(revoked.id)
            _, two = keys.create("expired", lifetime_seconds=-1)
            _, three = keys.create("alive", lifetime_seconds=60)
        assert [gateway.client(key).get("/v1/models").status_code for key in (one, two, three)] == [
            401,
            401,
            200,
        ]

    def test_probes_need_no_key(self, gateway: Gateway) -> None:
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/"):
            assert gateway.client().get(path).status_code == 200, path


class TestOff:
    def test_everybody_is_the_default_tenant(self, special: Callable[..., Settings]) -> None:
        with serve(special(auth="off")) as gateway:
            assert gateway.client().get("/v1/models").status_code == 200
            made = gateway.client().post("/v1/keys", json={"name": "ci"}).json()
            with gateway.database.read() as session:
                assert Keys(session, DEFAULT_TENANT).get(made["id"]).name == "ci"

    @pytest.mark.parametrize("header", ["Host", "Origin"])
    def test_web_pages_cannot_borrow_it(self, special: Callable[..., Settings], header: str) -> None:
        scheme = "http://" if header == "Origin" else ""
        with serve(special(auth="off")) as gateway:
            client = gateway.client()
            for name in ("localhost:8000", "127.0.0.1", "[::1]:1", "secateur.localhost"):
                assert client.get("/v1/models", headers={header: scheme + name}).status_code == 200, name
            for name in (
                "evil.example",
                "evil.example:80",
                "localhost.evil.example",
                "192.168.0.7:8000",
                "[",
            ):
                answer = client.get("/v1/models", headers={header: scheme + name})
                assert (answer.status_code, answer.json()["code"]) == (403, "host_forbidden"), name
                assert client.post("/v1/models", headers={header: scheme + name}).status_code == 403, name
            assert client.get("/v1/models", headers={"Origin": "null"}).status_code == 403

    def test_only_on_loopback(self) -> None:
        with pytest.raises(ValidationError, match="loopback"):
            Settings(auth="off", host="0.0.0.0")


class TestKeys:
    def test_secret_is_shown_once(self, gateway: Gateway) -> None:
        client = gateway.caller()
        made = client.post("/v1/keys", json={"name": " ci ", "expires_in": 3600})
        assert made.status_code == 201
        assert made.headers["cache-control"] == "no-store"
        key = made.json()
        assert (key["name"], key["revoked_at"]) == ("ci", None)
        assert key["expires_at"] > key["created_at"]
        assert "key" not in client.get(made.headers["location"]).json()
        assert gateway.client(key["key"]).get(f"/v1/keys/{key['id']}").json()["last_used_at"] is not None

    def test_revoked_key_is_refused_at_once(self, gateway: Gateway) -> None:
        client = gateway.caller()
        key = client.post("/v1/keys", json={"name": "ci"}).json()
        user = gateway.client(key["key"])
        assert user.get("/v1/models").status_code == 200
        assert client.delete(f"/v1/keys/{key['id']}").status_code == 204
        assert user.get("/v1/models").status_code == 401
        assert client.get(f"/v1/keys/{key['id']}").json()["revoked_at"] is not None

    def test_list(self, gateway: Gateway) -> None:
        client = gateway.caller()
        made = [client.post("/v1/keys", json={"name": f"key {number}"}).json()["id"] for number in range(3)]
        listed = client.get("/v1/keys?limit=2").json()
        assert [key["id"] for key in listed["data"]] == made[:0:-1]
        assert listed["has_more"] is True

    def test_repeated_request_does_not_repeat_the_secret(self, gateway: Gateway) -> None:
        client = gateway.caller()
        headers = {"Idempotency-Key": "one"}
        first = client.post("/v1/keys", json={"name": "ci"}, headers=headers).json()
        again = client.post("/v1/keys", json={"name": "ci"}, headers=headers)
        assert again.json() == {**first, "key": None}
        assert again.headers["idempotency-replayed"] == "true"

    @pytest.mark.parametrize("name", ["", "  ", "x" * 201, "line\nbreak", "right\u202eleft"])
    def test_name_that_cannot_be_shown(self, gateway: Gateway, name: str) -> None:
        answer = gateway.caller().post("/v1/keys", json={"name": name})
        assert (answer.status_code, answer.json()["code"]) == (422, "name_invalid")
