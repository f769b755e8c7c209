import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.buckets import Bucket, centre, cover, fitting, kept, latent_shape

SIDES = st.integers(1, 2000)


@given(SIDES, SIDES, SIDES)
def test_an_id_parses_back_to_its_bucket(frames: int, height: int, width: int) -> None:
    bucket = Bucket(frames, height, width)
    assert Bucket.parse(bucket.id) == bucket


@pytest.mark.parametrize("text", ["17x96", "17x96x96x3", "axbxc", "", "17x-96x96", "0x96x96"])
def test_what_is_no_bucket_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="bucket"):
        Bucket.parse(text)


@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(8, 512), st.integers(8, 512))
def test_the_resized_picture_covers_the_bucket_and_is_cut_in_the_middle(h: int, w: int, bh: int, bw: int) -> None:
    bucket = Bucket(17, bh, bw)
    height, width = cover(h, w, bucket)
    assert height >= bh
    assert width >= bw
    assert height == bh or width == bw
    rows, columns = centre(height, width, bucket)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (bh, bw)
    assert abs(rows.start - (height - rows.stop)) <= 1
    assert abs(columns.start - (width - columns.stop)) <= 1


def test_a_bucket_holds_only_pictures_that_need_no_enlarging() -> None:
    bucket = Bucket(17, 64, 96)
    assert bucket.holds(64, 96)
    assert not bucket.holds(63, 500)
    assert not bucket.holds(500, 95)


def test_the_first_frame_alone_and_then_groups_make_the_latent_frames() -> None:
    assert latent_shape(Bucket(17, 64, 96), (4, 8, 8)) == (5, 8, 12)
    assert latent_shape(Bucket(1, 64, 64), (4, 8, 8)) == (1, 8, 8)


@pytest.mark.parametrize(("bucket", "named"), [("16x64x64", "16 frames"), ("17x60x64", "height 60"), ("17x64x60", "width 60")])
def test_a_bucket_that_the_stride_does_not_divide_is_refused_by_the_side_at_fault(bucket: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"{bucket}.*{named}"):
        latent_shape(Bucket.parse(bucket), (4, 8, 8))


WIDE, SQUARE, TALL, LARGE, LONG = (Bucket.parse(text) for text in ("17x96x160", "17x128x128", "17x160x96", "17x192x192", "33x128x128"))
TABLE = (WIDE, SQUARE, TALL, LARGE, LONG)


def test_a_source_goes_to_every_bucket_that_its_pictures_fill() -> None:
    assert fitting(1080, 1920, TABLE, one_aspect=False) == TABLE
    assert fitting(144, 176, TABLE, one_aspect=False) == (WIDE, SQUARE, LONG)
    assert fitting(100, 100, TABLE, one_aspect=False) == ()


def test_of_several_aspects_the_one_that_crops_least_is_chosen_per_resolution_and_length() -> None:
    assert fitting(1080, 1920, TABLE, one_aspect=True) == (WIDE, LARGE, LONG)
    assert fitting(1920, 1080, TABLE, one_aspect=True) == (TALL, LARGE, LONG)
    assert fitting(1000, 1000, TABLE, one_aspect=True) == (SQUARE, LARGE, LONG)
    assert fitting(140, 300, TABLE, one_aspect=True) == (WIDE, LONG)
    assert fitting(100, 160, TABLE, one_aspect=True) == (WIDE,)


@given(st.integers(1, 400), st.integers(1, 400))
def test_one_aspect_leaves_out_only_what_another_of_that_resolution_takes(height: int, width: int) -> None:
    everything, some = (fitting(height, width, TABLE, one_aspect=choice) for choice in (False, True))
    assert set(some) <= set(everything)
    assert all(any(kept(height, width, other) >= kept(height, width, bucket) for other in some) for bucket in everything)
