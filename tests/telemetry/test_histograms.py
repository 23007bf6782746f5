"""Our histograms against the SDK's own: the same measurements make the same points."""

from __future__ import annotations

import threading
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
)

from host_client.telemetry.metrics._histograms import MAX_SERIES, OVERFLOW, Recorder
from host_client.telemetry.metrics.instruments import BY_NAME

METRIC = BY_NAME["gen_ai.client.operation.duration"]
VALUES = st.one_of(
    st.floats(min_value=0, max_value=1e9), st.sampled_from(METRIC.buckets), st.integers(min_value=0, max_value=10**12)
)
LABELS = st.dictionaries(st.sampled_from(["tenant", "model", "kind"]), st.sampled_from(["a", "b"]))


def points(metric: Metric) -> dict[frozenset[tuple[str, object]], HistogramDataPoint]:
    data = cast("Histogram", metric.data)
    return {frozenset((point.attributes or {}).items()): point for point in data.data_points}


def temporality(metric: Metric) -> AggregationTemporality:
    return cast("Histogram", metric.data).aggregation_temporality


def sdks(measured: list[tuple[float, dict[str, str]]]) -> Metric:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test")
    histogram = meter.create_histogram(
        METRIC.name, METRIC.unit, METRIC.what, explicit_bucket_boundaries_advisory=METRIC.buckets
    )
    for value, labels in measured:
        histogram.record(value, labels)
    data = reader.get_metrics_data()
    assert data is not None
    return data.resource_metrics[0].scope_metrics[0].metrics[0]


@given(st.lists(st.tuples(VALUES, LABELS), min_size=1, max_size=30))
def test_a_point_is_what_the_sdks_histogram_makes_of_the_same(measured: list[tuple[float, dict[str, str]]]) -> None:
    recorder = Recorder(METRIC)
    for value, labels in measured:
        recorder.record(value, labels)
    ours, theirs = recorder.collected(), sdks(measured)
    assert ours is not None
    assert (ours.name, ours.description, ours.unit) == (theirs.name, theirs.description, theirs.unit)
    assert temporality(ours) == temporality(theirs)
    assert points(ours).keys() == points(theirs).keys()
    for key, point in points(ours).items():
        expected = points(theirs)[key]
        for field in ("count", "sum", "bucket_counts", "explicit_bounds", "min", "max"):
            assert getattr(point, field) == getattr(expected, field), field
        assert 0 < point.start_time_unix_nano <= point.time_unix_nano


def test_the_order_of_labels_makes_no_series() -> None:
    recorder = Recorder(METRIC)
    recorder.record(1.0, {"tenant": "a", "model": "b"})
    recorder.record(1.0, {"model": "b", "tenant": "a"})
    metric = recorder.collected()
    assert metric is not None and [point.count for point in points(metric).values()] == [2]


def test_nothing_measured_is_no_metric() -> None:
    assert Recorder(METRIC).collected() is None


def test_beyond_the_bound_all_share_one_series_and_nothing_is_lost() -> None:
    recorder = Recorder(METRIC)
    for number in range(MAX_SERIES + 100):
        recorder.record(1.0, {"tenant": str(number)})
    metric = recorder.collected()
    assert metric is not None
    found = points(metric)
    assert len(found) == MAX_SERIES and sum(point.count for point in found.values()) == MAX_SERIES + 100
    assert found[frozenset(OVERFLOW.items())].count == 101


def test_what_is_read_while_it_is_written_adds_up() -> None:
    recorder, read = Recorder(METRIC), list[tuple[int, float]]()

    def write() -> None:
        for number in range(20_000):
            recorder.record(1.0, {"tenant": str(number % 50)})

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (metric := recorder.collected()) is not None:
            found = points(metric).values()
            read.append((sum(point.count for point in found), sum(point.sum for point in found)))
    for writer in writers:
        writer.join()
    assert all(count == total for count, total in read)
    metric = recorder.collected()
    assert metric is not None and sum(point.count for point in points(metric).values()) == 40_000


def test_a_series_under_which_nothing_was_measured_is_not_told_of() -> None:
    recorder = Recorder(METRIC)
    unused, used = recorder.series({"tenant": "a"}), recorder.series({"tenant": "b"})
    assert unused is not used and recorder.series({"tenant": "a"}) is unused
    assert recorder.collected() is None
    used.record(1.0)
    assert (metric := recorder.collected()) is not None
    assert [dict(labels) for labels in points(metric)] == [{"tenant": "b"}]
