"""The `stop` command: end a live run in order, from wherever its folder and its Ray can be reached. Takes the recipe's keys, as `train`
does."""

from __future__ import annotations

import ray

from cluster import attach, session
from data_pipeline.errors import UserError
from trainer import config as configs

HELP = """usage: python trainer/main.py stop [key=value ...]

End a live run in order, with a commit of its last step. It is named by the keys with which it was started.

examples:
  python trainer/main.py stop
  python trainer/main.py stop run.root=/shared/runs run.name=second

Keys are those of the recipe: see README.md, Recipes and keys."""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """0 once the run has committed its last step and ended. Raises UserError when it is not live."""
    config = configs.load(arguments)
    home = attach.residence(config)
    address = home.address if home else config.cluster.address or environment.get("RAY_ADDRESS")
    absent = UserError(f"no run is live in {config.run_folder}: name it as it was started, with run.root, run.name and cluster.address")
    if address is None:
        raise absent
    with session.connect(address, 0, home.ray_folder if home else None):
        actor = attach.find(config)
        if actor is None:
            raise absent
        ray.get(actor.stop.remote())
    print("stopped; the command that started the run continues it from its last commit")
    return 0
