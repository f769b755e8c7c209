"""What encoding a list of sources will come to, from headers alone: hours and bytes from a few of them, and whether each
bucket can get a clip at all. Asked before the work begins, so that neither is a surprise. The command line calls it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import av

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.chunks import held_out_rule
from data_pipeline.errors import UserError
from data_pipeline.order import keyed_generator
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec

SAMPLE = 16  # sources whose headers the estimate reads
SEARCHED = 10_000  # sources among which a bucket must find one that fits it; in more than these it is left to the encoder
OVERHEAD = 2500  # bytes of a sample beside latents and text: headers, padding, JSON


@dataclass(frozen=True)
class Estimate:
    """Hours of video, clips and bytes of the data set at most: what the filters will reject is not known yet."""

    sources: int
    hours: float
    clips: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """What a file claims: seconds, 0 when it does not say, and the sides of its pictures, before any rotation."""

    seconds: float
    height: int
    width: int


def estimate(sources: Sequence[Source], spec: EncodeSpec) -> Estimate:
    """From the durations that a fixed, random sample of the sources claims; those that cannot be read count as empty."""
    count = min(SAMPLE, len(sources))
    chosen = keyed_generator("estimate", len(sources)).choice(len(sources), count, replace=False)
    headers = [read_header(sources[int(number)]) for number in chosen]
    seconds = [header.seconds if header else 0.0 for header in headers]
    clips, size = 0.0, 0.0
    for bucket in spec.buckets:
        frames, height, width = latent_shape(bucket, spec.stride)
        text = spec.text_tokens * spec.text_width * 2
        each = sum(min(length * spec.fps // bucket.frames, spec.max_clips) for length in seconds) / count
        clips += each * len(sources)
        size += each * len(sources) * (frames * height * width * spec.channels * 2 + text + OVERHEAD)
    return Estimate(len(sources), sum(seconds) / count * len(sources) / 3600, round(clips), round(size))


def check_buckets(sources: Sequence[Source], spec: EncodeSpec, videos: str) -> None:
    """Raises UserError, naming the bucket and how many sources are too small, too short or unreadable for it, when none of
    the train sources can fill it. Stops at the first that can, so that it costs little where all is well."""
    held_out, waiting = held_out_rule(sources, spec), list(spec.buckets)
    reasons: dict[Bucket, Counter[str]] = {bucket: Counter() for bucket in spec.buckets}
    for source in sources[:SEARCHED]:
        if not waiting:
            return
        if held_out(source):
            continue
        header = read_header(source)
        for bucket in list(waiting):
            if reason := unfit(header, bucket, spec.fps):
                reasons[bucket][reason] += 1
            else:
                waiting.remove(bucket)
    if waiting and len(sources) <= SEARCHED and any(reasons[waiting[0]][reason] for reason in ("too_small", "too_short")):
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons[waiting[0]].items()))
        raise UserError(f"no video in {videos} fits bucket {waiting[0].id} ({counts}): use a smaller or shorter bucket")


def unfit(header: Header | None, bucket: Bucket, fps: float) -> str | None:
    """Why a file cannot give a clip of the bucket, if its header is right; either orientation will do."""
    if header is None:
        return "unreadable"
    if not (bucket.holds(header.height, header.width) or bucket.holds(header.width, header.height)):
        return "too_small"
    if header.seconds and (header.seconds + 2 / fps) * fps < bucket.frames:  # headers round, and leave out the last picture
        return "too_short"
    return None


def read_header(source: Source) -> Header | None:
    """None when there is no video to be read."""
    try:
        with av.open(source.open(), "r") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                return None
            width = round(stream.width * (stream.sample_aspect_ratio or 1))
            return Header((container.duration or 0) / av.time_base, stream.height, width)
    except (av.FFmpegError, OSError):
        return None
