import errno
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import s3, storage
from data_pipeline.errors import UserError
from data_pipeline.storage import Location, S3Path, StorageError
from tests.s3 import S3Server, new_bucket, pointed_at

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """The same tests run on a disk and in a bucket."""
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket") / "some prefix/ünï"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE", 0.3)
    monkeypatch.setattr(s3, "FIRST_PAUSE", 0.01)


def test_what_is_written_is_read_back_whole_and_in_ranges(folder: Location) -> None:
    path = folder / "a" / "data.bin"
    storage.write_bytes(path, DATA)
    assert storage.read_bytes(path) == DATA
    assert storage.size(path) == len(DATA)
    assert storage.read_ranges(path, [(3, 5), (0, 1), (len(DATA) - 2, 10)]) == [DATA[3:8], DATA[:1], DATA[-2:]]


def test_empty_files_are_files(folder: Location) -> None:
    storage.write_bytes(folder / "empty", b"")
    assert (storage.read_bytes(folder / "empty"), storage.size(folder / "empty")) == (b"", 0)


def test_a_file_of_several_parts_arrives_whole(folder: Location, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(2 * s3.PART + 12345)
    with storage.atomic(folder / "large.tar") as temporary:
        temporary.write_bytes(data)
    storage.download(folder / "large.tar", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data == storage.read_bytes(folder / "large.tar")


def test_a_missing_file_is_a_missing_file(folder: Location) -> None:
    assert storage.size(folder / "none") is None
    for read in (storage.read_bytes, lambda path: storage.read_ranges(path, [(0, 1)]), lambda path: storage.download(path, Path("x"))):
        with pytest.raises(FileNotFoundError) as raised:
            read(folder / "none")
        assert raised.value.filename == str(folder / "none")
    storage.delete(folder / "none")


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(folder: Location) -> None:
    storage.write_bytes(folder / "file", b"old")

    def cut_off() -> None:
        with storage.atomic(folder / "file") as temporary:
            temporary.write_bytes(b"half of the ne")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cut_off()
    assert [(path.name, size) for path, size in storage.list_files(folder)] == [("file", 3)]
    assert storage.read_bytes(folder / "file") == b"old"


def test_files_are_listed_with_their_sizes_through_all_folders_and_one_is_deleted(folder: Location) -> None:
    for number in range(5):
        storage.write_bytes(folder / f"sub{number % 2}" / f"{number}.json", b"x" * number)
    found = dict(storage.list_files(folder))
    assert found == {folder / f"sub{number % 2}" / f"{number}.json": number for number in range(5)}
    assert list(storage.list_files(folder / "nowhere")) == []
    storage.delete(folder / "sub0" / "0.json")
    assert {path.name for path, _ in storage.list_files(folder)} == {"1.json", "2.json", "3.json", "4.json"}


def test_a_listing_of_many_pages_is_complete(bucket: S3Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: storage.write_bytes(bucket / f"{number:04d}", b""), range(1005)))
    assert [path.name for path, _ in storage.list_files(bucket)] == [f"{number:04d}" for number in range(1005)]


def test_of_many_who_create_a_file_one_succeeds(folder: Location) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create(folder / "lease", str(number).encode()), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(folder / "lease") == str(won.index(True)).encode()


def test_json_has_one_form(folder: Location) -> None:
    storage.write_json(folder / "a.json", {"b": 1, "a": 0.1})
    storage.write_json(folder / "b.json", {"a": 0.1, "b": 1})
    assert storage.read_bytes(folder / "a.json") == storage.read_bytes(folder / "b.json")


def test_names_keep_their_meaning_in_s3() -> None:
    path = storage.location("s3://bucket/data/set/17x64x64/shard-000001.tar")
    assert isinstance(path, S3Path)
    assert (path.name, path.stem, path.suffix) == ("shard-000001.tar", "shard-000001", ".tar")
    assert str(path.with_suffix(".idx")) == "s3://bucket/data/set/17x64x64/shard-000001.idx"
    assert str(path.parent / "other") == "s3://bucket/data/set/17x64x64/other"
    assert path.absolute() is storage.location(path)
    assert storage.location("some/folder") == Path("some/folder")
    with pytest.raises(UserError, match="names no bucket"):
        storage.location("s3:///x")


def test_a_bucket_that_is_not_there_is_one_line_that_names_it(bucket: S3Path) -> None:
    nowhere = S3Path("no-such-bucket-here", "x")
    for use in (storage.read_bytes, lambda path: list(storage.list_files(path)), lambda path: storage.write_bytes(path, b"1")):
        with pytest.raises(
            StorageError, match="no bucket no-such-bucket-here: create it, or check the name and AWS_ENDPOINT_URL"
        ) as raised:
            use(nowhere)
        assert "\n" not in str(raised.value)


def test_wrong_keys_are_refused_at_once_in_one_line(bucket: S3Path, s3_server: S3Server) -> None:
    for status in ("403 Invalid Access Key Id", "403 Signature Does Not Match", "403 Access Denied"):
        s3_server.gate = lambda request, status=status: status
        before = len(s3_server.requests)
        with pytest.raises(StorageError, match=r"access denied .*check AWS_ACCESS_KEY_ID") as raised:
            storage.write_bytes(bucket / "x", b"1")
        assert "\n" not in str(raised.value)
        assert len(s3_server.requests) == before + 1


def test_a_twentieth_of_all_requests_failing_changes_nothing(bucket: S3Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "FIRST_PAUSE", 0.01)
    draw, refused = random.Random(1), []

    def gate(request: object) -> str | None:
        if draw.random() >= 0.05:
            return None
        refused.append(draw.choice(["503 Slow Down", "500 Internal Error", "503 Service Unavailable", "502 Bad Gateway"]))
        return refused[-1]

    s3_server.gate = gate
    storage.FAULTS.take()
    for number in range(120):
        storage.write_bytes(bucket / str(number), str(number).encode())
    assert [storage.read_bytes(bucket / str(number)) for number in range(120)] == [str(number).encode() for number in range(120)]
    assert len(list(storage.list_files(bucket))) == 120
    assert len(set(refused)) == 4
    assert storage.FAULTS.take() == {"transient": len(refused)}


def test_a_missing_file_is_an_answer_and_no_fault_but_a_refusal_is_one(bucket: S3Path, s3_server: S3Server) -> None:
    storage.FAULTS.take()
    assert storage.size(bucket / "none") is None
    assert storage.create(bucket / "lease", b"1")
    assert not storage.create(bucket / "lease", b"2")
    assert storage.FAULTS.take() == {}
    s3_server.gate = lambda request: "403 Access Denied"
    with pytest.raises(StorageError):
        storage.write_bytes(bucket / "x", b"1")
    assert storage.FAULTS.take() == {"denied": 1}
    assert storage.FAULTS.take() == {}


@pytest.mark.usefixtures("impatient")
def test_throttling_without_end_is_given_up_with_one_line(bucket: S3Path, s3_server: S3Server) -> None:
    s3_server.gate = lambda request: "503 Slow Down"
    with pytest.raises(StorageError, match=r"fails since .*SlowDown.*what is committed is kept, run again when it is back"):
        storage.write_bytes(bucket / "x", b"1")
    assert len(s3_server.requests) > 3


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_away_is_named_and_one_that_returns_is_found() -> None:
    server = S3Server()
    port = int(server.endpoint.rpartition(":")[2])
    with pointed_at(server.endpoint):
        path = new_bucket() / "file"
        storage.write_bytes(path, b"1")
        server.stop()
        with pytest.raises(StorageError, match="run again when it is back"):
            storage.read_bytes(path)
        s3.PATIENCE = 20.0  # undone by the fixture
        returned: list[S3Server] = []
        timer = threading.Timer(0.5, lambda: returned.append(S3Server(port)))
        timer.start()
        assert storage.read_bytes(path) == b"1"
        timer.join()
        returned[0].stop()


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, storage.atomic(tmp_path / "shard.tar"), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "shard.tar"))
    assert list(tmp_path.iterdir()) == []


def client_error(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (client_error("NoSuchKey", 404), "missing"),
        (client_error("NoSuchBucket", 404), "no bucket"),
        (client_error("AccessDenied", 403), "denied"),
        (client_error("SlowDown", 503), "transient"),
        (client_error("Whatever", 599), "transient"),
        (client_error("TooManyRequests", 429), "transient"),
        (client_error("InvalidArgument", 400), "refused"),
        (client_error("PreconditionFailed", 412), "exists"),
        (NoCredentialsError(), "denied"),
        (EndpointConnectionError(endpoint_url="http://nowhere"), "transient"),
        (TimeoutError(), "transient"),
        (ConnectionResetError(), "transient"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "refused"),
        (TypeError("a mistake of ours"), "refused"),
        (ParamValidationError(report="Invalid bucket name"), "refused"),
    ],
)
def test_faults_that_may_pass_are_told_from_those_that_will_not(error: Exception, kind: str) -> None:
    assert s3.fault(error) == kind


@given(st.integers(0, 10**6))
def test_pauses_grow_up_to_a_limit(tries: int) -> None:
    assert s3.FIRST_PAUSE <= s3.pause(tries) <= s3.pause(tries + 1) <= s3.LONGEST_PAUSE


def test_what_a_cut_off_write_left_behind_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".shard.tar.0123.tmp").write_bytes(b"half")
    storage.write_bytes(tmp_path / "whole", b"")
    assert [path.name for path, _ in storage.list_files(tmp_path)] == ["whole"]
