"""Fine-tuning as a user starts it: what was taken is said and recorded, adapters are trained and sampled with, a mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model import export
from model.config import named_size
from model.videomar import VideoMAR
from tests.e2e.job import SMALL, STAGES, TIMEOUT, run
from trainer.events import read_events
from trainer.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(TIMEOUT)]


def exported(folder: Path, size: str = "toy", channels: int = 16) -> Path:
    """A model for the synthetic clips' latents and captions, or for another tokenizer's."""
    torch.manual_seed(0)
    export.save(VideoMAR(named_size(size, latent_channels=channels, text_width=64, text_tokens=24)), folder)
    return folder


@pytest.mark.parametrize(
    ("size", "channels", "line"),
    [
        ("toy", 8, "latent_channels is 8, not 16 (another tokenizer's latents) (and "),
        ("small", 16, "width is 512, not 192 (a model of another size) (and "),
    ],
)
def test_weights_of_another_model_are_refused_at_once(
    size: str, channels: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "export", size, channels)
    assert main([*SMALL, f"run.root={tmp_path / 'runs'}", f"train.init.from={folder}"]) == 2
    printed = capsys.readouterr().err
    assert f"error: train.init.from={folder}: {line}" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_adapters_are_trained_sampled_with_and_tied_to_their_weights(tmp_path: Path) -> None:
    folder, stages = exported(tmp_path / "export"), json.dumps([STAGES[0] | {"promotion": {"max_steps": 3}}])
    job = [*SMALL, f"curriculum.stages={stages}", "run.root=runs", "run.name=tuned", f"train.init.from={folder}", "train.lora.rank=4"]
    code, out, err = run(job, tmp_path)
    assert code == 0, err
    tensors = len(export.load(folder).state_dict())
    assert f"init  {tensors} of {tensors} tensors from {folder}\n" in out
    run_folder = tmp_path / "runs" / "tuned"
    found = next(event for event in read_events(run_folder) if event["event"] == "initial")
    assert (found["source"], len(found["taken"]), found["missing"]) == (str(folder), tensors, [])
    assert (next((run_folder / "samples").iterdir()) / "00.mp4").exists()
    exported(folder, "small")
    code, _, err = run(job, tmp_path)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "train.init" in err
