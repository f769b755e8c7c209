"""`export`: a run's model as a folder to share: weights, configuration, tokenizer, latent statistics and a model card."""

from __future__ import annotations

from pathlib import Path

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.text import FILE as TEXT_FILE
from model import export
from trainer.commands.options import Options
from trainer.events import read_events, standing
from trainer.inspection.card import card
from trainer.inspection.trained import CODEC_FOLDER, FILE, Trained, description, open_trained
from trainer.metrics import read_metrics

EXAMPLE = """  python trainer/main.py export runs/toy -o exported --license apache-2.0
  python trainer/main.py sample exported --image cat.png --text "a cat" -o out.mp4
In Python, without Ray or DeepSpeed: from model import export; model = export.load("exported")"""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Write the folder; its videomar.json, without which it is not taken for whole, comes last."""
    options = parser().read(arguments)
    check_folder(options.out)
    trained = open_trained(options.model)
    if trained.training is None:
        raise UserError(f"{options.model} is an exported folder already: copy it")
    write(trained, options.out, options.license)
    print(f"exported step {trained.training.commit.state.step} of {trained.training.run} to {options.out}")
    return 0


def parser() -> Options:
    options = Options("export", "Write a trained model as a folder that anyone can load.", EXAMPLE)
    options.add_argument("model", type=Path, help="a run's folder, or a checkpoint's")
    options.add_argument("-o", "--out", type=Path, default=Path("exported"), metavar="FOLDER", help="default: exported")
    options.add_argument("--license", default="other", metavar="ID", help="of the weights, for the model card, e.g. apache-2.0")
    return options


def check_folder(folder: Path) -> None:
    """Raises UserError when the folder holds something else than an earlier export."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").exists()):
        raise UserError(f"-o {folder} is not empty and no exported model: give another folder")


def write(trained: Trained, folder: Path, license: str) -> None:
    """All files of an exported folder; one that is there is replaced."""
    assert trained.training is not None
    run = trained.training.run
    (folder / FILE).unlink(missing_ok=True)
    export.save(trained.model, folder)
    trained.codec.tokenizer.save(folder / CODEC_FOLDER)
    if (trained.codec.folder / TEXT_FILE).exists():  # hashing, the default, needs none
        storage.write_bytes(folder / CODEC_FOLDER / TEXT_FILE, (trained.codec.folder / TEXT_FILE).read_bytes())
    step = trained.training.commit.state.step
    metrics = [line for line in read_metrics(run) if int(str(line["step"])) <= step]
    happened = [event for event in standing(read_events(run)) if event.get("step", 0) <= step]
    storage.write_bytes(folder / "README.md", card(folder.resolve().name, trained, metrics, happened, license).encode())
    storage.write_json(folder / FILE, description(trained))
