"""The `train` command: refuse what can be refused before anything is started, then start the run's controller and follow it to the end.
Where the run is live it is attached to instead."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from cluster import attach, run_folder, session, torchrun
from cluster import dataset as datasets
from cluster.checks import check_initial, check_stages
from cluster.controller import End, Order
from cluster.progress import Terminal
from trainer import config as configs
from trainer import sinks, weights
from trainer.config import RunConfig
from trainer.recipe_changes import Change

HELP = """usage: python trainer/main.py [train] [key=value ...]

Encode the videos if that is to be done, train through the curriculum, sample, write report.html. The same command again continues the run,
or attaches to it while it lives.

examples:
  python trainer/main.py train data.videos=/path/to/videos
  python trainer/main.py train recipe=my-recipe.yaml run.name=second train.lr=5e-4

Keys are those of the recipe: see README.md, Recipes and keys."""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """The run's exit code. The process that has started a run stops it when it is stopped itself; one that has attached leaves it alone."""
    config, terminal = weights.resolved(configs.load(arguments)), Terminal()
    sinks.check(config.metrics)
    if config.cluster.launcher == "torchrun":
        return torchrun.command(config, environment)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment
    changed = run_folder.check(config, inside_job)
    address = config.cluster.address or environment.get("RAY_ADDRESS") or ("auto" if inside_job else None)
    try:
        end = attached(config, terminal) or started(config, changed, address, terminal)
    finally:
        terminal.end()
    return attach.result(end)


def attached(config: RunConfig, terminal: Terminal) -> End | None:
    """The end of the run that lives on this host, in whatever Ray; None when there is none."""
    home = attach.residence(config)
    if home is None:
        return None
    with contextlib.suppress(session.Unreachable), session.connect(home.address, 0, home.ray_folder):
        if actor := attach.find(config):
            return watched(actor, terminal, config.run_folder)
    return None


def started(config: RunConfig, changed: Sequence[Change], address: str | None, terminal: Terminal) -> End:
    """The end of the run, from its controller's start on, unless it lives already in the Ray that is joined. changed: since it was last
    started."""
    check_stages(config)
    matched = check_initial(config, datasets.encode_spec(config))
    datasets.find_all(config)
    with session.connect(address, config.cluster.workers * config.cluster.cpus_per_worker) as ray_session:
        if actor := attach.find(config):
            return watched(actor, terminal, config.run_folder)
        terminal.say(
            f"ray   {'started' if ray_session.private else 'joined'} in {ray_session.seconds:.1f} s, "
            f"{config.cluster.workers} workers of {config.cluster.cpus_per_worker} CPUs"
        )
        for change in changed:
            terminal.say(f"recipe changed since the last start: {change}")
        return steered(Order(config, matched, str(Path.cwd()), ray_session.folder), terminal, ray_session.private)


def watched(actor: ActorHandle, terminal: Terminal, run: Path) -> End:
    """The end of a run that another process has started; stopping this process only detaches it."""
    try:
        terminal.say("the run is live: attached to it, Ctrl-C detaches")
        return attach.follow(actor, terminal, run)
    except (KeyboardInterrupt, SystemExit):
        terminal.say("detached: the run goes on; the same command attaches again, and stop in the place of train ends it")
        return End(0)


def steered(order: Order, terminal: Terminal, private: bool) -> End:
    """The end of the run that this process starts, and that stops with it."""
    actor = None
    try:
        actor = attach.start(order)
        return attach.follow(actor, terminal, order.config.run_folder)
    except BaseException:
        actor = actor or attach.find(order.config)  # Ctrl-C may come when it has been made and not yet been handed over
        if actor:
            try:
                ray.get(actor.stop.remote())
            except RayActorError:
                ray.kill(actor, no_restart=True)
        raise
    finally:
        if private and actor:
            attach.say_farewell(actor)
