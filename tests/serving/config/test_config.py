"""baton.yaml: errors name the setting, and paths are relative to the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.errors import InvalidInput
from serving.config import Config, parse_duration
from serving.config.changes import needs_full_stop


def load(folder: Path, text: str) -> Config:
    path = folder / "baton.yaml"
    path.write_text(text)
    return Config.load(path)


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("hom: x", "hom", "unknown key"),
        ("listen: {grpc_port: 70000}", "listen.grpc_port", "65535"),
        ("listen: {grpc_port: many}", "listen.grpc_port", "integer"),
        ("listen: {host: 0.0.0.0}", "listen", "not loopback"),
        ("listen: {host: 192.168.1.5}", "listen", "not loopback"),
        ("listen: {host: 192.168.1.5, insecure: true, feedback: open}", "listen", "identified"),
        ("listen: {tls: {cert: c, key: k, require_client_cert: true}}", "listen.tls", "client_ca"),
        ("listen: {tls: {cert: c, key: k, client_ca: a, roles: {x: king}}}", "listen.tls.roles.x", "operator"),
        ("listen: {host: example.org}", "listen", "example.org"),
        ("engine: {lanes: 0}", "engine.lanes", "greater than or equal to 1"),
        ("traffic: {retention: soon}", "traffic.retention", "not a duration"),
        ("traffic: {retention: true}", "traffic.retention", "not a duration"),
        ("traffic: {attribution_window: -3}", "traffic.attribution_window", "greater than or equal to 0"),
        ("worker: {}", "worker.endpoint", "required"),
        ("worker: {endpoint: r, holdout: 0.9}", "worker.holdout", "less than 0.5"),
        ("worker: {endpoint: r}\nendpoints: {other: {stable: {bundle: b}}}", "config", "worker.endpoint 'r'"),
        ("endpoints: {r: {candidate: {bundle: b}}}", "endpoints.r.stable", "required"),
        ("log_level: loud", "log_level", "debug"),
        (
            "traffic: {attribution_window: 60s, late_limit: 8s}",
            "traffic",
            "late_limit 8 s is below attribution_window 60 s",
        ),
        (
            "traffic: {attribution_window: 24h, late_limit: 24h}",
            "traffic",
            "late_limit 86400 s is below attribution_win",
        ),
        (
            "traffic: {attribution_window: 7d, retention: 7d}",
            "traffic",
            "retention 604800 s is below attribution_window 604800 s",
        ),
        ("traffic: {retention: 1h}", "traffic", "retention 3600 s is below attribution_window 1800 s and an hour"),
        ("traffic: {late_limit: 8d, retention: 7d}", "traffic", "retention 604800 s is below late_limit 691200 s"),
        (
            "traffic: {sample: {rate: 0}}\nworker: {endpoint: r}",
            "config",
            "worker has nothing .* traffic.sample.rate is 0",
        ),
        ("listen: {grpc_port: 9000, admin_port: 9000}", "listen", "grpc_port and admin_port are both 9000"),
        ("listen: {http_port: 8001}", "listen", "grpc_port and http_port are both 8001"),
        ("engine: {max_queue_delay_microseconds: 2000000, default_deadline: 2s}", "engine", "default_deadline 2 s"),
        (
            "engine: {default_deadline: 20ms}\nembedding: {tiers: [redis], budget: 20ms, redis: {url: 'redis://h'}}",
            "config",
            r"embedding\.budget 0\.02 s is not below engine\.default_deadline 0\.02 s",
        ),
        (
            "traffic: {url: 'redis://h:1/0'}\nembedding: {redis: {url: 'redis://h:1/0'}}",
            "config",
            r"embedding\.redis\.url and traffic\.url are both redis://h:1/0",
        ),
        (
            "embedding: {redis: {url: 'redis://h', breaker_pause: 3s}}",
            "embedding.redis",
            "breaker_longest_pause 2 s is below breaker_pause 3 s",
        ),
        ("embedding: {tiers: []}", "embedding", "at least one tier"),
        ("embedding: {tiers: [segment, segment]}", "embedding", "each once"),
        ("embedding: {tiers: [segment, device]}", "embedding", "put it above segment or redis"),
        ("embedding: {tiers: [redis]}", "embedding", "embedding.redis.url"),
        ("embedding: {tiers: [memory]}", "embedding.tiers.0", "'device', 'segment' or 'redis'"),
        ("embedding: {budget: 0ms}", "embedding.budget", "greater than 0"),
        ("embedding: {redis: {url: localhost}}", "embedding.redis.url", "pattern"),
        ("embedding: {redis: {url: 'redis://:secret@h'}}", "embedding.redis.url", "pattern"),
        ("embedding: {redis: {url: 'unix:///r', password_env: A, password_file: b}}", "embedding.redis", "not in both"),
    ],
)
def test_errors_name_the_setting(tmp_path: Path, text: str, field: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        load(tmp_path, text)
    assert caught.value.field == field
    assert str(tmp_path / "baton.yaml") in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "listen: {", "just words"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"YAML|mapping"):
        load(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.yaml"):
        Config.load(tmp_path / "nothing.yaml")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert (config.listen.host, config.listen.grpc_port, config.listen.http_port) == ("127.0.0.1", 8001, 8000)
    assert config.traffic.attribution_window == 1800
    assert config.worker is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 86_400),
        ("attribution_window: 23h", 86_400),
        ("attribution_window: 3d", 3 * 86_400 + 3600),
        ("attribution_window: 3d, late_limit: 5d", 5 * 86_400),
        ("late_limit: 90m, retention: 90m", 5400),
    ],
)
def test_labels_are_taken_for_longer_than_their_window(tmp_path: Path, text: str, seconds: float) -> None:
    assert load(tmp_path, f"traffic: {{{text}}}").traffic.late_limit_s == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("20s", 20), ("1.5m", 90), (" 2 h ", 7200), ("7d", 604800), (3, 3), (0.5, 0.5)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 weeks", "-1s", "s", None, True, [1]])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_hosts(tmp_path: Path, host: str) -> None:
    assert load(tmp_path, yaml.safe_dump({"listen": {"host": host}})).listen.host == host


def test_off_loopback_takes_tls_or_a_word_that_says_otherwise(tmp_path: Path) -> None:
    for how in ("insecure: true", "tls: {cert: c.pem, key: k.pem}"):
        listen = load(tmp_path, f"listen: {{host: 0.0.0.0, {how}}}").listen
        assert not listen.loopback
        assert listen.identified_feedback
    assert not load(tmp_path, "{}").listen.identified_feedback


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = "{home: state, bundles: ../models, worker: {endpoint: r, retained: rows.safetensors},"
    config = load(tmp_path, f"{text} listen: {{tls: {{cert: c.pem, key: k.pem}}}}}}")
    assert config.listen.tls is not None
    assert config.listen.tls.key == tmp_path / "k.pem"
    assert config.home == tmp_path / "state"
    assert config.traffic_folder == tmp_path / "state" / "traffic"
    assert config.repository.resolve() == tmp_path.parent / "models"
    assert config.worker is not None
    assert config.worker.retained == tmp_path / "rows.safetensors"
    assert load(tmp_path, "home: state").repository == tmp_path / "state" / "bundles"
    assert load(tmp_path, "home: /srv/baton").home == Path("/srv/baton")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "baton.yaml"
    path.write_text("hom: x\nbundles_keep: 0\nengine: {default_deadline: soon}\n")
    with pytest.raises(InvalidInput) as caught:
        Config.load(path)
    lines = str(caught.value).split("\n  ")
    assert lines[0] == f"config {path}: 3 things to correct:"
    assert [line.split(":")[0] for line in lines[1:]] == ["bundles_keep", "engine.default_deadline", "hom"]


def test_what_a_restart_cannot_bring_in_is_named_and_all_else_can_change() -> None:
    def config(**sections: object) -> Config:
        return Config.model_validate({"home": "home", **sections})

    running = config(engine={"lanes": 2}, listen={"tls": {"cert": "a.pem", "key": "k.pem"}})
    free = config(
        engine={"lanes": 3, "workers": 2}, hang_limit="1m", traffic={"sample": {"rate": 0.5}}, log_level="debug",
        listen={"tls": {"cert": "b.pem", "key": "k.pem"}, "max_candidates": 5},
    )  # fmt: skip
    assert needs_full_stop(running, free) == []
    fixed = config(state={"url": "redis://127.0.0.1:1/0"}, listen={"grpc_port": 5})
    assert needs_full_stop(running, fixed) == ["listen.grpc_port", "listen.tls", "state.url"]


def test_a_hang_limit_is_off_or_long_enough_for_a_busy_machine() -> None:
    assert Config(hang_limit=0).hang_limit == 0
    with pytest.raises(ValueError, match=r"hang_limit 1 s is below 5 s.*raise it, or set 0"):
        Config.model_validate({"hang_limit": "1s"})
