"""API keys, on both databases: their form, and who may come in."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import select, text

from service.db import Database
from service.keys import secret
from service.keys.repository import Callers, Keys
from service.tables import ApiKey
from service.tenants.repository import Tenants
from tests import seeds

TENANT = "ten_default"


class TestSecret:
    def test_form(self) -> None:
        made = secret.generate()
        assert re.fullmatch(r"sec_[0-9A-Za-z]{49}", made)
        assert secret.is_well_formed(made)
        assert made != secret.generate()

    @pytest.mark.parametrize("position", [0, 4, 20, 46, 47, 52])
    def test_one_wrong_character_is_noticed(self, position: int) -> None:
        made = secret.generate()
        wrong = "A" if made[position] != "A" else "B"
        assert not secret.is_well_formed(made[:position] + wrong + made[position + 1 :])

    @pytest.mark.parametrize("bad", ["", "sec_", "x" * 53, "sec_" + "é" * 49, "sec_" + "0" * 500])
    def test_other_text_is_no_key(self, bad: str) -> None:
        assert not secret.is_well_formed(bad)

    def test_digest_is_one_way_and_stable(self) -> None:
        made = secret.generate()
        assert secret.matches(made, secret.digest(made))
        assert not secret.matches(secret.generate(), secret.digest(made))
        assert made not in secret.digest(made)


class TestKeys:
    def test_speaks_for_its_tenant(self, database: Database) -> None:
        other = seeds.other_tenant(database)
        with database.session() as session:
            key, made = Keys(session, other).create("ci")
            assert not Callers(session).authenticate(secret.generate())
            found = Callers(session).authenticate(made)
            assert found is not None
            assert (found.id, found.tenant_id, found.name) == (key.id, other, "ci")

    def test_secret_is_not_stored(self, database: Database) -> None:
        with database.session() as session:
            _, made = Keys(session, TENANT).create("ci")
            rows = session.execute(text("SELECT * FROM api_keys")).all()
        assert made not in str(rows)

    def test_revoked(self, database: Database) -> None:
        with database.session() as session:
            key, made = Keys(session, TENANT).create("ci")
            first = Keys(session, TENANT).revoke(key.id).revoked_at
            assert first is not None
            assert Keys(session, TENANT).revoke(key.id).revoked_at == first
            assert Callers(session).authenticate(made) is None
            assert [row.id for row in Keys(session, TENANT).list().data] == [key.id]

    @pytest.mark.parametrize(("lifetime", "valid"), [(60.0, True), (-1.0, False), (None, True)])
    def test_expiry(self, database: Database, lifetime: float | None, valid: bool) -> None:
        with database.session() as session:
            _, made = Keys(session, TENANT).create("ci", lifetime_seconds=lifetime)
            assert (Callers(session).authenticate(made) is not None) == valid

    def test_use_is_noted_to_the_minute(self, database: Database) -> None:
        with database.session() as session:
            key, _ = Keys(session, TENANT).create("ci")
            Callers(session).touch(key.id)
            used = select(ApiKey.last_used_at).where(ApiKey.id == key.id)
            first = session.scalar(used)
            Callers(session).touch(key.id)
            assert first is not None
            assert session.scalar(used) == first

    def test_any(self, database: Database) -> None:
        with database.session() as session:
            assert not Callers(session).any_key()
            Keys(session, TENANT).create("ci")
            assert Callers(session).any_key()


def test_tenants(database: Database) -> None:
    with database.session() as session:
        made = Tenants(session).create("team")
        assert Tenants(session).get(made.id) is made
        assert Tenants(session).get("ten_unknown") is None
        assert [tenant.name for tenant in Tenants(session).all()] == ["default", "team"]
