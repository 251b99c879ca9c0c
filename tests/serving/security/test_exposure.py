"""Refusals and warnings of `baton serve` before a port opens, and findings of `baton doctor`."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner

from pipeline.errors import InvalidInput
from pipeline.traffic.prediction import load_secret
from serving.cli.main import app
from serving.config import Config
from serving.config.principal import Role
from serving.security.exposure import exposure
from serving.security.modes import close_home, weak_files
from serving.security.tokens import TokenStore


def config(folder: Path, listen: str = "{}") -> Config:
    (folder / "baton.yaml").write_text(f"home: home\nlisten: {listen}\n")
    return Config.load(folder / "baton.yaml")


def token(made: Config) -> None:
    TokenStore(made.tokens).create("ann", Role.OPERATOR, 1)


def test_this_machine_alone_is_fine_and_said(tmp_path: Path) -> None:
    made = config(tmp_path)
    (warning,) = exposure(made)
    assert "everyone on this machine is an operator" in warning
    token(made)
    assert exposure(made) == []
    TokenStore(made.tokens).revoke("ann")
    assert "last token was revoked" in exposure(made)[0]


def test_other_machines_come_in_only_when_they_can_say_who_they_are(tmp_path: Path) -> None:
    made = config(tmp_path, "{host: 0.0.0.0, insecure: true}")
    with pytest.raises(InvalidInput, match="baton token create"):
        exposure(made)
    token(made)
    (warning,) = exposure(made)
    assert warning.startswith("INSECURE")
    paper = "cert: c, key: k, client_ca: a"
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidInput, match="require_client_cert"):
        exposure(config(tmp_path / "other", f"{{host: 0.0.0.0, tls: {{{paper}}}}}"))
    assert exposure(config(tmp_path / "other", f"{{host: 0.0.0.0, tls: {{{paper}, require_client_cert: true}}}}")) == []


@pytest.mark.parametrize("name", ["secret.key", "tokens.json"])
@pytest.mark.parametrize("mode", [0o640, 0o602, 0o604])
def test_what_lets_one_in_must_be_its_owners_alone(tmp_path: Path, name: str, mode: int) -> None:
    made = config(tmp_path)
    load_secret(made.secret)
    token(made)
    assert exposure(made) == []
    (made.home / name).chmod(mode)
    with pytest.raises(InvalidInput, match=f"{name}.*chmod 600"):
        exposure(made)
    serve = subprocess.run(
        [sys.executable, "-m", "serving.cli.main", "serve", "--config", str(tmp_path / "baton.yaml")],
        capture_output=True, text=True, timeout=120, check=False,
    ) if mode == 0o640 else None  # fmt: skip
    assert serve is None or (serve.returncode == 1 and "chmod 600" in serve.stderr.replace("\n", ""))


def test_home_and_sockets_are_their_owners_alone(tmp_path: Path) -> None:
    made = config(tmp_path)
    old = os.umask(0)
    try:
        close_home(made)
        (made.home / "run").chmod(0o777)
        close_home(made)
    finally:
        os.umask(old)
    assert stat.S_IMODE(made.home.stat().st_mode) == stat.S_IMODE((made.home / "run").stat().st_mode) == 0o700


def test_the_doctor_finds_open_keys_passwords_and_certificates_that_do_not_fit(tmp_path: Path) -> None:
    leaf, other = trustme.CA().issue_cert("localhost"), trustme.CA().issue_cert("localhost")
    (tmp_path / "c.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    (tmp_path / "k.pem").write_bytes(other.private_key_pem.bytes())
    (tmp_path / "k.pem").chmod(0o644)
    (tmp_path / "password").write_text("x")
    (tmp_path / "password").chmod(0o640)
    (tmp_path / "baton.yaml").write_text(
        "home: home\nlisten: {tls: {cert: c.pem, key: k.pem}}\n"
        "traffic: {url: 'redis://127.0.0.1:1/0', password_file: password}\n"
    )
    assert {path.name for path, _ in weak_files(Config.load(tmp_path / "baton.yaml"))} == {"k.pem", "password"}
    done = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "baton.yaml"), "-o", "json"])
    found = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert not found["file modes"]["ok"]
    assert "k.pem" in found["file modes"]["detail"]
    assert "password" in found["file modes"]["detail"]
    assert not found["tls"]["ok"]
    assert "k.pem" in found["tls"]["detail"]


def test_the_threat_model_names_tests_that_exist() -> None:
    root = Path(__file__).parents[3]
    named = re.findall(r"`((?:[a-z]+/)*test_\w+\.py)(?:::(\w+))?`", (root / "SECURITY.md").read_text())
    assert len(named) > 50
    for file, test in named:
        content = (root / "tests" / file).read_text()
        assert not test or f"def {test}(" in content, f"{file}::{test}"
