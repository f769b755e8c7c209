"""One forward pass over a video file with PyAV. clips.py calls it; it knows nothing of buckets or scenes.

Never seeks and trusts no count in a header: both are wrong in some containers (MPEG-TS; fragmented mp4, mkv).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

# Bit-exact swscale: the same picture on every CPU, whatever vector instructions it has.
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT


class DecodeError(Exception):
    """A file that yields no picture; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture that is not yet converted. `height` and `width` are as displayed: square pixels, upright."""

    time: float  # seconds
    duration: float  # seconds
    height: int
    width: int
    quarter_turns: int  # counter-clockwise
    frame: av.VideoFrame


class Resizer:
    """Scales and converts pictures in one step. Keep one per output size: it reuses its tables from call to call."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, picture: Picture, height: int, width: int, pixels: str = "rgb24") -> np.ndarray:
        """The upright picture as uint8 [height, width, 3], or [height, width] for pixels="gray"."""
        if picture.quarter_turns % 2:
            height, width = width, height
        try:
            frame = self._reformatter.reformat(picture.frame, width=width, height=height, format=pixels, interpolation=_SCALING, threads=1)
        except (av.FFmpegError, ValueError) as error:
            raise DecodeError(f"pictures of format {picture.frame.format.name} cannot be converted") from error
        return np.rot90(frame.to_ndarray(), picture.quarter_turns)


class VideoFile:
    """Iterating decodes the file's best video stream once; afterwards `errors` counts the packets and pictures lost."""

    def __init__(self, path: str | Path | BinaryIO) -> None:
        self._file = str(path) if isinstance(path, Path) else path
        self.errors = 0

    def __iter__(self) -> Iterator[Picture]:
        """Raises DecodeError when the file cannot be opened or yields no picture at all."""
        pictures = 0
        try:
            with av.open(self._file, "r") as container:
                stream = container.streams.best("video")
                if not isinstance(stream, av.VideoStream):
                    raise DecodeError("no video stream")
                stream.codec_context.thread_count = 1  # one core per decoder: files are what is parallel
                for picture in self._pictures(container, stream):
                    pictures += 1
                    yield picture
        except (av.FFmpegError, OSError) as error:
            raise DecodeError(error.strerror or str(error)) from error
        if not pictures:
            raise DecodeError(f"no picture could be decoded ({self.errors} broken packets)")

    def _pictures(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Picture]:
        interval = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        clock = _Clock(interval)
        for frame in self._frames(container, stream):
            time = clock.time(frame)
            duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else interval
            turns = round(frame.rotation / 90) % 4
            width = round(frame.width * (stream.sample_aspect_ratio or 1))
            height, width = (width, frame.height) if turns % 2 else (frame.height, width)
            yield Picture(time, duration, height, width, turns, frame)

    def _frames(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                frames = packet.decode() if packet else []
            except av.FFmpegError:
                self.errors += 1  # one broken packet does not end the file
                continue
            if packet is None:
                return
            for frame in frames:
                if frame.is_corrupt:
                    self.errors += 1
                else:
                    yield frame


class _Clock:
    """The display time of pictures as they leave the decoder. Their pts, unless it has run backwards more often than
    their dts: avi files have no pts, and what is made up for them is in decoding order (FFmpeg guesses the same way).
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval  # seconds between pictures without any time stamp
        self._last: dict[str, int] = {}
        self._faults = {"pts": 0, "dts": 0}
        self._time = -interval

    def time(self, frame: av.VideoFrame) -> float:
        """Seconds."""
        stamps = {name: stamp for name in self._faults if (stamp := getattr(frame, name)) is not None}
        for name, stamp in stamps.items():
            self._faults[name] += stamp <= self._last.get(name, stamp - 1)
        self._last |= stamps
        stamp = stamps[min(stamps, key=self._faults.__getitem__)] if stamps else None
        self._time = self._time + self._interval if stamp is None else float(stamp * frame.time_base)
        return self._time
