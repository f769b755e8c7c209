"""A run's folder: who may use it. Everything that can be refused is refused here or in checks.py, before anything is started or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError
from trainer import lease
from trainer.checkpoint.files import write_durably
from trainer.config import RunConfig, dump, first_difference

CONFIG = "config.yaml"


def check(config: RunConfig, inside_job: bool) -> None:
    """Raises UserError when the folder cannot be this run's: relative inside a job, unwritable, another recipe's, or in use."""
    folder = config.run_folder
    if inside_job and not folder.is_absolute():
        raise UserError(
            f"run.root={config.run.root} is relative inside a Ray job, whose folder is temporary: "
            "give an absolute path that every node sees"
        )
    if (folder / CONFIG).exists():
        saved = read_config(folder / CONFIG)
        if difference := first_difference(saved, config.model_dump(mode="json")):
            raise UserError(
                f"{folder} was made by another recipe: {difference}; choose another run.name, or start with the old value to continue it"
            )
    elif folder.exists() and any(path.name != "lease" for path in folder.iterdir()):
        raise UserError(f"{folder} is not a run's folder: it has no {CONFIG} but is not empty; choose another run.root or run.name")
    check_free(folder)
    check_writable(folder, "run.root")
    if isinstance(config.data_root, Path):
        check_writable(config.data_root, "data.root")


def read_config(path: Path) -> dict[str, Any]:
    """A run's resolved recipe. Raises UserError when the file is not one."""
    try:
        saved = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, dict):
        raise UserError(f"{path} is damaged: it is not a recipe; choose another run.name")
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


def take(config: RunConfig) -> tuple[Path, int]:
    """(the run's folder, made with its config.yaml if it is new; the generation number that makes this process its owner)."""
    folder = config.run_folder.absolute()
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = lease.draw(folder)
    if not (folder / CONFIG).exists():
        write_durably(folder / CONFIG, dump(config))
    return folder, number
