"""From one decode of a file to the clips of every bucket: scene cuts, target rate by pts, windows, filters.
encode.py calls it; it knows nothing of tokenizers or shards."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from data_pipeline.buckets import Bucket, centre, cover
from data_pipeline.decode import Picture, Resizer, VideoFile
from data_pipeline.filters import FilterThresholds, clip_values, rejection
from data_pipeline.spec import EncodeSpec

SLACK = 1e-3  # seconds: containers round pts to milliseconds
LONGEST_PICTURE = 1.0  # seconds: a longer gap between two pictures is lost video, not a still one
THUMBNAIL = (18, 32)  # rows, columns


@dataclass(frozen=True)
class Clip:
    """uint8 frames [F, H, W, 3] of one bucket, shown from `start` to `stop` (pts seconds), and their filter values."""

    frames: np.ndarray
    start: float
    stop: float
    values: dict[str, float]


@dataclass(frozen=True)
class SourceClips:
    """All that one pass over a file gave. `rejected` counts by reason: too_small once per source, too_short once per
    scene that is shorter than the bucket, the filters' reasons once per window."""

    clips: dict[Bucket, list[Clip]]
    rejected: dict[Bucket, Counter[str]]
    decode_errors: int


class Timed(Protocol):
    @property
    def time(self) -> float: ...

    @property
    def duration(self) -> float: ...


T = TypeVar("T", bound=Timed)


def clips_of(path: str | Path, spec: EncodeSpec) -> SourceClips:
    """Decodes a file once and cuts non-overlapping clips for every bucket. Raises DecodeError.

    Holds at most spec.max_clips clips per bucket, and stops decoding when every bucket has that many.
    """
    video = VideoFile(path)
    windows = [_Windows(bucket, spec.max_clips, spec.thresholds) for bucket in spec.buckets]
    resizers: dict[tuple[int, int], Resizer] = {}
    for scene, time, picture in resample(split_scenes(video, spec.scene_threshold), spec.fps):
        images: dict[tuple[int, int], np.ndarray] = {}
        for window in windows:
            if not window.wants(scene, picture):
                continue
            size = (window.bucket.height, window.bucket.width)
            if size not in images:
                images[size] = _fit(picture, window.bucket, resizers.setdefault(size, Resizer()))
            window.add(images[size], time, 1 / spec.fps)
        if all(len(window.clips) == spec.max_clips for window in windows):
            break
    for window in windows:
        window.end_scene()
    return SourceClips(
        {window.bucket: window.clips for window in windows},
        {window.bucket: window.rejected for window in windows},
        video.errors,
    )


def split_scenes(pictures: Iterable[Picture], threshold: float) -> Iterator[tuple[int, Picture]]:
    """(scene number, picture): a new scene starts where the mean luma difference of 32x18 thumbnails of consecutive
    pictures exceeds `threshold` (0..1), or where time jumps back or ahead."""
    shrink, scene = Resizer(), 0
    previous: tuple[Picture, np.ndarray] | None = None
    for picture in pictures:
        thumbnail = shrink(picture, *THUMBNAIL, "gray").astype(np.int16)
        if previous:
            elapsed = picture.time - previous[0].time
            difference = np.abs(thumbnail - previous[1]).mean() / 255
            if difference > threshold or abs(elapsed) > LONGEST_PICTURE:
                scene += 1
        previous = picture, thumbnail
        yield scene, picture


def resample(pictures: Iterable[tuple[int, T]], fps: float) -> Iterator[tuple[int, float, T]]:
    """(scene, time, the picture on display at that time), `fps` times a second from the start of each scene.

    Times decide, never indices, so that a variable rate plays at its true speed; a source slower than `fps` repeats
    pictures. The last picture before a gap or the end lasts as long as the one before: headers are wrong about it. A
    scene's first picture is always shown, however short it is.
    """
    last_scene: int | None = None
    for current, following in pairwise(chain(pictures, [None])):
        assert current is not None
        scene, picture = current
        if scene != last_scene:
            last_scene, start, tick = scene, picture.time, 0
            lasts = min(picture.duration, LONGEST_PICTURE)
        if following and 0 < following[1].time - picture.time <= LONGEST_PICTURE:
            lasts = following[1].time - picture.time
        while (time := start + tick / fps) < picture.time + lasts - SLACK or not tick:
            yield scene, time, picture
            tick += 1


@dataclass
class _Windows:
    """Collects one bucket's clips: consecutive runs of bucket.frames frames that never cross a scene."""

    bucket: Bucket
    limit: int
    thresholds: FilterThresholds
    clips: list[Clip] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    scene: int | None = None
    window: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    served: bool = False  # whether the scene had at least one full window

    def wants(self, scene: int, picture: Picture) -> bool:
        if not self.bucket.holds(picture.height, picture.width):
            self.rejected["too_small"] = 1
            return False
        if scene != self.scene:
            self.end_scene()
            self.scene = scene
        return len(self.clips) < self.limit

    def add(self, image: np.ndarray, time: float, interval: float) -> None:
        self.window.append(image)
        self.times.append(time)
        if len(self.window) < self.bucket.frames:
            return
        frames = np.stack(self.window)
        values = clip_values(frames)
        reason = rejection(values, self.thresholds)
        if reason:
            self.rejected[reason] += 1
        else:
            self.clips.append(Clip(frames, round(self.times[0], 6), round(self.times[-1] + interval, 6), values))
        self.served = True
        self.window, self.times = [], []

    def end_scene(self) -> None:
        if self.window and not self.served:
            self.rejected["too_short"] += 1
        self.window, self.times, self.served = [], [], False


def _fit(picture: Picture, bucket: Bucket, resize: Resizer) -> np.ndarray:
    height, width = cover(picture.height, picture.width, bucket)
    return resize(picture, height, width)[centre(height, width, bucket)]
