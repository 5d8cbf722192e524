"""The files that start a training on a cluster: valid by their schemas, true of image and command."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from tests.docker.test_manifests import DOCKER, KSERVE, KUBERNETES, KUBERNETES_VERSION, of_kind

from onward.cli.train import command
from onward.model import save
from onward.nn import zoo

FOLDER = DOCKER / "kubernetes" / "training"
SBATCH = DOCKER / "slurm" / "train.sbatch"
SCHEMA = json.loads((Path(__file__).parent / "kubeflow_schema.json").read_text())
DOCUMENTS = {
    document["kind"]: document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}


def check(document: Any) -> None:
    """A document by the schema of its kind, and the templates in it by Kubernetes' own."""
    schema = {**SCHEMA["kinds"][document["kind"]], "definitions": SCHEMA["definitions"]}
    jsonschema.Draft7Validator(schema).validate(document)
    for kind, version, template in templates(document):
        wrapped = {"apiVersion": version, "kind": kind, "metadata": {"name": "checked"}, **template}
        kubernetes_validate.validate(wrapped, KUBERNETES_VERSION, strict=True)


def templates(document: Any) -> Iterator[tuple[str, str, Any]]:
    if document["kind"] == "ClusterTrainingRuntime":
        for job in document["spec"]["template"]["spec"]["replicatedJobs"]:
            yield "Job", "batch/v1", {"spec": job["template"]["spec"]}
    elif document["kind"] == "MPIJob":
        for replica in document["spec"]["mpiReplicaSpecs"].values():
            yield "PodTemplate", "v1", {"template": replica["template"]}


def pods() -> dict[str, tuple[Any, Any]]:
    """By name: what starts mpirun and what waits for ranks, of either operator."""
    jobs = DOCUMENTS["ClusterTrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    trainer = {job["name"]: job["template"]["spec"]["template"]["spec"] for job in jobs}
    replicas = DOCUMENTS["MPIJob"]["spec"]["mpiReplicaSpecs"]
    operator = {name: replica["template"]["spec"] for name, replica in replicas.items()}
    return {
        "ClusterTrainingRuntime": (trainer["launcher"], trainer["node"]),
        "MPIJob": (operator["Launcher"], operator["Worker"]),
    }


def test_the_operators_take_their_files() -> None:
    assert set(DOCUMENTS) == {"ClusterTrainingRuntime", "Job", "MPIJob", "TrainJob"}
    for document in DOCUMENTS.values():
        if document["kind"] == "Job":
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        else:
            check(document)


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("TrainJob", "spec.trainer.nodes", 3),
        ("TrainJob", "spec.trainer.numProcPerNode", "auto"),
        ("ClusterTrainingRuntime", "spec.mlPolicy.mpi.mpiImplementation", "LAM"),
        ("ClusterTrainingRuntime", "spec.template.spec.replicatedJobs.0.template.spec.backofLimit", 1),
        ("MPIJob", "spec.mpiReplicaSpecs.Workers", {}),
        ("MPIJob", "spec.mpiReplicaSpecs.Worker.template.spec.containers.0.comand", ["node"]),
        ("MPIJob", "apiVersion", "kubeflow.org/v1"),
    ],
)
def test_a_mistake_in_them_is_found(kind: str, path: str, wrong: Any) -> None:
    document = copy.deepcopy(DOCUMENTS[kind])
    *steps, last = path.split(".")
    place = document
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    place[last] = wrong
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)


def training_options(arguments: list[str]) -> dict[str, Any]:
    """What `onward train` makes of arguments; a command that is misspelt raises."""
    assert arguments[:2] == ["onward", "train"]
    app = typer.Typer(add_completion=False)
    app.command("train")(command)
    parsed = typer.main.get_command(app).make_context("train", list(arguments[2:]))
    return dict(parsed.params)


def test_their_commands_are_ones_that_onward_takes() -> None:
    launcher, _ = pods()["MPIJob"]
    trainer = DOCUMENTS["TrainJob"]["spec"]["trainer"]
    for container in (launcher["containers"][0], trainer):
        assert container["command"][:2] == ["node", "mpirun"]
        options = training_options(container["args"])
        assert options["resume"] == Path("auto")
        assert options["threads"] == int(launcher["containers"][0]["resources"]["limits"]["cpu"])


def test_both_ask_for_as_many_ranks_on_the_same_image() -> None:
    spec = DOCUMENTS["MPIJob"]["spec"]
    assert spec["runLauncherAsWorker"]
    nodes = 1 + spec["mpiReplicaSpecs"]["Worker"]["replicas"]
    assert DOCUMENTS["TrainJob"]["spec"]["trainer"]["numNodes"] == nodes
    reference = DOCUMENTS["TrainJob"]["spec"]["runtimeRef"]
    runtime = DOCUMENTS["ClusterTrainingRuntime"]
    assert reference["name"] == runtime["metadata"]["name"]
    assert reference["apiGroup"] == runtime["apiVersion"].partition("/")[0]


def test_they_name_what_the_image_has() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    sshd = (DOCKER / "mpi" / "sshd_config").read_text()
    ssh = (DOCKER / "mpi" / "ssh_config").read_text()
    mounts = {
        DOCUMENTS["MPIJob"]["spec"]["sshAuthMountPath"],
        DOCUMENTS["ClusterTrainingRuntime"]["spec"]["mlPolicy"]["mpi"]["sshAuthMountPath"],
    }
    (mount,) = mounts
    assert f"HostKey {mount}/id_rsa" in sshd
    assert f"AuthorizedKeysFile {mount}/authorized_keys" in sshd
    assert f"IdentityFile {mount}/id_rsa" in ssh
    (port,) = re.findall(r"^Port (\d+)$", sshd, re.MULTILINE)
    assert f"Port {port}" in ssh
    for launcher, node in pods().values():
        first, second = launcher["containers"][0], node["containers"][0]
        assert second["readinessProbe"]["tcpSocket"]["port"] == int(port)
        assert f"COPY docker/mpi/node.sh /usr/local/bin/{second['command'][0]}" in dockerfile
        alike = {"name", "command", "args", "readinessProbe"}
        assert {k: v for k, v in first.items() if k not in alike} == {
            k: v for k, v in second.items() if k not in alike
        }
        assert {k: v for k, v in launcher.items() if k != "containers"} == {
            k: v for k, v in node.items() if k != "containers"
        }
        assert launcher["securityContext"]["fsGroup"] == launcher["securityContext"]["runAsUser"] == 10001
        assert first["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def batch(folder: Path, code: int, *arguments: str) -> tuple[int, list[str]]:
    """The Slurm script with programs in the place of Slurm's, and what it called."""
    calls = folder / "calls"
    for name, result in (("srun", code), ("scontrol", 0)):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\nexit {result}\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SBATCH), *arguments],
        env={
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "4",
        },
        cwd=folder,
    )
    return done.returncode, calls.read_text().splitlines()


def test_the_slurm_script_starts_ranks_that_go_on_by_themselves(tmp_path: Path) -> None:
    code, (called,) = batch(tmp_path, 0, "lenet5", "--data", "npz:digits.npz", "--epochs", "12")
    assert code == 0
    words = shlex.split(called)
    options = training_options(words[words.index("onward") :])
    assert options["resume"] == Path("auto")
    assert options["checkpoint"] == Path("onward-7.ckpt")
    assert options["threads"] == 4


def test_the_slurm_script_is_queued_again_when_it_had_to_stop(tmp_path: Path) -> None:
    (tmp_path / "stopped").mkdir()
    code, called = batch(tmp_path / "stopped", 130, "lenet5")
    assert code == 130
    assert called[1:] == ["scontrol requeue 7"]
    (tmp_path / "wrong").mkdir()
    code, called = batch(tmp_path / "wrong", 2, "lenet5")
    assert code == 2
    assert len(called) == 1


def promote(folder: Path, trained: Path) -> subprocess.CompletedProcess[str]:
    """Run what the promotion's container runs, on folders of this machine."""
    (container,) = DOCUMENTS["Job"]["spec"]["template"]["spec"]["containers"]
    program = folder / "onward"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m onward "$@"\n')
    program.chmod(0o755)
    return subprocess.run(
        [*container["command"], *container["args"]],
        env={
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "TRAINED": str(trained),
            "SERVED": str(folder / "models" / "digits"),
        },
        capture_output=True,
        text=True,
    )


def test_what_was_trained_becomes_the_next_version(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    save(zoo.mlp(3, input_shape=(4,)).model, trained / "model.onnx")
    first = promote(tmp_path, trained)
    assert first.returncode == 0, first.stderr
    versions = tmp_path / "models" / "digits"
    assert [path.name for path in versions.iterdir()] == ["1"]
    (versions / ".withdrawn-4").mkdir()
    (versions / "config.toml").touch()
    assert promote(tmp_path, trained).stdout.splitlines()[-1] == str(versions / "5")
    assert (versions / "5" / "model.onnx").read_bytes() == (trained / "model.onnx").read_bytes()
    (trained / "model.onnx").write_bytes(b"no model")
    assert promote(tmp_path, trained).returncode != 0
    assert {path.name for path in versions.iterdir()} == {"1", "5", ".withdrawn-4", "config.toml"}


def test_a_promotion_is_seen_by_what_serves() -> None:
    pod = DOCUMENTS["Job"]["spec"]["template"]["spec"]
    claims = {
        volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]
    }
    deployment = of_kind(KUBERNETES, "Deployment")["spec"]["template"]["spec"]
    served = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in deployment["volumes"]}
    assert claims["models"] == served["models"]
    assert claims["work"] == pods()["MPIJob"][0]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    written = DOCUMENTS["TrainJob"]["spec"]["trainer"]["args"]
    (container,) = pod["containers"]
    trained = next(entry["value"] for entry in container["env"] if entry["name"] == "TRAINED")
    assert f"--output={trained.removeprefix('/work/')}/model.onnx" in written
    runtime = of_kind(KSERVE, "ServingRuntime")["spec"]["containers"][0]
    for server in (runtime, deployment["containers"][0]):
        assert {"name": "ONWARD_SERVER_MODEL_CONTROL", "value": "poll"} in server["env"]
