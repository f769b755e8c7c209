"""Writes frames as an mp4 that any player opens. For synthetic data, samples and tests; knows nothing of either."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_pipeline import storage


def write_mp4(path: str | Path, frames: np.ndarray, fps: float, quality: int = 14) -> None:
    """Writes uint8 frames [F, H, W, 3] as H.264 yuv420p, atomically. `quality` is x264's CRF: lower is better.

    The same frames give the same bytes. Raises ValueError for odd sizes, which yuv420p cannot hold.
    """
    with open_mp4(path, (frames.shape[1], frames.shape[2]), fps, quality) as add:
        for frame in frames:
            add(frame)


@contextmanager
def open_mp4(path: str | Path, size: tuple[int, int], fps: float, quality: int = 14) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that encodes one more uint8 frame [H, W, 3] of `size` (H, W); the file appears when the block ends."""
    height, width = size
    if height % 2 or width % 2:
        raise ValueError(f"{path}: frames of {width}x{height}: both sides must be even")
    with storage.atomic(Path(path)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # x264's macroblock tree gives other bytes from call to call, depending on what memory held before.
        options = {"preset": "veryfast", "crf": str(quality), "x264-params": "no-mbtree=1"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1

        def add(frame: np.ndarray) -> None:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))

        yield add
        container.mux(stream.encode())
