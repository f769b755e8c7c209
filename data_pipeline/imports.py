"""Latents that were made elsewhere become a data set: WebDataset tars of `<key>.latent.safetensors` or `<key>.npy`, raw [T, C, h, w],
captions beside them, and a latents.json that says which tokenizer made them. The `dataset` command calls it; nothing is encoded
but captions."""

import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from data_pipeline import manifest as manifests
from data_pipeline import storage
from data_pipeline.buckets import Bucket
from data_pipeline.chunks import plan_chunks
from data_pipeline.encode import EncodedClip, commit_chunk, read_finished, work_fingerprint
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.records import LatentSums, SourceRecord
from data_pipeline.shards import Sample, from_bfloat16, to_bfloat16, unpack
from data_pipeline.sources import Source, list_latents
from data_pipeline.spec import EncodeSpec, fingerprint
from data_pipeline.storage import Location
from data_pipeline.text import TextEncoder
from data_pipeline.tokenizers import VideoTokenizer

FILE = "latents.json"
TOLERANCE = 0.1  # of the stated deviation, by which stated and found statistics may differ


@dataclass(frozen=True)
class Origin:
    """What latents.json says: the fingerprint of the tokenizer, the rate of the clips in frames per second and, if it does, the
    mean and standard deviation [C] of the latents."""

    tokenizer: str
    fps: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def read_origin(folder: Location, tokenizer: VideoTokenizer) -> Origin:
    """Raises UserError, in one line, when latents.json is missing or unclear, or names another tokenizer than this one."""
    path = folder / FILE
    try:
        value = json.loads(storage.read_bytes(path))
        known = {name: tuple(map(float, value[name])) for name in ("mean", "std") if name in value}
        origin = Origin(str(value["tokenizer"]), float(value["fps"]), **known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} must say how the latents were made: {{"tokenizer": "<fingerprint>", "fps": 8}}') from error
    if origin.tokenizer != tokenizer.fingerprint:
        raise UserError(f"{path}: tokenizer {origin.tokenizer} made these latents, not {tokenizer.fingerprint}: name that one's folder")
    return origin


def import_latents(place: Location, folder: Location, tokenizer: VideoTokenizer, text: TextEncoder, held_out: float = 0.1) -> Manifest:
    """Writes the latents of `place` as the shards of a data set in `folder`, whose first manifest it returns unwritten. What an
    interrupted call has written is kept. Every sample is a source of its own.

    Raises UserError naming the sample whose latent cannot be, and when the statistics are not as stated.
    """
    origin, sources = read_origin(place, tokenizer), list_latents(str(place))
    shapes, contents = survey(sources, tokenizer)
    spec = EncodeSpec(
        fps=origin.fps,
        buckets=shapes,
        held_out=held_out,
        channels=tokenizer.channels,
        stride=tokenizer.stride,
        text_tokens=text.max_tokens,
        text_width=text.width,
    )
    records, plan = [], plan_chunks(sources, spec)
    for number, chunk in enumerate(plan):
        work = fingerprint(work_fingerprint(chunk, spec, tokenizer, text), contents[plan.members(number)].tolist())
        parts = (encoded(source, spec, tokenizer, text) for source in chunk.sources)
        records.append(read_finished(chunk, work, folder) or commit_chunk(chunk, spec, work, list(parts), folder))
    codecs = {"tokenizer": tokenizer.fingerprint, "text": text.fingerprint}
    name = manifests.dataset_fingerprint(sources, spec, tuple(codecs.values()))
    made = manifests.build(records, spec, str(place), fingerprint=name, **codecs)
    _check_statistics(origin, made, place / FILE)
    return made


def survey(sources: Sequence[Source], tokenizer: VideoTokenizer) -> tuple[tuple[Bucket, ...], npt.NDArray[np.uint32]]:
    """(the shapes that there are, the crc32 of every latent's file), reading each once. Raises UserError as parse_latent does."""
    shapes, contents = set(), np.empty(len(sources), np.uint32)
    for place, source in enumerate(sources):
        data = read_file(source)
        shapes.add(bucket_of(parse_latent(data, source, tokenizer), tokenizer))
        contents[place] = zlib.crc32(data)
    return tuple(sorted(shapes)), contents


def encoded(source: Source, spec: EncodeSpec, tokenizer: VideoTokenizer, text: TextEncoder) -> tuple[SourceRecord, Sequence[EncodedClip]]:
    """As if the source had been decoded to one clip and encoded."""
    latent = from_bfloat16(to_bfloat16(parse_latent(read_file(source), source, tokenizer)))
    bucket = bucket_of(latent, tokenizer)
    meta: dict[str, Any] = {"caption": source.caption, "source": source.id, "name": source.name, "licence": source.licence}
    meta |= {"start": 0.0, "stop": bucket.frames / spec.fps, "fps": spec.fps, "kind": source.kind, "config": spec.fingerprint}
    meta |= {"frames": bucket.frames, "height": bucket.height, "width": bucket.width, "values": {}}
    clip = EncodedClip(bucket, 0, Sample(f"{source.id}-0000", latent, text.encode(source.caption), meta), LatentSums.of(latent))
    record = SourceRecord(source.id, source.name, "ok", clips={bucket.id: 1}, caption=source.caption, licence=source.licence)
    return record, [clip]


def read_file(source: Source) -> bytes:
    file = source.open()
    return storage.read_bytes(storage.location(file)) if isinstance(file, str) else file.getvalue()


def parse_latent(data: bytes, source: Source, tokenizer: VideoTokenizer) -> np.ndarray:
    """float32 [T, C, h, w]. Raises UserError naming the sample when it is damaged or of another shape."""
    try:
        latent = np.load(io.BytesIO(data)) if source.name.endswith(".npy") else _tensor(data)
    except (ValueError, EOFError, SafetensorError, KeyError) as error:
        raise UserError(f"{source.name} holds no latent ({error}): it must be one array of floats") from error
    if latent.ndim != 4 or latent.shape[1] != tokenizer.channels or not np.isfinite(latent).all():
        raise UserError(f"{source.name} is {list(latent.shape)}: it must be finite [T, C, h, w] with C = {tokenizer.channels}")
    return latent.astype(np.float32)


def bucket_of(latent: np.ndarray, tokenizer: VideoTokenizer) -> Bucket:
    """Of the frames that a raw latent [T, C, h, w] stands for."""
    frames, _, height, width = latent.shape
    time, rows, columns = tokenizer.stride
    return Bucket(1 + (frames - 1) * time, height * rows, width * columns)


def _tensor(data: bytes) -> np.ndarray:
    """The one tensor of a safetensors file, bf16 among others, which numpy does not know."""
    try:
        (latent,) = load(data).values()
    except (TypeError, KeyError, AttributeError):
        return unpack(data)
    return latent


def _check_statistics(origin: Origin, made: Manifest, path: Location) -> None:
    """Latents that were normalised before they were stored, or were read in another order, show here."""
    found = made.latent_statistics
    if not origin.std:
        return
    if len(origin.std) != len(found.std) or len(origin.mean) != len(found.mean):
        raise UserError(f"{path}: mean and std have {len(origin.mean)} and {len(origin.std)} numbers, latents {len(found.std)} channels")
    for channel, stated in enumerate(origin.std):
        there = found.mean[channel], found.std[channel]
        if max(abs(there[0] - origin.mean[channel]), abs(there[1] - stated)) > TOLERANCE * stated:
            raise UserError(
                f"{path}: channel {channel} should have mean {origin.mean[channel]:.3g} and deviation {stated:.3g}, "
                f"but has {there[0]:.3g} and {there[1]:.3g}: store raw latents, as the tokenizer gives them"
            )
