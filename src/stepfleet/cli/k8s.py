"""`stepfleet k8s`: manifests for the workers of targets, scaled by KEDA on their streams. Layer: cli."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import click

from stepfleet.address import check_redis_url
from stepfleet.cli.target import load_targets
from stepfleet.codec import Limits
from stepfleet.core.plan import Plan
from stepfleet.errors import SettingsError
from stepfleet.planning import make_plan
from stepfleet.settings import Settings
from stepfleet.storage.keys import Keys

#: Seconds beyond the drain timeout before Kubernetes kills: for threads that cannot be stopped.
MARGIN_S: Final = 15

_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")

_DEPLOYMENT: Final = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
  labels: {{app.kubernetes.io/name: {name}}}
spec:
  # No replicas: how many there are is KEDA's to say.
  selector:
    matchLabels: {{app.kubernetes.io/name: {name}}}
  template:
    metadata:
      labels: {{app.kubernetes.io/name: {name}}}
    spec:
      # Longer than the drain timeout: a worker that is killed earlier leaves its steps to a reclaim.
      terminationGracePeriodSeconds: {grace_s}
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        seccompProfile: {{type: RuntimeDefault}}
      containers:
        - name: worker
          image: {image}
          args: {args}
          env:
            - {{name: STEPFLEET_NAMESPACE, value: {namespace}}}
            - {{name: STEPFLEET_CONCURRENCY, value: "{concurrency}"}}
            - {{name: STEPFLEET_DRAIN_TIMEOUT, value: "{drain_s}"}}
            - name: STEPFLEET_REDIS_URL
              valueFrom: {{secretKeyRef: {{name: stepfleet-redis, key: url}}}}
            # The next two are for KEDA, which needs no more than `stepfleet acl --role viewer`.
            - name: REDIS_USERNAME
              valueFrom: {{secretKeyRef: {{name: stepfleet-redis, key: username, optional: true}}}}
            - name: REDIS_PASSWORD
              valueFrom: {{secretKeyRef: {{name: stepfleet-redis, key: password, optional: true}}}}
          # The file is touched while the event loop turns and the worker reads. A Redis that is away
          # does not make it stale: starting workers again would not bring it back.
          startupProbe:
            exec:
              command: [sh, -c, 'test -n "$(find /tmp/healthy -newermt "-30 seconds")"']
            periodSeconds: 2
            failureThreshold: 60
          readinessProbe:
            exec:
              command: [sh, -c, 'test -n "$(find /tmp/healthy -newermt "-30 seconds")"']
            periodSeconds: 10
            failureThreshold: 1
          livenessProbe:
            exec:
              command: [sh, -c, 'test -n "$(find /tmp/healthy -newermt "-30 seconds")"']
            periodSeconds: 10
            failureThreshold: 3
          resources:
            requests: {{cpu: 250m, memory: 128Mi}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
          volumeMounts:
            - {{name: tmp, mountPath: /tmp}}
      volumes:
        - {{name: tmp, emptyDir: {{}}}}
"""

_SCALED: Final = """\
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {name}
spec:
  scaleTargetRef: {{name: {name}}}
  {why}
  minReplicaCount: {least}
  maxReplicaCount: {most}
  triggers:
"""

_TRIGGER: Final = """\
    # {step}
    - type: redis-streams
      metadata:
        address: {address}
        databaseIndex: "{database}"
        enableTLS: "{tls}"
        usernameFromEnv: REDIS_USERNAME
        passwordFromEnv: REDIS_PASSWORD
        stream: {stream}
        streamLength: "{backlog}"
"""

_HEAD: Final = """\
# Made by `stepfleet k8s`: workers and, with KEDA installed, a scaler for each of their streams.
# An entry leaves its stream when its step is committed, so a stream's length is what waits and what
# runs. Beforehand:
#   kubectl create secret generic stepfleet-redis --from-literal=url=URL \\
#     [--from-literal=username=NAME] [--from-literal=password=PASSWORD]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Workers that run the same steps."""

    name: str
    arguments: Sequence[str]
    #: Stream -> the step that reads it.
    streams: Mapping[str, str]
    least: int


@click.command("k8s", short_help="Print Kubernetes manifests for the workers of targets.")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--image", required=True, help="Image with workflow-worker and the targets' code.")
@click.option("--name", default="workflow-worker", show_default=True, help="Name of the workers.")
@click.option("--split", metavar="A,B", default="", help="Steps with workers of their own.")
@click.option(
    "--redis-url",
    metavar="URL",
    default="redis://redis:6379/0",
    show_default=True,
    help="Where KEDA finds Redis; no password.",
)
@click.option("--namespace", metavar="NAME", help="The fleet on that server. [default]")
@click.option("--concurrency", metavar="N", help="Steps that a worker runs at once. [100]")
@click.option("--drain-timeout", metavar="TIME", help="How long steps may finish. [30s]")
@click.option(
    "--backlog", type=click.IntRange(1), help="Entries for each worker. [the concurrency]"
)
@click.option("--max-replicas", type=click.IntRange(1), default=10, show_default=True)
def k8s(
    targets: tuple[str, ...],
    *,
    image: str,
    name: str,
    split: str,
    redis_url: str,
    namespace: str | None,
    concurrency: str | None,
    drain_timeout: str | None,
    backlog: int | None,
    max_replicas: int,
) -> None:
    """Print a Deployment and a KEDA ScaledObject for workers of TARGETs (module:object).

    Steps in --split get a Deployment of their own, which is gone while they have nothing to do.
    No server is needed.
    """
    settings = Settings(namespace=namespace, concurrency=concurrency, drain_timeout=drain_timeout)
    if not _NAME.fullmatch(name):
        raise SettingsError(f"--name {name!r} is not 1 to 50 of a-z, 0-9 and -, from a letter on")
    redis = _redis(redis_url)
    plans = [
        make_plan(workflow, label, limits=Limits(), open_types=False)
        for label, workflow in load_targets(targets).items()
    ]
    drain_s = round(settings.drain_timeout.total_seconds())
    parts: list[str] = []
    for group in _groups(plans, targets, name, split, Keys(settings.namespace)):
        arguments = [*group.arguments, "--health-file", "/tmp/healthy"]  # noqa: S108 - a volume of the pod's own
        deployment = _DEPLOYMENT.format(
            name=group.name,
            image=json.dumps(image),
            args=json.dumps(arguments),
            namespace=json.dumps(settings.namespace),
            concurrency=settings.concurrency,
            drain_s=drain_s,
            grace_s=drain_s + MARGIN_S,
        )
        scaled = _SCALED.format(
            name=group.name, least=group.least, most=max_replicas, why=_why(group.least)
        )
        triggers = [
            _TRIGGER.format(
                step=step,
                stream=json.dumps(stream),
                backlog=backlog or settings.concurrency,
                **redis,
            )
            for stream, step in group.streams.items()
        ]
        parts += [deployment, scaled + "".join(triggers)]
    click.echo(_HEAD + "---\n".join(parts), nl=False)


def _redis(url: str) -> dict[str, str]:
    """Return what a trigger says of the server."""
    try:
        check_redis_url(url)
    except ValueError as error:
        raise SettingsError(f"--redis-url: {error}") from error
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        raise SettingsError("--redis-url: KEDA reaches a server by redis:// or rediss:// only")
    if parts.password:
        raise SettingsError(
            "--redis-url: leave the password out, the manifests would show it: it belongs into "
            "the Secret stepfleet-redis"
        )
    return {
        "address": json.dumps(f"{parts.hostname}:{parts.port or 6379}"),
        "database": parts.path.strip("/") or "0",
        "tls": "true" if parts.scheme == "rediss" else "false",
    }


def _groups(
    plans: Sequence[Plan], targets: Sequence[str], name: str, split: str, keys: Keys
) -> list[_Group]:
    """Return the workers of all steps but the split ones, then those of each split step."""
    streams = {
        keys.stream(route.workflow, route.type, route.step): route.step
        for plan in plans
        for route in plan.routes
    }
    apart = list(dict.fromkeys(step.strip() for step in split.split(",") if step.strip()))
    known = sorted(set(streams.values()))
    for step in apart:
        if step not in known:
            raise SettingsError(
                f"--split {step}: there is no such step. The steps are {', '.join(known)}"
            )
    rest = {stream: step for stream, step in streams.items() if step not in apart}
    if not rest:
        raise SettingsError("--split leaves no step for the workers that are always there")
    excluded = ["--exclude-steps", ",".join(apart)] if apart else []
    groups = [_Group(name=name, arguments=[*targets, *excluded], streams=rest, least=1)]
    for step in apart:
        own = {stream: one for stream, one in streams.items() if one == step}
        label = re.sub(r"[^a-z0-9]+", "-", step.lower()).strip("-")
        arguments = [*targets, "--steps", step]
        groups.append(_Group(name=f"{name}-{label}", arguments=arguments, streams=own, least=0))
    return groups


def _why(least: int) -> str:
    if least:
        return (
            "# One at least: back-off, waits and time-outs are no entries, and some worker has to be\n"
            "  # there for them."
        )
    return "# None while they have nothing to do: other workers look after what is due later."
