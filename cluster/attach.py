"""From the command to the run's controller: find the one that lives, or start one, and follow it to its end.

A run has at most one controller in a Ray, by its name; whoever starts the run again attaches to it.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError

from cluster import run_folder, session
from cluster.controller import Controller, End, Order
from cluster.progress import Terminal
from cluster.run_folder import Residence
from trainer.config import RunConfig
from trainer.status import has_finished

NAMESPACE = "videomar"
# Where a controller lives: with Ray's head, without which it could do nothing; any other node may be cut off from it. A share of what
# only a head has, for Ray places an actor that reserves nothing wherever it likes, and a head that is made anew is another node.
HOME = {"node:__internal_head__": 0.001}
CALLS = 32  # that a controller answers at once: followers wait in it
RETRY_SECONDS = 0.5
FAREWELL_SECONDS = 3.0  # that a private Ray outlives its run for others who follow


def name_of(config: RunConfig) -> str:
    """The actor's name."""
    return f"run:{config.run_folder.absolute()}"


def residence(config: RunConfig) -> Residence | None:
    """The Ray of this host in which the run's controller lives, if there is one that answers."""
    found = run_folder.residence(config)
    return found if found and found.host == socket.gethostname() and session.answers(found.address) else None


def find(config: RunConfig) -> ActorHandle | None:
    """The controller of the live run in the Ray that is joined."""
    try:
        actor = ray.get_actor(name_of(config), namespace=NAMESPACE)
        ended = ray.get(actor.status.remote())["ended"]
    except (ValueError, RayActorError):
        return None
    if ended:  # it only lingers for those who followed it
        ray.kill(actor, no_restart=True)
        return None
    return actor


def start(order: Order) -> ActorHandle:
    """A controller for the run; whoever comes at the same time gets the same one."""
    actor: Any = ray.remote(Controller)
    # However often it dies Ray makes it again; that it stops where this leads nowhere is its own work (resumption.check_lives).
    options = {"name": name_of(order.config), "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "max_restarts": -1}
    return actor.options(**options, num_cpus=0, resources=HOME, max_concurrency=CALLS).remote(order)


def follow(actor: ActorHandle, terminal: Terminal, run: Path) -> End:
    """Print what the controller tells until the run has ended. Outlives a controller that Ray starts again; where it is gone for good, the
    run's folder says whether it had finished."""
    follower, life, seen, lost = uuid.uuid4().hex, "", 0, False
    try:
        while True:
            try:
                life, seen, news, end = ray.get(actor.follow.remote(follower, life, seen))
            except RayActorError as error:
                if isinstance(error, ActorDiedError):  # not one of which Ray makes another
                    reason = f"the run's controller has ended: {str(error).strip().splitlines()[-1]}"
                    return End(0) if has_finished(run) else End(1, reason)
                if not lost:
                    terminal.say("the controller is lost; Ray starts it again, and the run goes on from its folder")
                lost = True
                time.sleep(RETRY_SECONDS)
                continue
            lost = False
            for kind, text in news:
                (terminal.say if kind == "say" else terminal.show)(text)
            if end:
                return end
    except BaseException:
        actor.leave.remote(follower)
        raise


def say_farewell(actor: ActorHandle) -> None:
    """Wait until whoever else follows has heard of the end: their Ray goes with this process. Nobody waits for one that is gone."""
    deadline = time.monotonic() + FAREWELL_SECONDS
    with contextlib.suppress(RayActorError):
        while time.monotonic() < deadline and ray.get(actor.followers.remote()):
            time.sleep(RETRY_SECONDS / 5)


def result(end: End) -> int:
    """The exit code, after the line for errors."""
    if end.error:
        print(end.error.rstrip(), file=sys.stderr)
    return end.code
