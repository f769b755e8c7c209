"""What a sample starts from: an image, or the first frames of a video, brought to the size that is asked for.

Called by the sample command; knows no model.
"""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipeline.buckets import Bucket, Stride, centre, cover
from data_pipeline.clips import resample
from data_pipeline.decode import DecodeError, Resizer, VideoFile
from data_pipeline.errors import UserError


def fitting_size(wanted: tuple[int, int], stride: Stride) -> tuple[int, int]:
    """The largest (height, width) not above `wanted` that the tokenizer cuts evenly and a video file can hold (even sides).

    Raises UserError when there is none.
    """
    steps = [math.lcm(step, 2) for step in stride[1:]]
    size = tuple(side // step * step for side, step in zip(wanted, steps, strict=True))
    if not all(size):
        raise UserError(f"--size {wanted[0]}x{wanted[1]} is too small: the tokenizer needs at least {steps[0]}x{steps[1]}")
    return size[0], size[1]


def frames_for(seconds: float, fps: float, step: int) -> int:
    """The number of video frames 1 + k * step nearest to `seconds`, at least one step. Pure."""
    return 1 + step * max(1, round((seconds * fps - 1) / step))


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8 [1, H, W, 3]: the picture, upright, scaled until it covers the size and cropped in the middle. Raises UserError."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"--image {path} does not exist") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"--image {path} is no image that can be read ({type(error).__name__}); a video goes to --video") from None
    bucket = Bucket(1, *size)
    height, width = cover(picture.height, picture.width, bucket)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))[centre(height, width, bucket)][None]


def read_video(path: Path, size: tuple[int, int], fps: float, frames: int, step: int) -> np.ndarray:
    """uint8 [F, H, W, 3]: the first `frames` frames of a video at `fps`, or the 1 + k * step that it has. Raises UserError."""
    if not path.exists():
        raise UserError(f"--video {path} does not exist")
    bucket, resize, found = Bucket(1, *size), Resizer(), []
    try:
        for _, _, picture in islice(resample(((0, picture) for picture in VideoFile(path)), fps), frames):
            height, width = cover(picture.height, picture.width, bucket)
            found.append(resize(picture, height, width)[centre(height, width, bucket)])
    except DecodeError as error:
        raise UserError(f"--video {path} is no video that can be read: {error}") from None
    return np.stack(found[: 1 + (len(found) - 1) // step * step])
