"""The lines that tell a user what came of their videos and of their run. Pure text from records."""

from __future__ import annotations

from pathlib import Path

from cluster.dataset import EncodeJob
from cluster.progress import clock
from data_pipeline.entry_table import Unmatched
from data_pipeline.loader import Dataset
from data_pipeline.records import HELD_OUT, TRAIN
from trainer.events import read_events, standing
from trainer.metrics import read_metrics


def dataset_lines(job: EncodeJob, dataset: Dataset, reused: bool) -> list[str]:
    """Sources, clips per bucket, rejects by reason, and every file that could not be read, by name."""
    sources, manifest = dataset.manifest.sources, dataset.manifest
    clips = ", ".join(
        f"{bucket}: {manifest.clips(bucket, 'train')} + {manifest.clips(bucket, 'held_out')} held out" for bucket in manifest.buckets
    )
    lines = [
        f"data  {'reused' if reused else 'encoded'} {dataset.folder}",
        f"      {sources.total} videos, {sources.ok} used, {sum(sources.rejected.values())} rejected, {len(sources.failed)} unreadable",
        f"      clips  {clips}",
    ]
    if sources.rejected:
        lines.append("      rejected  " + ", ".join(f"{reason}: {count}" for reason, count in sorted(sources.rejected.items())))
    lines += [f"      unreadable  {name}: {reason}" for name, reason in sources.failed.items()]
    lines += [f"      damaged  {name}: {reason}" for name, reason in sources.damaged.items()]
    lines += mismatches("without a caption", job.sources.without_caption)
    return lines + mismatches("captions without a video", job.sources.unknown_captions)


def dataset_counts(dataset: Dataset) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Sources by outcome, rejected sources by reason, clips by split."""
    sources, manifest = dataset.manifest.sources, dataset.manifest
    outcomes = {"ok": sources.ok, "rejected": sum(sources.rejected.values()), "failed": len(sources.failed)}
    clips = {split: sum(manifest.clips(bucket, split) for bucket in manifest.buckets) for split in (TRAIN, HELD_OUT)}
    return outcomes, sources.rejected, clips


def mismatches(what: str, found: Unmatched) -> list[str]:
    if not found.count:
        return []
    more = f" and {found.count - len(found.first)} more" if found.count > len(found.first) else ""
    return [f"      {what}  {', '.join(found.first)}{more}"]


def run_lines(run: Path) -> list[str]:
    """The result: stages with their last losses, samples against copying if there are any, and where to look."""
    metrics, happened = read_metrics(run), standing(read_events(run))
    lines = []
    for promotion in (event for event in happened if event["event"] == "promotion"):
        steps = [step for step in metrics if step["stage"] == promotion["stage"]]
        held_out = [event["held_out_loss"] for event in happened if event["event"] == "evaluation" and event["stage"] == promotion["stage"]]
        seconds = sum(step["step_seconds"] + step["data_seconds"] for step in steps)
        losses = [step["loss"] for step in steps if step["loss"] is not None]
        text = (f", loss {losses[-1]:.4f}" if losses else "") + (f", held-out {held_out[-1]:.4f}" if held_out else "")
        skipped = f", {len(steps) - len(losses)} skipped" if len(losses) < len(steps) else ""
        lines.append(f"stage {promotion['stage']}: {len(steps)} steps in {clock(seconds)}{text}{skipped} ({promotion['reason']})")
    if samples := next((event for event in reversed(happened) if event["event"] == "samples"), None):
        folder = Path(samples["folder"])
        lines += [
            f"samples: PSNR {samples['psnr']:.1f} dB over the generated frames of {samples['clips']} held-out clips, "
            f"{samples['psnr_copy_last_frame']:.1f} dB for repeating the given frame",
            f"sample video  {folder / '00.mp4'}",
            f"contact sheet {folder / 'contact-sheet.png'}",
        ]
    return [*lines, f"report        {run / 'report.html'}"]
