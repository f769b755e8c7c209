"""Buckets: the few (frames, height, width) shapes that clips are brought to, and the geometry of getting there.
Pure; decode and clips ask it how to resize, the encoder and the planner ask it for latent shapes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

Stride = tuple[int, int, int]


@dataclass(frozen=True, order=True)
class Bucket:
    """A clip shape in video frames and pixels; its id, as in folder names and recipes, is "17x96x96"."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"bucket {self.id}: frames, height and width must be positive")

    @property
    def id(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> "Bucket":
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.strip())
        if not match:
            raise ValueError(f"bucket {text!r} is not <frames>x<height>x<width>, as in 17x96x96")
        return cls(*map(int, match.groups()))

    def holds(self, height: int, width: int) -> bool:
        """Whether a source picture of this display size is large enough: clips are never enlarged."""
        return height >= self.height and width >= self.width


SAME_AREA = 1.25  # buckets whose areas differ by less are one resolution in several aspects


def fitting(height: int, width: int, buckets: Sequence[Bucket], one_aspect: bool) -> tuple[Bucket, ...]:
    """The buckets that get a source's clips: those that its pictures fill without being enlarged.

    With `one_aspect`, of buckets that have the same frames and differ in aspect alone, only the one that loses least of
    the picture to cropping; between equals the larger.
    """
    held = [bucket for bucket in buckets if bucket.holds(height, width)]
    if not one_aspect:
        return tuple(held)
    best = [max(_resolution(bucket, held), key=lambda other: (kept(height, width, other), other)) for bucket in held]
    return tuple(bucket for bucket, choice in zip(held, best, strict=True) if bucket == choice)


def kept(height: int, width: int, bucket: Bucket) -> float:
    """The fraction of a picture that is left after cropping it to a bucket's aspect."""
    ratio = (width / height) / (bucket.width / bucket.height)
    return min(ratio, 1 / ratio)


def _resolution(bucket: Bucket, buckets: Sequence[Bucket]) -> list[Bucket]:
    area = bucket.height * bucket.width
    return [
        other
        for other in buckets
        if other.frames == bucket.frames and max(area, other.height * other.width) < SAME_AREA * min(area, other.height * other.width)
    ]


def latent_shape(bucket: Bucket, stride: Stride) -> tuple[int, int, int]:
    """(T, h, w) of the latents of a clip under a causal tokenizer: the first frame alone, then groups of stride[0].

    Raises ValueError naming the bucket and the side that the stride does not divide.
    """
    if (bucket.frames - 1) % stride[0]:
        raise ValueError(f"bucket {bucket.id}: {bucket.frames} frames are not 1 + a multiple of {stride[0]}")
    for name, size, step in (("height", bucket.height, stride[1]), ("width", bucket.width, stride[2])):
        if size % step:
            raise ValueError(f"bucket {bucket.id}: {name} {size} is not a multiple of {step}")
    return 1 + (bucket.frames - 1) // stride[0], bucket.height // stride[1], bucket.width // stride[2]


def cover(height: int, width: int, bucket: Bucket) -> tuple[int, int]:
    """The smallest (height, width) with the picture's aspect ratio that covers the bucket's; the rest is cropped."""
    scale = max(bucket.height / height, bucket.width / width)
    return max(bucket.height, round(height * scale)), max(bucket.width, round(width * scale))


def centre(height: int, width: int, bucket: Bucket) -> tuple[slice, slice]:
    """The rows and columns of the bucket-sized crop in the middle of a picture."""
    top, left = (height - bucket.height) // 2, (width - bucket.width) // 2
    return slice(top, top + bucket.height), slice(left, left + bucket.width)
