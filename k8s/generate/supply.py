"""The dashboards of what a run lives on: its data, and the cluster it stands on."""

from __future__ import annotations

from k8s.generate.expressions import SPENT, by, of_namespace, rate, shown
from k8s.generate.panels import Board, Panel, lines


def gpu(title: str, description: str, unit: str, metric: str) -> Panel:
    return Panel(title, description, unit, ((of_namespace(metric), "{{pod}} {{gpu}}"),), gpu=True, width=8)


DATA = Board(
    "data",
    "Data",
    (
        lines(
            "Videos encoded",
            "Done, whatever came of them, and in all.",
            "none",
            (shown("encode_sources_done"), "{{run}} done"),
            (shown("encode_sources"), "{{run}} in all"),
            width=8,
        ),
        lines(
            "Clips per second",
            "Written by the encode pool. A video gives several, one or none.",
            "short",
            (rate("encode_clips_total"), "{{run}}"),
            width=8,
        ),
        lines(
            "Videos waiting",
            "Still to be encoded, of the data set that the encode pool is at.",
            "none",
            (f"{shown('encode_sources')} - {shown('encode_sources_done')}", "{{run}}"),
            width=8,
        ),
        lines(
            "Data wait",
            "Share of the wall time that training waits for batches: above a few percent the loader is the bottleneck of the run.",
            "percentunit",
            (f"sum {by()} ({rate('time_seconds_total', activity='data')}) / {SPENT}", "{{run}}"),
        ),
        lines(
            "Storage errors",
            "Requests to S3 in the last minutes that met a fault, of all processes. transient: throttled or cut off, and repeated; the "
            "others end what asked.",
            "short",
            (f"increase({shown('storage_errors_total')}[$__rate_interval])", "{{run}} {{fault}}"),
        ),
        lines(
            "Queues of the encode pool",
            "Videos waiting and being decoded, pieces decoded and being encoded, chunks being written. Pieces pile up before encoders that "
            "are too few.",
            "none",
            (shown("encode_queue_items"), "{{run}} {{queue}}"),
            width=8,
        ),
        lines(
            "Encode pool",
            "Actors. They move with the load, and with the CPUs and GPUs that training leaves to them.",
            "none",
            (shown("encode_actors"), "{{run}} {{pool}}"),
            kind="steps",
            width=8,
        ),
        lines(
            "Bottleneck of encoding",
            "What the encode pool waits for: decode, encode, storage, or none of them.",
            "none",
            (f"{shown('encode_bottleneck')} == 1", "{{run}} {{bottleneck}}"),
            kind="steps",
            width=8,
        ),
        lines(
            "Videos by outcome",
            "ok, rejected by a filter, failed to decode. The manifest names each one.",
            "none",
            (shown("dataset_sources"), "{{run}} {{outcome}}"),
            width=8,
        ),
        lines(
            "Rejects by reason",
            "Videos that gave no clip for any bucket; 0 when there are none.",
            "none",
            (f"{shown('dataset_rejected_sources')} or 0 * {shown('dataset_sources', outcome='rejected')}", "{{run}} {{reason}}"),
            width=8,
        ),
        lines("Clips", "Of the data set, in all buckets, by split.", "none", (shown("dataset_clips"), "{{run}} {{split}}"), width=8),
    ),
)

CLUSTER = Board(
    "cluster",
    "Cluster",
    (
        lines(
            "Targets that answer",
            "Endpoints of the run's pods: 1 answers, 0 is down.",
            "none",
            ('up{job="videomar", namespace=~"$namespace"}', "{{pod}} {{instance}}"),
            kind="steps",
            width=8,
        ),
        lines(
            "Processes behind the endpoints",
            "Controller and seats of a pod share one endpoint.",
            "none",
            (shown("exporter_processes"), "{{run}} {{instance}}"),
            width=8,
        ),
        lines(
            "Series refused",
            "Updates with more label values than declared; 0 when all is well.",
            "none",
            (f"{shown('series_dropped_total')} or 0 * {shown('exporter_processes')}", "{{run}}"),
            width=8,
        ),
        lines(
            "Ray nodes",
            "Nodes whose agent reports.",
            "none",
            (f"count by (namespace) ({of_namespace('ray_node_cpu_count')})", "{{namespace}}"),
            kind="steps",
            width=8,
        ),
        lines("CPU", "Of Ray's nodes.", "percent", (of_namespace("ray_node_cpu_utilization"), "{{pod}} {{ip}}"), width=8),
        lines("Memory", "Used on Ray's nodes.", "bytes", (of_namespace("ray_node_mem_used"), "{{pod}} {{ip}}"), width=8),
        lines(
            "Ray's CPUs",
            "Reserved and free, by Ray's own count. Nothing free and work waiting: add workers.",
            "none",
            (f"sum by (State) ({of_namespace('ray_resources', Name='CPU')})", "{{State}}"),
            width=8,
        ),
        lines(
            "Object store",
            "Used memory of Ray's object store; only messages pass through it.",
            "bytes",
            (f"sum by (namespace) ({of_namespace('ray_object_store_used_memory')})", "{{namespace}}"),
            width=8,
        ),
        lines(
            "Network received",
            "By node.",
            "Bps",
            (f"rate({of_namespace('ray_node_network_received')}[$__rate_interval])", "{{pod}} {{ip}}"),
            width=8,
        ),
        gpu(
            "GPU utilisation",
            "Share of time with a kernel running. High and slow at once: look at the tensor cores.",
            "percent",
            "DCGM_FI_DEV_GPU_UTIL",
        ),
        gpu(
            "Tensor cores",
            "Share of cycles with tensor cores busy: the hardware's own view of MFU.",
            "percentunit",
            "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        ),
        gpu("GPU memory", "Frame buffer in use, MiB.", "decmbytes", "DCGM_FI_DEV_FB_USED"),
        gpu("GPU temperature", "Above about 85 C clocks fall.", "celsius", "DCGM_FI_DEV_GPU_TEMP"),
        gpu("GPU power", "One GPU far below its peers is throttled or idle.", "watt", "DCGM_FI_DEV_POWER_USAGE"),
        gpu("GPU errors", "XID of the last error: 79 fell off the bus, 48 and 63 memory.", "none", "DCGM_FI_DEV_XID_ERRORS"),
    ),
)
