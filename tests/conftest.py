"""Fixtures of several folders: where the real clips are, and a tiny encoded data set of synthetic videos."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline import manifest
from data_pipeline.buckets import Bucket
from data_pipeline.chunks import plan_chunks
from data_pipeline.encode import encode_chunk, sample_for_fit
from data_pipeline.loader import TOKENIZER_FOLDER
from data_pipeline.sources import list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import S3Path
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text.hashing import HashingText
from data_pipeline.tokenizers.linear import LinearTokenizer
from tests.s3 import S3Server, new_bucket, pointed_at

REAL_VIDEOS = "VIDEOMAR_TEST_VIDEOS"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so begun in the background by a script; what the tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real clips that the environment names; tests that need it are skipped without."""
    folder = Path(os.environ.get(REAL_VIDEOS, ""))
    if REAL_VIDEOS not in os.environ or not folder.is_dir():
        pytest.skip(f"{REAL_VIDEOS} does not name a folder of real clips")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoded data set: 48 synthetic clips in the buckets 1x32x32, 5x32x32 and 9x32x32 (1, 2 and 3 latent frames of 16 tokens)."""
    root = tmp_path_factory.mktemp("tiny")
    videos, folder = root / "videos", root / "dataset"
    write_synthetic(videos, clips=48, seed=0, size=32, frames=10, fps=8)
    spec = EncodeSpec(fps=8, buckets=(Bucket(1, 32, 32), Bucket(5, 32, 32), Bucket(9, 32, 32)), channels=4, text_tokens=8, text_width=16)
    sources = list_sources(videos, videos / "captions.csv").sources
    tokenizer, text = LinearTokenizer.fit(sample_for_fit(sources, spec), spec.channels, spec.stride), HashingText(16, 8)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    records = [encode_chunk(chunk, spec, tokenizer, text, folder) for chunk in plan_chunks(sources, spec)]
    fingerprint = manifest.dataset_fingerprint(sources, spec)
    made = manifest.build(records, spec, str(videos), fingerprint=fingerprint, tokenizer=tokenizer.fingerprint, text=text.fingerprint)
    manifest.write(made, folder)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server; S3 paths of this process and its children lead there for the rest of the session."""
    server = S3Server()
    with pointed_at(server.endpoint):
        yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server) -> Iterator[S3Path]:
    """An empty bucket."""
    yield new_bucket()
    s3_server.gate = lambda request: None
