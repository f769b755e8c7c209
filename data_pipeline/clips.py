"""From one decode of a file to the clips of every bucket: scene cuts, target rate by pts, windows, filters.
encode.py calls it; it knows nothing of tokenizers or shards."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np

from data_pipeline.buckets import Bucket, centre, cover, fitting
from data_pipeline.decode import Picture, Resizer, VideoFile
from data_pipeline.filters import FilterThresholds, clip_values, perceptual_hash, rejection, source_rejection
from data_pipeline.scenes import LONGEST_PICTURE, LONGEST_TRANSITION, THUMBNAIL, TRANSITION, SceneDetector, Transition
from data_pipeline.spec import EncodeSpec

SLACK = 1e-3  # seconds: containers round pts to milliseconds


@dataclass(frozen=True)
class Clip:
    """uint8 frames [F, H, W, 3] of one bucket, shown from `start` to `stop` (pts seconds), the last of them at `last`,
    their filter values and their perceptual hash."""

    frames: np.ndarray
    start: float
    last: float
    stop: float
    values: dict[str, float]
    hash: str


@dataclass(frozen=True)
class SourceClips:
    """All that one pass over a file gave. `rejected` counts by reason: too_small and a source's own reasons once per
    source, too_short once per scene that is shorter than the bucket, fade and the filters' reasons once per window.
    `facts` are seconds, pictures, height, width (as displayed) and scenes of what was decoded."""

    clips: dict[Bucket, list[Clip]]
    rejected: dict[Bucket, Counter[str]]
    decode_errors: int
    facts: dict[str, float]


class Timed(Protocol):
    @property
    def time(self) -> float: ...

    @property
    def duration(self) -> float: ...


T = TypeVar("T", bound=Timed)


def clips_of(path: str | Path | BinaryIO, spec: EncodeSpec, on_picture: Callable[[], object] = lambda: None) -> SourceClips:
    """Decodes a file once and cuts non-overlapping clips for every bucket; `on_picture` hears of every picture. Raises DecodeError.

    Holds at most spec.max_clips clips per bucket, and stops decoding when every bucket has that many.
    """
    video, detector, seen = VideoFile(path), SceneDetector(spec.scene_threshold), _Seen()
    windows = [_Windows(bucket, spec.max_clips, spec.thresholds, detector.transitions) for bucket in spec.buckets]
    resizers: dict[tuple[int, int], Resizer] = {}
    for scene, time, picture in resample(split_scenes(seen.pass_on(video, on_picture), detector), spec.fps):
        images: dict[tuple[int, int], np.ndarray] = {}
        fits = fitting(picture.height, picture.width, spec.buckets, spec.one_aspect)
        for window in windows:
            window.take_back()
            if not window.wants(scene, picture, fits):
                continue
            size = (window.bucket.height, window.bucket.width)
            if size not in images:
                images[size] = _fit(picture, window.bucket, resizers.setdefault(size, Resizer()))
            window.add(images[size], time, 1 / spec.fps)
        if all(window.is_settled(time) for window in windows) and seen.seconds > spec.thresholds.longest:
            break
    reason = source_rejection(seen.seconds, min(seen.height, seen.width), spec.thresholds)
    for window in windows:
        window.take_back()
        window.end_scene()
        if reason:
            window.clips, window.rejected = [], Counter({reason: 1})
    return SourceClips(
        {window.bucket: window.clips for window in windows},
        {window.bucket: window.rejected for window in windows},
        video.errors,
        seen.facts() | {"scenes": detector.scenes},
    )


def split_scenes(pictures: Iterable[Picture], detector: SceneDetector) -> Iterator[tuple[int, Picture]]:
    """(scene number, or TRANSITION between two scenes; picture)."""
    shrink = Resizer()
    for picture in pictures:
        yield detector.scene(picture.time, shrink(picture, *THUMBNAIL, "gray")), picture


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
class _Seen:
    """What there is to know of the pictures that pass."""

    pictures: int = 0
    first: float = 0.0
    stop: float = 0.0
    height: int = 0
    width: int = 0

    def pass_on(self, pictures: Iterable[Picture], on_picture: Callable[[], object]) -> Iterator[Picture]:
        for picture in pictures:
            on_picture()
            if not self.pictures:
                self.first, self.height, self.width = picture.time, picture.height, picture.width
            self.pictures += 1
            self.stop = max(self.stop, picture.time + min(picture.duration, LONGEST_PICTURE))
            yield picture

    @property
    def seconds(self) -> float:
        return self.stop - self.first

    def facts(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 3), "pictures": self.pictures, "height": self.height, "width": self.width}


@dataclass
class _Windows:
    """Collects one bucket's clips: consecutive runs of bucket.frames frames that never cross a scene."""

    bucket: Bucket
    limit: int
    thresholds: FilterThresholds
    transitions: list[Transition]  # grows while the file is read
    clips: list[Clip] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    scene: int | None = None
    window: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    served: bool = False  # whether the scene had at least one full window
    checked: int = 0  # transitions that the clips were held against

    def wants(self, scene: int, picture: Picture, fits: Sequence[Bucket]) -> bool:
        if self.bucket not in fits:
            self.rejected["other_aspect" if self.bucket.holds(picture.height, picture.width) else "too_small"] = 1
            return False
        if scene != self.scene:
            self.end_scene()
            self.scene = scene
        return scene != TRANSITION and len(self.clips) < self.limit

    def take_back(self) -> None:
        """Drops the clips that hold a transition which was over, and so found, only after them."""
        for transition in self.transitions[self.checked :]:
            if crossing := [clip for clip in self.clips if transition.touches(clip.start, clip.last)]:
                self.rejected["fade"] += len(crossing)
                self.clips = [clip for clip in self.clips if not transition.touches(clip.start, clip.last)]
        self.checked = len(self.transitions)

    def is_settled(self, time: float) -> bool:
        """Whether the clips are as many as may be, and no transition can still be found in them."""
        return len(self.clips) == self.limit and time > self.clips[-1].stop + LONGEST_TRANSITION

    def add(self, image: np.ndarray, time: float, interval: float) -> None:
        self.window.append(image)
        self.times.append(time)
        if len(self.window) < self.bucket.frames:
            return
        frames = np.stack(self.window)
        values = clip_values(frames)
        crosses = any(transition.touches(self.times[0], self.times[-1]) for transition in self.transitions)
        reason = "fade" if crosses else rejection(values, self.thresholds)
        if reason:
            self.rejected[reason] += 1
        else:
            start, last, stop = (round(time, 6) for time in (self.times[0], self.times[-1], self.times[-1] + interval))
            self.clips.append(Clip(frames, start, last, stop, values, perceptual_hash(frames)))
        self.served = True
        self.window, self.times = [], []

    def end_scene(self) -> None:
        if self.window and not self.served:
            self.rejected["too_short"] += 1
        self.window, self.times, self.served = [], [], False


def _fit(picture: Picture, bucket: Bucket, resize: Resizer) -> np.ndarray:
    height, width = cover(picture.height, picture.width, bucket)
    return resize(picture, height, width)[centre(height, width, bucket)]
