import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.buckets import Bucket, centre, cover, latent_shape

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
