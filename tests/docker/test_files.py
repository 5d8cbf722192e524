"""What can be said of the image's files without an engine; docker/check.sh builds and runs them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: keyword, rest; comments gone, continuations joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "docker/Dockerfile").read_text(), flags=re.M)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def stages(instructions: list[tuple[str, str]]) -> dict[str, tuple[str, dict[str, str]]]:
    """By name, in order: what a stage stands on, and its instructions; one without a name is the default."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for keyword, rest in instructions:
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = base, {}
        elif found:
            list(found.values())[-1][1][keyword] = rest
    return found


def test_no_frontend_image_is_pulled() -> None:
    assert not re.search(r"^#\s*syntax\s*=", (ROOT / "docker/Dockerfile").read_text(), flags=re.M)


def test_stages_stand_on_the_base_that_is_given_or_on_one_another(
    instructions: list[tuple[str, str]],
) -> None:
    found = stages(instructions)
    assert {base for base, _ in found.values()} - found.keys() == {"${BASE_IMAGE}"}
    assert list(found)[-1] == ""
    assert found[""] == ("onward", {})


def test_a_node_of_an_mpi_job_is_unprivileged(instructions: list[tuple[str, str]]) -> None:
    base, node = stages(instructions)["mpi"]
    assert base == "onward"
    assert node["USER"] == "10001:10001"
    assert node["CMD"] == '["node"]'


def test_the_image_is_an_unprivileged_executable(instructions: list[tuple[str, str]]) -> None:
    _, image = stages(instructions)["onward"]
    assert image["USER"] == "10001:10001"
    assert image["ENTRYPOINT"] == '["onward"]'
    assert image["CMD"] == '["serve"]'
    assert image["STOPSIGNAL"] == "SIGTERM"
    assert 'CMD ["python", "-m", "onward_server.healthcheck"]' in image["HEALTHCHECK"]


def test_the_entry_point_is_a_script_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "onward" in project["scripts"]
    assert "serve" in project["entry-points"]["onward.commands"]


def test_the_build_context_holds_what_the_wheel_is_made_of() -> None:
    allowed = [
        line[1:].removesuffix("/**")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*packages, "pyproject.toml", pyproject["project"]["readme"]} <= set(allowed)
    assert [path for path in allowed if not (ROOT / path).exists()] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_check_is_a_script_that_parses() -> None:
    script = ROOT / "docker/check.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_check_refuses_an_unknown_option() -> None:
    done = subprocess.run(["bash", "docker/check.sh", "--nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
