"""Small real inputs for the data tests: synthetic mp4 files, an encoded data set, and writers of awkward videos."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline.buckets import Bucket
from data_pipeline.chunks import plan_chunks
from data_pipeline.encode import encode_chunk, sample_for_fit
from data_pipeline.loader import TOKENIZER_FOLDER, Dataset, open_dataset
from data_pipeline.records import ChunkRecord
from data_pipeline.sources import Source, list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text.hashing import HashingText
from data_pipeline.tokenizers.linear import LinearTokenizer

SPEC = EncodeSpec(fps=8, buckets=(Bucket(5, 32, 32), Bucket(9, 48, 48)), held_out=0.2, sources_per_shard=4)


@dataclass(frozen=True)
class Encoded:
    """Everything that went into a data set, and the data set."""

    sources: tuple[Source, ...]
    spec: EncodeSpec
    tokenizer: LinearTokenizer
    text: HashingText
    records: list[ChunkRecord]
    dataset: Dataset


def encode_folder(videos: Path, folder: Path, spec: EncodeSpec = SPEC) -> Encoded:
    """The whole way from a folder of videos to an open data set, in this process."""
    captions = videos / "captions.csv"
    sources = list_sources(videos, captions if captions.exists() else None).sources
    tokenizer = LinearTokenizer.fit(sample_for_fit(sources, spec, videos=str(videos)), spec.channels, spec.stride)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    text = HashingText(spec.text_width, spec.text_tokens)
    records = [encode_chunk(chunk, spec, tokenizer, text, folder) for chunk in plan_chunks(sources, spec)]
    name = manifest.dataset_fingerprint(sources, spec)
    built = manifest.build(records, spec, str(videos), fingerprint=name, tokenizer=tokenizer.fingerprint, text=text.fingerprint)
    manifest.write(built, folder)
    return Encoded(sources, spec, tokenizer, text, records, open_dataset(folder))


def bytes_by_name(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def moving_frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, height, width, 3]: a smooth picture that drifts to the right."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    frames = [
        np.stack([127 + 100 * np.sin((x - 2 * t) / 9 + y / 13 * (c + 1) + phase[c]) for c in range(3)], axis=-1) for t in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def write_turned(path: Path, matrix: tuple[int, ...] = (0, 1, -1, 0)) -> None:
    """Writes a rotation into the track header of an mp4; the default is a quarter turn."""
    plain = [struct.pack(">i", value << 16) for value in (1, 0, 0, 1)]
    turned = [struct.pack(">i", value << 16) for value in matrix]
    box = path.read_bytes()
    at = box.index(b"tkhd") + 44  # a b u c d v x y w, of which a b c d rotate
    assert box[at : at + 8] == plain[0] + plain[1]
    path.write_bytes(box[:at] + turned[0] + turned[1] + box[at + 8 : at + 12] + turned[2] + turned[3] + box[at + 20 :])


def write_streams(path: Path, tracks: Sequence[np.ndarray]) -> Path:
    """An mp4 with one video stream of 8 frames per second for each of `tracks` [F, H, W, 3]."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=8) for _ in tracks]
        for stream, frames in zip(streams, tracks, strict=True):
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for stream, frames in zip(streams, tracks, strict=True):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return path


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    """write_video(frames, times_ms, name, pixels, gop) -> path: any size, any presentation times."""

    def write(
        frames: np.ndarray,
        times_ms: Sequence[int] | None = None,
        name: str = "video.mp4",
        pixels: str = "yuv420p",
        gop: int = 12,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        times = range(0, 125 * len(frames), 125) if times_ms is None else times_ms
        with av.open(str(path), "w") as container:
            options = {"preset": "ultrafast", "crf": "12", "g": str(gop)}
            stream = container.add_stream("libx264", rate=Fraction(1000), options=options)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
            for frame, time in zip(frames, times, strict=True):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture.pts, picture.time_base = time, Fraction(1, 1000)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def synthetic_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic clips of 20 frames, 64x64, 8 per second, with captions.csv."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder, clips=12, seed=3, size=64, frames=20)
    return folder


@pytest.fixture(scope="session")
def encoded(synthetic_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """The synthetic clips as a data set. Read only: tests that change it make their own."""
    return encode_folder(synthetic_videos, tmp_path_factory.mktemp("dataset"))
