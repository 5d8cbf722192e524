"""The server as a process: start, machine-readable line, health check, drain, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from faulty import MOST_ITERATIONS, long_loop
from onward.errors import ConfigError
from onward_client import Client, ClientError, UnavailableError
from onward_server import ServerProcess, ServerThread, load_settings
from onward_server.__main__ import main
from onward_server.errors import ServerError
from onward_server.settings import changed_at_rest
from serving import FLOAT_PAIR, engines, identity, put, settings, two_by_two

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(str(ROOT / part) for part in ("runtime", "protos", "server", "client"))


def run(
    *arguments: str, module: str = "onward_server", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PATH, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "onward_server", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PATH, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_environment_configures_and_a_signal_ends_it(repository: Path, number: signal.Signals) -> None:
    put(repository, "m", 1, identity(TensorProto.FLOAT))
    environment = {
        "ONWARD_SERVER_REPOSITORY": str(repository),
        "ONWARD_SERVER_LISTEN": "127.0.0.1:0",
        "ONWARD_SERVER_ENGINE": "onnxruntime",
        "ONWARD_SERVER_CROSS_CHECK__POLICY": "off",
    }
    with started(**environment) as (process, event):
        assert (event["event"], event["models"]) == ("listening", ["m"])
        assert event["address"] == f"127.0.0.1:{event['port']}"
        healthy = run("--address", event["address"], module="onward_server.healthcheck")
        by_model = run("--service", "m", module="onward_server.healthcheck",
                       ONWARD_SERVER_LISTEN=f"0.0.0.0:{event['port']}")  # fmt: skip
        unknown = run(
            "--service", "x", module="onward_server.healthcheck", ONWARD_SERVER_LISTEN=event["address"]
        )
        assert (healthy.returncode, by_model.returncode, unknown.returncode) == (0, 0, 1)
        assert "SERVING" in healthy.stdout
        assert "NOT_FOUND" in unknown.stderr
        process.send_signal(number)
        assert process.wait(30) == 0


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hangup_reads_settings_and_repository_again(repository: Path, tmp_path: Path) -> None:
    put(repository, "m", 1, two_by_two())
    file = tmp_path / "server.toml"
    text = f"repository = '{repository}'\nlisten = '127.0.0.1:0'\ncross_check = {{ policy = 'off' }}\n"
    file.write_text(text)
    with started("--config", str(file)) as (process, event), Client(event["address"]) as client:
        put(repository, "n", 1, two_by_two())
        file.write_text(text.replace("'off'", "'every'"))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: client.model_ready("n"))
        wait_for(lambda: client.config("m").parameters["cross_check.policy"] == "every")
        assert client.infer("m", FLOAT_PAIR).parameters["cross_check"] == "passed"
        file.write_text("nonsense")
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert client.infer("m", FLOAT_PAIR).parameters["cross_check"] == "passed"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_hangup_changes_how_long_a_stop_pauses(repository: Path, tmp_path: Path) -> None:
    put(repository, "m", 1, two_by_two())
    file = tmp_path / "server.toml"
    text = f"repository = '{repository}'\nlisten = '127.0.0.1:0'\nshutdown_pause = 600\n"
    file.write_text(text)
    with started("--config", str(file)) as (process, event), Client(event["address"]) as client:
        put(repository, "n", 1, two_by_two())
        file.write_text(text.replace("600", "0"))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: client.model_ready("n"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_a_hangup_cannot_change_is_named(tmp_path: Path) -> None:
    tls = {"certificate": "a.pem", "key": "a.key"}
    old = {"repository": tmp_path}
    for before, after, names in (
        ({}, {"listen": "127.0.0.1:1"}, ["listen"]),
        ({}, {"limits": {"idle_seconds": 1, "pending": 2}}, ["limits.idle_seconds"]),
        ({}, {"tls": tls}, ["tls"]),
        ({"tls": tls}, {"tls": {**tls, "client_ca": "b.pem"}}, ["tls.client_ca"]),
        ({"tls": tls}, {"tls": {**tls, "key": "b.key"}}, []),
        ({"in_process": "never"}, {}, ["in_process"]),
        ({}, {"in_process": "never", "drain_timeout": 1, "shutdown_pause": 1, "access_log": 1}, []),
    ):
        settings = [load_settings(**old, **fields) for fields in (before, after)]
        assert changed_at_rest(*settings) == names


def health(address: str) -> str:
    done = run("--address", address, module="onward_server.healthcheck")
    return done.stdout.split(": ")[-1].strip()


def test_a_stop_says_so_first_pauses_and_answers_meanwhile(repository: Path) -> None:
    put(repository, "m", 1, two_by_two())
    arguments = ("--repository", str(repository), "--listen", "127.0.0.1:0", "--shutdown-pause", "6")
    with started(*arguments) as (process, event), Client(event["address"]) as client:
        assert health(event["address"]) == "SERVING"
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert health(event["address"]) == "NOT_SERVING"
        assert client.predict("m", FLOAT_PAIR)["total"].tolist() == [[2, 3, 4], [5, 6, 7]]
        assert process.wait(60) == 0
        assert time.monotonic() - start > 4


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in found.splitlines()}
    direct = [child for child, parent in parents.items() if parent == pid]
    return direct + [grandchild for child in direct for grandchild in children(child)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_second_signal_stops_at_once_and_leaves_no_process(repository: Path) -> None:
    put(repository, "long", 1, long_loop())
    with started("--repository", str(repository), "--listen", "127.0.0.1:0") as (process, event):
        workers = children(process.pid)
        assert len(workers) >= 2
        with Client(event["address"]) as client:
            request = threading.Thread(target=lambda: ended(client))
            request.start()
            wait_for(lambda: client.server_ready())
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 1
            request.join(30)
        wait_for(lambda: not any(map(is_running, workers)))


def ended(client: Client) -> None:
    with pytest.raises(ClientError):
        client.predict("long", {"n": np.array(MOST_ITERATIONS), "x": np.float32(1)}, timeout=60)


def test_no_worker_outlives_a_server_that_is_killed(repository: Path) -> None:
    put(repository, "long", 1, long_loop())
    with started("--repository", str(repository), "--listen", "127.0.0.1:0") as (process, event):
        workers = children(process.pid)
        with Client(event["address"]) as client:
            request = threading.Thread(target=lambda: ended(client))
            request.start()
            time.sleep(0.5)
            process.kill()
            request.join(60)
        wait_for(lambda: not any(map(is_running, workers)))


def test_settings_are_checked_and_printed_without_a_start(repository: Path) -> None:
    put(repository, "m", 1, two_by_two())
    done = run("--repository", str(repository), "--check-config")
    assert done.returncode == 0
    assert json.loads(done.stdout)["repository"] == str(repository)
    (repository / "m" / "config.toml").write_text("[batching]\nmax_batch = 1\n")
    done = run("--repository", str(repository), "--check-config")
    assert done.returncode == 2
    assert "batching.max_batch" in done.stderr


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("listen = 'nonsense'", "settings: listen: 'nonsense' is no address; give host:port"),
        ("http_listen = '::1:80'", "settings: http_listen: '::1:80' is no address"),
        ("aliases = { live = '../m' }", "settings: aliases: '..' cannot be a model's name"),
        ("aliases = { 'a b' = 'm' }", "settings: aliases: 'a b' cannot be a model's name"),
        ("aliases = { live = 'm/x' }", "settings: aliases: 'm/x': 'x' cannot be a version; give name, or"),
        ("lisen = '127.0.0.1:1'", "settings: lisen: there is no such setting; did you mean 'listen'?"),
        ("limits = { tensor = 1 }", "limits.tensor: there is no such setting; did you mean 'tensors'?"),
        ("[[keys]]\nname = 'a'\nsha = 'b'", "keys.0.sha: there is no such setting; did you mean 'sha256'?"),
        ("[tls]\ncertificate = 'none.pem'\nkey = 'none.key'", "tls: none.pem: No such file or directory"),
        ("[training]\nfolder = '{folder}/jobs'", "training.folder: it has to be outside the repository"),
        (
            "[training]\nfolder = '/dev/null/jobs'",
            "training.folder /dev/null/jobs: it cannot be made or written",
        ),
    ],
)
def test_settings_that_cannot_be_are_found_without_a_start(
    repository: Path, capsys: pytest.CaptureFixture[str], line: str, text: str
) -> None:
    file = repository / "server.toml"
    file.write_text(f"repository = '{repository}'\n{line}\n".replace("{folder}", str(repository)))
    assert main(["--config", str(file), "--check-config"]) == 2
    assert text in capsys.readouterr().err


def test_models_that_settings_name_are_looked_for(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(repository, "m", 1, two_by_two())
    file = repository / "server.toml"
    names = "model_control = 'explicit'\nstartup_models = ['m', 'n']\naliases = { live = 'm/1', old = 'o' }\n"
    file.write_text(f"repository = '{repository}'\n{names}")
    assert main(["--config", str(file), "--check-config"]) == 0
    assert capsys.readouterr().err == (
        "warning: aliases.old: the repository has no model 'o'\n"
        "warning: startup_models: n: the repository has no model 'n'\n"
    )


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"KEYS": "x"}, "environment: ONWARD_SERVER_KEYS is not JSON, as lists and tables have to be"),
        (
            {"TRAINING__FOLDER": "/jobs", "TRAINING__DATA_ROOTS": "/data"},
            "environment: ONWARD_SERVER_TRAINING__DATA_ROOTS or ONWARD_SERVER_TRAINING__FOLDER is not JSON",
        ),
        ({"ENGINE": "other"}, "settings: engine: Input should be 'onward' or 'onnxruntime'"),
    ],
)
def test_a_variable_that_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ONWARD_SERVER_{name}", value)
    with pytest.raises(ConfigError) as caught:
        load_settings(repository="models")
    assert str(caught.value).startswith(text)


def test_a_repository_has_to_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^settings: repository: it has to be given$"):
        load_settings()


def test_passwords_in_urls_are_not_printed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repository.parent / "server.toml"
    file.write_text(
        f"repository = '{repository}'\ntrace.endpoint = 'https://me:hidden@collector:4318/v1/traces'\n"
        f"training = {{ folder = '{repository.parent}', data_roots = ['s3://id:hidden@bucket/a/'] }}\n"
        "aliases = { live = 'm' }\n"
    )
    main(["--config", str(file), "--check-config"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["trace"]["endpoint"] == "https://…@collector:4318/v1/traces"
    assert printed["training"]["data_roots"] == ["s3://…@bucket/a/"]


def test_a_variable_that_is_no_setting_is_named(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONWARD_SERVER_LISTN", "127.0.0.1:1")
    monkeypatch.setenv("ONWARD_SERVER_LIMITS__TENSORS", "7")
    # what Kubernetes sets for a service of that name
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_8001_TCP_ADDR"):
        monkeypatch.setenv(f"ONWARD_SERVER_{name}", "10.0.0.1")
    assert main(["--repository", str(repository), "--check-config"]) == 0
    err = capsys.readouterr().err
    assert err == (
        "warning: environment: ONWARD_SERVER_LISTN is no setting; did you mean ONWARD_SERVER_LISTEN?\n"
    )


def test_the_log_can_be_json_and_a_hangup_changes_its_level(repository: Path, tmp_path: Path) -> None:
    put(repository, "m", 1, two_by_two())
    file = tmp_path / "server.toml"
    text = f"repository = '{repository}'\nlisten = '127.0.0.1:0'\naccess_log = 1\nlog_format = 'json'\n"
    file.write_text(text)
    with started("--config", str(file)) as (process, event), Client(event["address"]) as client:
        client.predict("m", FLOAT_PAIR)
        file.write_text(text + "log_level = 'error'\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(1.0)
        client.metadata("m")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert {"time", "level", "logger"} <= set.intersection(*(set(line) for line in lines))
    calls = {line["call"].rpartition("/")[2]: line for line in lines if line["logger"].endswith("access")}
    assert calls["ModelInfer"]["subject"] == "m"
    assert calls["ModelInfer"]["code"] == "OK"
    assert "ModelMetadata" not in calls


def test_the_health_check_fails_without_a_server() -> None:
    done = run(module="onward_server.healthcheck", ONWARD_SERVER_LISTEN="127.0.0.1:9")
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_cannot_start_says_why_in_one_line_and_exits_with_2(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--repository", str(repository), "--listen", address)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert f"listen {address!r}" in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--repository", "{folder}/none", "--listen", "127.0.0.1:0"], "No such file"),
        (["--repository", "{folder}/file", "--listen", "127.0.0.1:0"], "Not a directory"),
        (["--listen", "127.0.0.1:0"], "repository: it has to be given"),
        (["--repository", "{folder}", "--listen", "not an address"], "'not an address'"),
        (["--repository", "{folder}", "--listen", "127.0.0.1:99999"], "at most 65535"),
        (["--repository", "{folder}", "--threads", "0"], "threads: Input should be"),
        (["--repository", "{folder}", "--cross-check", "often"], "cross_check.policy"),
        (["--repository", "{folder}", "--cross-check", "sample:2"], "cross_check.rate"),
        (["--repository", "{folder}", "--config", "{folder}/file"], "treads"),
        (["--repository", "{folder}", "--config", "{folder}/none"], "No such file"),
    ],
)
def test_what_keeps_a_server_from_starting(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    (repository / "file").write_text("treads = 3")
    assert main([argument.format(folder=repository) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert text in errors[0]
    assert out == ""


def test_a_server_process_is_started_used_and_stopped(repository: Path) -> None:
    put(repository, "m", 1, two_by_two())
    chosen = settings(repository, engine="onnxruntime", cross_check={"policy": "off"})
    with ServerProcess(chosen) as server:
        with Client(server.address) as client:
            assert client.predict("m", FLOAT_PAIR)["total"].tolist() == [[2, 3, 4], [5, 6, 7]]
        assert server.stop() == 0
        assert server.stop() == 0


def test_a_server_process_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="exit code 2"):
        ServerProcess(settings(tmp_path / "none"))


def test_a_server_thread_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ServerThread(settings(tmp_path / "none"))


def test_a_drain_lets_running_requests_finish_and_takes_no_new_ones(repository: Path) -> None:
    release, entered = threading.Event(), threading.Event()

    def held(outputs: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        assert release.wait(30)
        return outputs

    put(repository, "m", 1, two_by_two())
    answers: list[dict[str, Any]] = []
    with ServerThread(settings(repository), engines(held)) as server, Client(server.address) as client:
        request = threading.Thread(target=lambda: answers.append(client.predict("m", FLOAT_PAIR)))
        request.start()
        assert entered.wait(30)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while server.server.plane.ready:
            pass
        try:
            assert not client.server_ready()
            with pytest.raises(UnavailableError, match="stopping"):
                client.predict("m", FLOAT_PAIR)
        finally:
            release.set()
        request.join(30)
        stopping.join(30)
    assert answers[0]["total"].tolist() == [[2, 3, 4], [5, 6, 7]]


def test_options_come_before_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        f"repository = '{tmp_path}'\nthreads = 2\ninstances = 3\nqueue_size = 4\n"
        "[cross_check]\npolicy = 'sample'\nrate = 0.5\non_mismatch = 'fail'\n"
    )
    monkeypatch.setenv("ONWARD_SERVER_THREADS", "5")
    monkeypatch.setenv("ONWARD_SERVER_INSTANCES", "6")
    monkeypatch.setenv("ONWARD_SERVER_CROSS_CHECK__RATE", "0.25")
    chosen = load_settings(file, threads=7)
    assert (chosen.threads, chosen.instances, chosen.queue_size) == (7, 6, 4)
    check = chosen.cross_check
    assert (check.policy, check.rate, check.on_mismatch) == ("sample", 0.25, "fail")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"threads": 0}, "threads"),
        ({"unknown": 1}, "unknown"),
        ({"cross_check": {"policy": "shadow", "on_mismatch": "fail"}}, "answers first"),
        ({"cross_check": {"rate": 1.5}}, "cross_check.rate"),
        ({"drain_timeout": "inf"}, "drain_timeout"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_settings(None, repository=tmp_path, **fields)
