"""The manifests of `stepfleet k8s`: valid, drained in time, scaled on streams that there are."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from examples.hello.workflow import JokeFlow
from stepfleet.cli.k8s import k8s
from stepfleet.codec import Limits
from stepfleet.errors import SettingsError
from stepfleet.planning import make_plan
from stepfleet.settings import Settings
from stepfleet.storage.keys import Keys

ROOT = Path(__file__).parents[2]
TARGET = "examples.hello.workflow:JokeFlow"
#: What KEDA takes; kubernetes-validate knows Kubernetes' own kinds only.
SCALED_OBJECT = json.loads((Path(__file__).parent / "scaledobject.schema.json").read_text())


def printed(*options: str) -> str:
    done = CliRunner().invoke(k8s, [TARGET, "--image", "stepfleet-worker:latest", *options])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def manifests(*options: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(printed(*options)))


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return deployment["spec"]["template"]["spec"]


def variables(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod(deployment)["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def streams(scaled: dict[str, Any]) -> list[str]:
    return [trigger["metadata"]["stream"] for trigger in scaled["spec"]["triggers"]]


def test_the_file_in_the_project_is_what_the_command_prints() -> None:
    assert (ROOT / "workers/kubernetes/worker.yaml").read_text() == printed()


def lint(manifest: dict[str, Any]) -> None:
    if manifest["kind"] == "ScaledObject":
        jsonschema.validate(manifest, SCALED_OBJECT)
    else:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--split", "judge", "--name", "joker", "--namespace", "shop", "--backlog", "5"),
        ("--redis-url", "rediss://redis.shop:6380/2", "--drain-timeout", "2m"),
    ],
)
def test_every_manifest_is_what_its_kind_may_be(options: tuple[str, ...]) -> None:
    for manifest in manifests(*options):
        lint(manifest)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("Deployment", lambda spec: spec.update(replica=2)),
        ("Deployment", lambda spec: spec["template"]["spec"]["containers"][0].pop("name")),
        ("ScaledObject", lambda spec: spec.update(minReplicas=1)),
        ("ScaledObject", lambda spec: spec["scaleTargetRef"].pop("name")),
        ("ScaledObject", lambda spec: spec["triggers"][0]["metadata"].update(streamLength=5)),
        ("ScaledObject", lambda spec: spec["triggers"][0]["metadata"].update(consumerGroup="w")),
    ],
)
def test_a_manifest_that_is_none_is_found(
    kind: str, spoil: Callable[[dict[str, Any]], object]
) -> None:
    (manifest,) = [copy.deepcopy(one) for one in manifests() if one["kind"] == kind]
    spoil(manifest["spec"])

    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        lint(manifest)


def test_a_deployment_and_the_scaler_that_names_it_come_in_a_pair() -> None:
    deployment, scaled = manifests("--name", "joker", "--max-replicas", "7")

    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    assert deployment["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"] == "joker"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (1, 7)
    assert "replicas" not in deployment["spec"], "it would fight with the scaler"


def test_a_worker_is_not_killed_while_it_drains() -> None:
    deployment, _ = manifests("--drain-timeout", "2m")

    assert pod(deployment)["terminationGracePeriodSeconds"] >= 120 + 10
    drain = Settings(drain_timeout=variables(deployment)["STEPFLEET_DRAIN_TIMEOUT"]).drain_timeout
    assert drain.total_seconds() == 120


def test_every_stream_of_a_step_is_a_trigger_of_its_own() -> None:
    _, scaled = manifests("--namespace", "shop", "--backlog", "5")

    plan = make_plan(JokeFlow(), "JokeFlow", limits=Limits(), open_types=False)
    keys = Keys("shop")
    expected = [keys.stream(route.workflow, route.type, route.step) for route in plan.routes]
    assert streams(scaled) == expected
    assert {one["type"] for one in scaled["spec"]["triggers"]} == {"redis-streams"}
    assert {one["metadata"]["streamLength"] for one in scaled["spec"]["triggers"]} == {"5"}


def test_metadata_of_a_trigger_is_text_as_keda_wants_it() -> None:
    _, scaled = manifests("--redis-url", "rediss://redis.shop:6380/2")

    for trigger in scaled["spec"]["triggers"]:
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert trigger["metadata"] | {"stream": "", "streamLength": ""} == {
            "address": "redis.shop:6380",
            "databaseIndex": "2",
            "enableTLS": "true",
            "usernameFromEnv": "REDIS_USERNAME",
            "passwordFromEnv": "REDIS_PASSWORD",
            "stream": "",
            "streamLength": "",
        }


def test_split_steps_have_workers_of_their_own_that_may_all_go() -> None:
    rest, rest_scaled, judge, judge_scaled = manifests("--split", "judge")

    def arguments(deployment: dict[str, Any]) -> list[str]:
        return pod(deployment)["containers"][0]["args"]

    assert arguments(rest)[:3] == [TARGET, "--exclude-steps", "judge"]
    assert arguments(judge)[:3] == [TARGET, "--steps", "judge"]
    assert judge["metadata"]["name"] == "workflow-worker-judge"
    assert streams(judge_scaled) == ["{default:0}:s:JokeFlow:JokeWritten:judge"]
    assert not set(streams(rest_scaled)) & set(streams(judge_scaled))
    assert judge_scaled["spec"]["minReplicaCount"] == 0
    assert rest_scaled["spec"]["minReplicaCount"] == 1


def test_a_pod_has_no_rights_that_a_worker_does_not_need() -> None:
    deployment, _ = manifests()
    (container,) = pod(deployment)["containers"]

    assert pod(deployment)["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert variables(deployment)["STEPFLEET_REDIS_URL"]["secretKeyRef"]["name"] == "stepfleet-redis"


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_tells_a_fresh_health_file_from_a_stale_one(probe: str, tmp_path: Path) -> None:
    deployment, _ = manifests()
    (container,) = pod(deployment)["containers"]
    shell, option, script = container[probe]["exec"]["command"]
    health = tmp_path / "healthy"
    script = script.replace(container["args"][-1], str(health))

    def code() -> int:
        done = subprocess.run([shell, option, script], stderr=subprocess.DEVNULL, check=False)
        return done.returncode

    assert code() == 1
    health.touch()
    assert code() == 0
    subprocess.run(["touch", "-d", "31 seconds ago", health], check=True)
    assert code() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "nope"], "--split nope: there is no such step. The steps are judge, write"),
        (["--split", "judge,write"], "--split leaves no step"),
        (["--redis-url", "redis://:secret@r:6379"], "leave the password out"),
        (["--redis-url", "unix:///tmp/r.sock"], "by redis:// or rediss:// only"),
        (["--name", "My_Worker"], "--name 'My_Worker' is not 1 to 50"),
    ],
)
def test_what_cannot_be_made_is_said(options: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as refused:
        printed(*options)

    assert ":secret" not in str(refused.value)
