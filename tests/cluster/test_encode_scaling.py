import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.encode_scaling import Limits, Load, LoadMeter, Queues, Sizes, bottleneck, first_sizes, limits_of, rescaled

SHARES = st.floats(0, 1)
LOADS = st.builds(Load, SHARES, SHARES, SHARES, SHARES)
RANGES = st.tuples(st.integers(1, 20), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))
LIMITS = st.builds(Limits, RANGES, RANGES, st.integers(0, 1))


@given(st.builds(Sizes, st.integers(1, 50), st.integers(1, 50)), LOADS, LIMITS)
def test_pools_stay_within_their_limits_even_when_the_cluster_has_shrunk(sizes: Sizes, load: Load, limits: Limits) -> None:
    after = rescaled(sizes, load, limits)
    for name in ("decoders", "encoders"):
        low, high = getattr(limits, name)
        assert low <= getattr(after, name) <= high


def test_what_holds_the_rest_up_grows_by_one_and_at_its_limit_the_rest_shrinks() -> None:
    limits = Limits((1, 4), (1, 2))
    encoders_slow, decoders_slow, balanced = Load(blocked=0.9), Load(starved=0.9), Load(0.2, 0.2)
    assert rescaled(Sizes(3, 1), encoders_slow, limits) == Sizes(3, 2)
    assert rescaled(Sizes(3, 2), encoders_slow, limits) == Sizes(2, 2)
    assert rescaled(Sizes(3, 2), decoders_slow, limits) == Sizes(4, 2)
    assert rescaled(Sizes(4, 2), decoders_slow, limits) == Sizes(4, 1)
    assert rescaled(Sizes(3, 2), balanced, limits) == Sizes(3, 2)


def test_one_decoder_more_than_there_are_cpus_comes_only_while_the_others_wait_for_storage() -> None:
    limits = limits_of(4)
    assert first_sizes(limits) == Sizes(4, 1)
    assert rescaled(Sizes(4, 2), Load(starved=0.9, waiting=0.1), limits) == Sizes(4, 1)
    assert rescaled(Sizes(4, 2), Load(starved=0.9, waiting=0.4), limits) == Sizes(5, 2)
    assert rescaled(Sizes(3, 2), Load(starved=0.9), limits) == Sizes(4, 2)


@given(st.integers(0, 100))
def test_a_cluster_of_any_size_has_a_place_to_begin(cpus: int) -> None:
    limits = limits_of(cpus)
    first = first_sizes(limits)
    assert rescaled(first, Load(), limits) == first
    assert limits.encoders[1] == max(cpus, 1)


def test_the_load_is_an_average_over_time() -> None:
    meter = LoadMeter()
    meter.add(Queues(held=2), Sizes(2, 1), 3.0)
    meter.add(Queues(idle=1), Sizes(2, 1), 1.0)
    meter.waited += 2.0
    load = meter.take()
    assert (load.blocked, load.starved, load.waiting) == (pytest.approx(0.75), pytest.approx(0.25), pytest.approx(0.25))
    assert meter.take() == Load()


def test_the_bottleneck_is_what_the_rest_waits_for() -> None:
    assert bottleneck(Load(blocked=0.8)) == "encode"
    assert bottleneck(Load(starved=0.8)) == "decode"
    assert bottleneck(Load(writing=0.8, starved=0.9)) == "storage"
    assert bottleneck(Load(0.1, 0.1, 0.1)) == "none"
