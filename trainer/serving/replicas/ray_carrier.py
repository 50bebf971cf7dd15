"""Replicas as deployments of Ray Serve, one deployment for each base, and the carrier that brings pictures to them.

Pictures are routed by Ray Serve's consistent hashing over `session_id`: a LoRA's pictures go to one replica, to the
next on the ring where that one is full, and a replica that comes or goes moves its own share of LoRAs only. That is
routing with bounded loads (arXiv 1608.01350) by what a replica may hold. `multiplexed_model_id` was not taken: its
router wants the model to be loaded through Serve's own cache, and knows one model of a request where a stack has
several.

Nothing of Serve listens for requests: its proxies stay off, and only handles of this process call replicas. Imported
only once `ray_access` has said how Ray may be used.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, ProxyLocation
from ray.serve.exceptions import RayServeException

from trainer.errors import RunError
from trainer.render.spreading.cluster import ENVIRONMENT, Layout
from trainer.render.spreading.sent_files import SentFiles
from trainer.serving.replicas.carrier import Lost
from trainer.serving.replicas.messages import About, Plan, Sent, Told
from trainer.serving.replicas.remote import BATCHES_AHEAD
from trainer.serving.replicas.replica import Replica
from trainer.serving.replicas.wanted_replicas import Replicas

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_OVER_MEAN = 1.25  # of what a replica is given on the mean, before its pictures go to the next
_LOOK_S = 1.0
_ABOUT_S = 120.0
_HEALTH_S, _UNHEALTHY_S = 5.0, 60.0
_MOST_STARTS = 3
_GROW_S = 5.0
_REPLICA = "replica"


class RayReplica(Replica):
    """A replica in a process that Ray Serve started."""

    async def draw(self, sent: Sent, contents: dict[str, Any]) -> AsyncIterator[Told]:
        """News of a picture; `contents` are references to files by their sha256, fetched only where they lack."""
        async with aclosing(self.news(sent, lambda sha256: bytes(ray.get(contents[sha256])))) as news:
            async for told in news:
                yield told

    def check_health(self) -> None:
        """Asked by Ray Serve, which puts another replica in the place of a replica that raises. Raises: RunError."""
        if not self.is_alive:
            raise RunError("the drawing thread of this replica has died.")


class _RayCall:
    """A picture at a replica, by Ray Serve's streaming call."""

    def __init__(self, response: Any) -> None:
        self._response = response

    async def news(self) -> AsyncIterator[Told]:
        try:
            async for told in self._response:
                yield told
        except RayTaskError as error:  # our own mistake there, with the replica's traceback
            raise RuntimeError(str(error)[-4000:]) from None
        except (RayError, RayServeException) as error:
            raise Lost(" ".join(str(error).split())[:300]) from None

    def cancel(self) -> None:
        self._response.cancel()


class RayCarrier:
    """Deploys the replicas of some bases and brings pictures to them."""

    def __init__(self, name: str, plans: dict[str, Plan], layout: Layout, replicas: Replicas) -> None:
        """Returns when each base has its least number of `replicas`. `plans` are by base.

        Raises: RunError if replicas don't start.
        """
        self._files = SentFiles()
        self._apps = {base: f"{name}-{number}" for number, base in enumerate(plans)}
        self._handles: dict[str, Any] = {}
        self._num_replicas = dict.fromkeys(plans, 0)
        self._is_ended = threading.Event()
        self._looking = threading.Thread(target=self._look_now_and_then, name="counting replicas", daemon=True)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location=ProxyLocation.Disabled)
        for base, plan in plans.items():
            try:
                app = _deployment(plan, layout, replicas).bind(plan)
                self._handles[base] = serve.run(app, name=self._apps[base], route_prefix=None)
            except (RuntimeError, RayError) as error:
                self.end()
                raise RunError(f"no replica of {base[:200]!r} starts: {_reason(self._message(base), error)}") from None
        # Counted before anybody asks.
        self._look()
        self._looking.start()

    def about(self) -> dict[str, About]:
        """What a LoRA must fit, by base. Raises: RunError."""
        try:
            return {base: handle.about.remote().result(timeout_s=_ABOUT_S) for base, handle in self._handles.items()}
        except (RayError, RayServeException, TimeoutError) as error:
            raise RunError(f"the replicas don't answer: {str(error)[:300]}") from None

    def num_replicas(self, base: str) -> int:
        return self._num_replicas[base]

    def digest(self, path: Path) -> str:
        return self._files.digest(path)

    async def call(self, base: str, key: str, sent: Sent, places: dict[str, Path]) -> _RayCall:
        # Files are read and handed to Ray beside the loop, which others need.
        contents = {
            sha256: await asyncio.to_thread(self._files.content, path, sha256) for sha256, path in places.items()
        }
        handle = self._handles[base].options(method_name="draw", stream=True, session_id=key)
        return _RayCall(handle.remote(sent, contents))

    def end(self) -> None:
        """Take the deployments down."""
        self._is_ended.set()
        if self._looking.is_alive():  # to ask Ray Serve after Ray has ended would start it again
            self._looking.join()
        # The cluster may be gone already.
        for name in self._apps.values():
            with suppress(RuntimeError, RayError, RayServeException):
                serve.delete(name)

    def _look_now_and_then(self) -> None:
        while not self._is_ended.wait(_LOOK_S):
            with suppress(RayError, RayServeException, RuntimeError):  # Serve's controller is being started again
                self._look()

    def _look(self) -> None:
        """Count the replicas that run."""
        apps = serve.status().applications
        for base, name in self._apps.items():
            if name in apps:
                states = apps[name].deployments[_REPLICA].replica_states
                self._num_replicas[base] = sum(num for state, num in states.items() if state == "RUNNING")

    def _message(self, base: str) -> str:
        """What Ray Serve says of a base's replicas."""
        with suppress(RayError, RayServeException, RuntimeError, KeyError):
            return str(serve.status().applications[self._apps[base]].deployments[_REPLICA].message)
        return ""


def _deployment(plan: Plan, layout: Layout, replicas: Replicas) -> Any:
    """How the replicas of a base are run."""
    batch = plan.settings.batch_pictures
    autoscaling = AutoscalingConfig(
        min_replicas=replicas.least,
        initial_replicas=replicas.least,
        max_replicas=replicas.most,
        target_ongoing_requests=batch,
        upscale_delay_s=_GROW_S,
        downscale_delay_s=replicas.shrink_s,
    )
    return serve.deployment(
        RayReplica,
        name=_REPLICA,
        autoscaling_config=autoscaling,
        max_ongoing_requests=math.ceil(_OVER_MEAN * BATCHES_AHEAD * batch),
        ray_actor_options={
            "num_cpus": layout.num_cpus,
            "num_gpus": layout.num_gpus,
            "runtime_env": {"env_vars": ENVIRONMENT},
        },
        request_router_config={"request_router_class": _ROUTER},
        graceful_shutdown_timeout_s=plan.settings.drain_s,
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_UNHEALTHY_S,
        max_constructor_retry_count=_MOST_STARTS,
        logging_config={"enable_access_log": False},
    )


def _reason(message: str, error: BaseException) -> str:
    """Why a replica doesn't start, as its last line of a traceback says it."""
    lines = [line.strip() for line in (message or str(error)).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error:" in line), lines[-1] if lines else "")[:600]
