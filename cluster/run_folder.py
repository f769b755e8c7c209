"""A run's folder: who may use it. Everything that can be refused is refused here or in checks.py, before anything is started or written."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_pipeline.errors import UserError
from trainer import events, lease
from trainer.checkpoint.files import write_durably
from trainer.config import RunConfig, dump
from trainer.recipe_changes import Change, changes, check_continues

CONFIG = "config.yaml"
CONTROLLER = "lease/controller.json"


@dataclass(frozen=True)
class Residence:
    """Where a run's controller lives: the address of its Ray, the host, and the folder of that Ray when it is a private one."""

    address: str
    host: str
    ray_folder: str | None


def check(config: RunConfig, inside_job: bool) -> list[Change]:
    """The keys that have changed since the run's last start, and with which it goes on. Raises UserError when the folder cannot be this
    run's: relative inside a job, unwritable or another recipe's."""
    folder = config.run_folder
    if inside_job and not folder.is_absolute():
        raise UserError(
            f"run.root={config.run.root} is relative inside a Ray job, whose folder is temporary: "
            "give an absolute path that every node sees"
        )
    found = changed(config)
    check_continues(folder, found)
    if not (folder / CONFIG).exists() and folder.exists() and any(path.name != "lease" for path in folder.iterdir()):
        raise UserError(f"{folder} is not a run's folder: it has no {CONFIG} but is not empty; choose another run.root or run.name")
    check_writable(folder, "run.root")
    if isinstance(config.data_root, Path):
        check_writable(config.data_root, "data.root")
    return found


def changed(config: RunConfig) -> list[Change]:
    """What is different from the recipe that the folder's run was last started with; nothing for a new run."""
    path = config.run_folder / CONFIG
    return changes(read_config(path), config.model_dump(mode="json")) if path.exists() else []


def read_config(path: Path) -> dict[str, Any]:
    """A run's resolved recipe, with the defaults of keys that are newer than it. Raises UserError when the file is not one."""
    try:
        saved = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, dict):
        raise UserError(f"{path} is damaged: it is not a recipe; choose another run.name")
    with contextlib.suppress(ValidationError):  # another version's keys are told as differences
        return RunConfig.model_validate(saved).model_dump(mode="json")
    return saved


def check_free(folder: Path) -> None:
    """Raises UserError while the process that steers the run lives on this host. One on another host cannot be seen from here:
    it is taken over, and its next write is fenced off."""
    owner = lease.owner(folder)
    if owner and lease.is_alive(owner):
        raise UserError(f"run {folder} is live in process {owner.pid} on {owner.host}: stop it, or choose another run.name")


def check_writable(folder: Path, key: str) -> None:
    """Raises UserError naming the nearest existing parent that does not let us in. Leaves nothing behind."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    probe = parent / ".videomar-write-probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{parent} cannot be written ({error.strerror}): choose another {key}") from None


def take(config: RunConfig, restarted: bool = False) -> tuple[Path, int]:
    """(the run's folder, made if it is new; the generation number that makes this process its owner). `restarted`: in the place of an
    owner that Ray holds for dead, who may still be about; its writes are fenced off from here on."""
    folder = config.run_folder.absolute()
    if not restarted:
        check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, lease.draw(folder)


def keep_config(config: RunConfig) -> None:
    """Make the folder the run's for good: its config.yaml is that of its last start, and what that has changed is an event."""
    path = config.run_folder / CONFIG
    found = changed(config)
    if found:
        events.record(config.run_folder, "recipe", changed={change.key: [change.old, change.new] for change in found})
    if found or not path.exists():
        write_durably(path, dump(config))


def give_back(config: RunConfig, number: int) -> None:
    """After the run has ended: nobody steers it any more. A folder that has come to nothing goes. Of a run that somebody else has taken
    over (number: the last generation that was drawn here, 0 for none) nothing is touched."""
    folder = config.run_folder
    if not number or not lease.holds(folder, number):
        return
    (folder / CONTROLLER).unlink(missing_ok=True)
    if not (folder / CONFIG).exists():
        shutil.rmtree(folder / "lease", ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def note_residence(config: RunConfig, address: str, ray_folder: str | None) -> None:
    """Say where the run's controller can be found."""
    residence = Residence(address, socket.gethostname(), ray_folder)
    write_durably(config.run_folder / CONTROLLER, json.dumps(asdict(residence)))


def residence(config: RunConfig) -> Residence | None:
    """Where the run's controller was last; None when it has ended in order, or never begun."""
    try:
        return Residence(**json.loads((config.run_folder / CONTROLLER).read_text()))
    except (OSError, ValueError):
        return None
