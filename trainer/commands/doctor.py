"""The `doctor` command: examines a finished data set, tells what it consists of, and shows some of its clips on one picture.
It reads a folder or an s3:// address and mends lost indices; it knows nothing of recipes or runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipeline import checkup
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset, open_dataset

CLIPS, COLUMNS = 6, 8  # per bucket on the sheet, and frames of each
THUMBNAIL, TEXT = 96, 16  # pixels

HELP = """usage: python trainer/main.py doctor <data set> [sheet=<png>]

Examine a finished data set in a folder or in S3: every checksum, count and place in the order. Lost indices are mended; what the data set
consists of is printed, and some of its clips are shown on one picture. Exit code 1 when something stays wrong.

examples:
  python trainer/main.py doctor runs/datasets/synthetic-0123456789ab sheet=clips.png
  python trainer/main.py doctor s3://bucket/datasets/videos-0123456789ab"""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """`doctor <data set> [sheet=<png>]`: 0 when the data set is sound or was mended, 1 when something is still wrong."""
    folders, options = [word for word in arguments if "=" not in word], dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(folders) != 1 or set(options) - {"sheet"}:
        raise UserError("doctor takes one data set, e.g. doctor runs/datasets/synthetic-0123456789ab sheet=clips.png")
    dataset = open_dataset(folders[0])
    for line in statistics(dataset):
        print(line)
    left = 0
    for finding in checkup.examine(dataset):
        left += not finding.mended
        print(f"{'mended' if finding.mended else 'wrong '}  {finding.what}", flush=True)
    print(f"{left} things are wrong" if left else "sound: every byte has its checksum, every sample its place in the order")
    if not left:
        sheet = Path(options.get("sheet", f"{dataset.folder.name}.png"))
        contact_sheet(dataset, sheet)
        print(f"contact sheet  {sheet}")
    return 1 if left else 0


def statistics(dataset: Dataset) -> list[str]:
    """What the manifest says: sources, clips and bytes per bucket, the latents' spread."""
    manifest = dataset.manifest
    sources, spread = manifest.sources, np.array(manifest.statistics.std)
    lines = [
        f"data set  {dataset.folder}  id {dataset.id[:12]}  generation {manifest.generation}",
        f"sources   {sources.total}: {sources.ok} used, {sum(sources.rejected.values())} rejected, {len(sources.failed)} unreadable"
        + (f"; {manifest.pending} still to be encoded" if manifest.pending else ""),
    ]
    for bucket, splits in manifest.buckets.items():
        shards = [entry for entries in splits.values() for entry in entries]
        size = sum(entry.bytes for entry in shards)
        clips = f"{manifest.clips(bucket, 'train')} clips + {manifest.clips(bucket, 'held_out')} held out"
        lines.append(f"bucket    {bucket}: {clips} in {len(shards)} shards of {size / max(len(shards), 1) / 1e6:.1f} MB")
    spreads = ", ".join(
        f"{name} {row.min():.2f} to {row.max():.2f}" for name, row in zip(("first frame", "later frames"), spread, strict=True)
    )
    return [*lines, f"latents   standard deviation over channels: {spreads}"]


def contact_sheet(dataset: Dataset, path: Path) -> None:
    """A few clips of each bucket, decoded from their latents: one row each, with its caption."""
    rows = []
    for bucket in dataset.manifest.buckets:
        samples = dataset.split(bucket, "train", seed=0)
        for position in range(min(CLIPS, len(samples))):
            frames = dataset.decode(samples.fetch([position]).latents[0])
            rows.append((f"{bucket}  {samples.sample_key(position)}  {samples.caption(position)}", frames))
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, len(rows) * (THUMBNAIL + TEXT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (label, frames) in enumerate(rows):
        top = number * (THUMBNAIL + TEXT)
        draw.text((2, top + 1), label[: COLUMNS * THUMBNAIL // 6], "black", font)
        chosen = np.unique(np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int))
        for column, frame in enumerate(chosen):
            picture = Image.fromarray(frames[frame])
            picture.thumbnail((THUMBNAIL - 2, THUMBNAIL - 2))
            sheet.paste(picture, (column * THUMBNAIL, top + TEXT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
