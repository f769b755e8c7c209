"""The README.md of an exported model: what it is, what it was trained on and how well it did, in the form that model hubs read.

Pure text from records; called by the export command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from trainer.config import RunConfig
from trainer.inspection.trained import Trained

Record = dict[str, Any]
PRIVATE: Any = {"run": True, "cluster": True, "data": {"videos", "captions", "root"}}  # where it was made is nobody's business
USE = """\
    from model import export
    model = export.load("{name}")  # the weights: pure PyTorch, no Ray, DeepSpeed or Megatron

or, with its tokenizer and text encoder, on the command line:

    python trainer/main.py sample {name} --image cat.png --text "a cat" --seconds 4 -o out.mp4
"""


def card(name: str, trained: Trained, metrics: Sequence[Record], happened: Sequence[Record], license: str) -> str:
    """The whole card. `metrics` and `happened` are the run's metrics.jsonl and events.jsonl as they stand."""
    assert trained.training is not None, "only a run's model is exported"
    config, commit = trained.training.config, trained.training.commit
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    front = {"license": license, "pipeline_tag": "image-to-video", "library_name": "videomar", "tags": ["videomar", "video-generation"]}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        f"An autoregressive image-to-video model with continuous tokens (VideoMAR, arXiv 2506.14168): {parameters:,} parameters, "
        f"the moving average of the weights after step {commit.state.step} ({commit.reason}).",
        "## Use\n" + USE.format(name=name),
        "## What it was made with\n" + table(["", ""], facts(trained, config)),
        "## Curriculum\n" + table(["stage", "clips", "steps", "held-out loss"], curriculum(config, metrics, happened)),
        "## Metrics\n" + table(["", ""], measured(happened)),
        f"## Recipe\n```yaml\n{yaml.safe_dump(config.model_dump(mode='json', exclude=PRIVATE), sort_keys=False)}```",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def facts(trained: Trained, config: RunConfig) -> list[list[object]]:
    codec = trained.codec
    return [
        ["data set", f"`{trained.dataset}`"],
        ["tokenizer", f"stride {list(codec.spec.stride)}, {codec.tokenizer.channels} channels, `{codec.tokenizer.fingerprint}`"],
        ["text encoder", f"{codec.text.width} numbers per token, `{codec.text.fingerprint}`"],
        ["size, head, supervision", f"{config.model.size}, {trained.model.config.head}, {config.train.supervision}"],
        ["frames per second", f"{trained.fps:g}"],
        ["seed", config.seed],
    ]


def curriculum(config: RunConfig, metrics: Sequence[Record], happened: Sequence[Record]) -> list[list[object]]:
    """A row per stage that was begun."""
    rows: list[list[object]] = []
    for stage in config.curriculum.stages:
        steps = sum(step["stage"] == stage.name for step in metrics)
        losses = [event["held_out_loss"] for event in happened if event["event"] == "evaluation" and event["stage"] == stage.name]
        if steps:
            rows.append([stage.name, f"{stage.frames}x{stage.height}x{stage.width}", steps, f"{losses[-1]:.4f}" if losses else ""])
    return rows


def measured(happened: Sequence[Record]) -> list[list[object]]:
    """The run's own samples, when it made some."""
    samples = next((event for event in reversed(happened) if event["event"] == "samples"), None)
    if samples is None:
        return [["samples", "none were made; see the evaluate command"]]
    return [
        [f"PSNR of the generated frames of {samples['clips']} held-out clips", f"{samples['psnr']:.2f} dB"],
        ["the same for repeating the given frame", f"{samples['psnr_copy_last_frame']:.2f} dB"],
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
