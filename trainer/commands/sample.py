"""`sample`: a trained model continues images and videos of the user's own, into mp4 or gif files that grow as the frames come."""

from __future__ import annotations

import csv
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.write_video import open_mp4
from model.sampling import SamplingConfig
from trainer.commands.options import Options, size
from trainer.commands.sampling_options import add_sampling, sampling_of
from trainer.inspection.continuation import Watch, continued
from trainer.inspection.explain import explanation
from trainer.inspection.sheet import Row, contact_sheet
from trainer.inspection.start import fitting_size, frames_for, read_image, read_video
from trainer.inspection.trained import Trained, open_trained

EXAMPLE = """  python trainer/main.py sample runs/toy --image cat.png --text "a cat walks left" --seconds 4 --seed 1 -o out.mp4
  python trainer/main.py sample runs/with-stills --text "a cat walks left" -o out.mp4
  python trainer/main.py sample exported --table starts.csv -o samples/ --explain
(the table has the columns image or video, text and, if wanted, seed; its paths are relative to it)"""
COLUMNS = {"image", "video", "text", "seed"}


@dataclass(frozen=True)
class Wish:
    """One video to be made: from an image, from the first frames of a video, or (no start) from the text alone."""

    start: Path | None
    is_image: bool
    text: str
    seed: int
    out: Path


@dataclass(frozen=True)
class Format:
    """What all videos of a call share: pixels (H, W), video frames, of which up to `given` are a start video's."""

    size: tuple[int, int]
    frames: int
    given: int


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Sample every wish, one after the other; so none depends on the others."""
    options = parser().read(arguments)
    wishes = wishes_of(options)
    trained = open_trained(options.model)
    trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    config, wanted = sampling_of(options, trained.sampling), format_of(options, trained)
    say(format_line(options, trained, wanted))
    rows = [make(wish, trained, config, wanted, options.explain) for wish in wishes]
    sheet = wishes[0].out.with_suffix(".png") if len(wishes) == 1 else wishes[0].out.parent / "contact-sheet.png"
    contact_sheet(rows, sheet)
    say(f"contact sheet {sheet}")
    return 0


def parser() -> Options:
    options = Options("sample", "Continue an image or a video with a trained model, or begin from text alone.", EXAMPLE)
    options.add_argument("model", type=Path, help="a run's folder, a checkpoint's, or an exported one")
    start = options.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, metavar="FILE", help="the first frame")
    start.add_argument("--video", type=Path, metavar="FILE", help="a video whose first frames are continued")
    start.add_argument("--table", type=Path, metavar="CSV", help="several starts: columns image or video, text and, if wanted, seed")
    options.add_argument("--text", default="", help="the caption; without a start all there is, for models trained on stills too")
    options.add_argument("--seconds", type=float, default=2.0, metavar="S", help="length of the video, the given frames included")
    options.add_argument(
        "--given-seconds", type=float, default=0.0, metavar="S", help="how much of a start video is given (at least one frame)"
    )
    options.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same video")
    options.add_argument("--size", type=size, metavar="HxW", help="pixels; default: what the model's last stage was trained on")
    options.add_argument("-o", "--out", type=Path, default=Path("out.mp4"), metavar="PATH", help=".mp4 or .gif; with --table a folder")
    options.add_argument("--explain", action="store_true", help="also draw the order of reveal and the temperature, as <out>-explained.png")
    add_sampling(options)
    return options


def wishes_of(options: Namespace) -> list[Wish]:
    """What the options or their table ask for. Raises UserError."""
    if options.table:
        return read_table(options.table, options.out, options.seed)
    if options.out.suffix not in (".mp4", ".gif"):
        raise UserError(f"-o {options.out}: give a file that ends in .mp4 or .gif")
    if not (options.image or options.video or options.text):
        raise UserError("sample: give one of --image, --video, --table, or --text alone; see python trainer/main.py sample --help")
    return [Wish(options.image or options.video, options.image is not None, options.text, options.seed, options.out)]


def read_table(path: Path, folder: Path, seed: int) -> list[Wish]:
    """A wish per row. Raises UserError naming the file and the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, names = list(table), set(table.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--table {path} cannot be read ({error})") from None
    if "text" not in names or not names & {"image", "video"} or names - COLUMNS or not rows:
        raise UserError(f"--table {path} needs the columns image or video, text and, if wanted, seed, and at least one row below them")
    wishes = []
    for line, row in enumerate(rows, 2):
        start, number = row.get("image") or row.get("video"), row.get("seed") or str(seed)
        if not start or not number.isdigit() or row.get("text") is None or None in row:
            raise UserError(f"--table {path}, line {line}: give an image or a video, a text and, if any, a whole seed")
        out = folder / f"{line - 2:02d}-{Path(start).stem}.mp4"
        wishes.append(Wish(path.parent / start, bool(row.get("image")), row["text"].strip(), int(number), out))
    return wishes


def format_of(options: Namespace, trained: Trained) -> Format:
    """Size and lengths that the tokenizer allows. Raises UserError."""
    if not 0 < options.seconds < 3600 or not 0 <= options.given_seconds < options.seconds:
        raise UserError(f"--seconds {options.seconds} must be positive, and more than --given-seconds {options.given_seconds}")
    last, stride = trained.buckets[-1], trained.codec.tokenizer.stride
    frames = frames_for(options.seconds, trained.fps, stride[0])
    wanted = round((options.given_seconds * trained.fps - 1) / stride[0])
    given = min(1 + stride[0] * max(0, wanted), frames - stride[0])
    return Format(fitting_size(options.size or (last.height, last.width), stride), frames, given)


def format_line(options: Namespace, trained: Trained, found: Format) -> str:
    """What is going to be made, and in what it differs from what was asked for or trained."""
    height, width = found.size
    last, stride = trained.buckets[-1], trained.codec.tokenizer.stride
    text = f"{found.frames} frames of {height}x{width} at {trained.fps:g} per second"
    if options.image or options.video or options.table:
        text += ", starts scaled and cropped to it"
    if options.size and options.size != found.size:
        text += f" (--size {options.size[0]}x{options.size[1]} is no multiple of the tokenizer's {stride[1]}x{stride[2]})"
    if found.frames > last.frames or height > last.height or width > last.width:
        text += f"; beyond the {last.id} it was trained on, so positions are extrapolated"
    return text


def make(wish: Wish, trained: Trained, config: SamplingConfig, wanted: Format, explain: bool) -> Row:
    """Sample one video into its file; returns its row of the contact sheet."""
    step = trained.codec.tokenizer.stride[0]
    if wish.start is None:
        given = np.zeros((0, *wanted.size, 3), np.uint8)
    elif wish.is_image:
        given = read_image(wish.start, wanted.size)
    else:
        given = read_video(wish.start, wanted.size, trained.fps, wanted.given, step)
    latent_frames, shown, began = 1 + (wanted.frames - 1) // step, [], perf_counter()
    wish.out.parent.mkdir(parents=True, exist_ok=True)
    with video_file(wish.out, wanted.size, trained.fps) as write:

        def watch(frames: np.ndarray) -> None:
            write(frames)
            shown.append(frames)
            done = sum(map(len, shown))
            say(f"  {wish.out.name}: {done} of {wanted.frames} frames, {perf_counter() - began:.1f} s")

        _, orders = continued(trained, given, wish.text, latent_frames, config, wish.seed, watch)
    say(f"sample video  {wish.out}")
    if explain:
        path = wish.out.with_name(f"{wish.out.stem}-explained.png")
        grid = (wanted.size[0] // trained.codec.tokenizer.stride[1], wanted.size[1] // trained.codec.tokenizer.stride[2])
        explanation(orders, grid, 1 + (len(given) - 1) // step, config, path)
        say(f"explanation   {path}")
    return Row(wish.text or Path(wish.start or "").name, None, np.concatenate(shown), len(given))


@contextmanager
def video_file(path: Path, size: tuple[int, int], fps: float) -> Iterator[Watch]:
    """Yields a function that takes the next frames [f, H, W, 3] of an mp4, encoded at once, or of a gif, written at the end."""
    if path.suffix == ".mp4":
        with open_mp4(path, size, fps) as add:

            def write(frames: np.ndarray) -> None:
                for frame in frames:
                    add(frame)

            yield write
        return
    pictures: list[Image.Image] = []
    yield lambda frames: pictures.extend(map(Image.fromarray, frames))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0)


def say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
