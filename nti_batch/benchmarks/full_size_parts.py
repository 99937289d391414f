"""The parts of `nti-batch bench --full-size`; each yields its rows as it knows them."""

import time
from collections.abc import Iterator

import torch

from nti_batch.benchmarks.full_size import write_checkpoint, write_images
from nti_batch.benchmarks.full_size_setup import FullSize, Row, Values
from nti_batch.benchmarks.job_loop import load_images
from nti_batch.benchmarks.reference_loop import reference_loop
from nti_batch.benchmarks.timing import synchronize
from nti_batch.benchmarks.unet_calls import KINDS, Calls, kernels, timed
from nti_batch.benchmarks.update_counts import Method, fixed_reference_updates, measured_counts, whole_counts
from nti_batch.benchmarks.whole_job import run_job
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.acceleration import Acceleration
from nti_batch.models.source import Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription

NUM_STEPS = 50
REFERENCE_STEPS = 5
"""Timesteps of the reference loop that are measured: all would take a minute for an image."""

FORWARD_PASSES, MAX_UPDATES = 3, InversionSettings().num_inner_steps
"""Passes of a timestep with all updates: one of DDIM inversion, one with the prompt, one after the last update, and
beside them one with a backward pass for each update."""

EAGER = Acceleration()
CAPTURED = Acceleration(cuda_graphs=True)
COMPILED = Acceleration(compile_backend="inductor")
COMPILED_AND_CAPTURED = Acceleration(compile_backend="inductor", cuda_graphs=True)
WAYS: dict[Acceleration, str] = {
    EAGER: "eager",
    CAPTURED: "CUDA graphs",
    COMPILED: "compiled",
    COMPILED_AND_CAPTURED: "compiled, CUDA graphs",
}


def device(bench: FullSize) -> Iterator[Row]:
    """The device, and the rate of its matrix product."""
    values: Values = {"name": bench.device_name, "torch": torch.__version__}
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        values |= {"memory_GB": properties.total_memory / 1e9, "cuda": torch.version.cuda}
    yield Row("device", values)
    yield Row("matrix product in bfloat16", {"TFLOP/s": bench.rate})


def checkpoint(bench: FullSize) -> Iterator[Row]:
    """Write the checkpoint and the images, and load the networks."""
    start = time.monotonic()
    write_checkpoint(bench.folder / "model", bench.family, bench.device)
    write_images(bench.shard, job_images(bench, "fast"))
    yield Row("checkpoint of random weights", {"family": bench.family, "seconds": time.monotonic() - start})
    start = time.monotonic()
    bench.networks(is_compiled=False)
    yield Row("loading", {"seconds": time.monotonic() - start})
    yield Row("work of an image", {f"{kind} TFLOP": work for kind, work in bench.tflop.items()})


def calls(bench: FullSize, acceleration: Acceleration, batch_size: int) -> Iterator[Row]:
    """Both kinds of call at a batch size."""
    networks, way = bench.networks(acceleration.compile_backend is not None), WAYS[acceleration]
    predict = acceleration.predictor(networks, lambda: batch_size)
    if batch_size != bench.batch_size:
        # a function keeps few compiled forms
        torch.compiler.reset()
    for kind in KINDS:
        call = Calls(networks).make(predict, kind, batch_size)
        start = time.perf_counter()
        call()
        synchronize(bench.device)
        first = time.perf_counter() - start
        timing = timed(call, bench.device)
        if batch_size == bench.batch_size:
            bench.timings[way, kind] = timing
        rate = batch_size * bench.tflop[kind] / timing.seconds
        values: Values = {
            "batch_size": batch_size,
            "ms_an_image": 1000 * timing.seconds / batch_size,
            "TFLOP/s": rate,
            "share_of_matrix_product": rate / bench.rate,
            "peak_GB": timing.peak_bytes and timing.peak_bytes / 1e9,
        }
        yield Row(f"{way}, {kind}", values | ({"first_call_s": first} if acceleration.is_on else {}))


def job_images(bench: FullSize, method: Method) -> int:
    """Images of a job: with many updates two batches, with few as many as keep every call full."""
    return 2 * bench.batch_size if method == "default" else 3 * bench.batch_size - 1


def job(bench: FullSize, acceleration: Acceleration, method: Method) -> Iterator[Row]:
    """The whole job, from shard to committed part."""
    way, counts = WAYS[acceleration], whole_counts(measured_counts()[method], NUM_STEPS)
    arguments = {
        "model.name": bench.source.name,
        "model.precision": bench.precision,
        "model.batch_size": bench.batch_size,
        "model.num_steps": NUM_STEPS,
        "model.compile": acceleration.compile_backend or "null",
        "model.cuda_graphs": str(acceleration.cuda_graphs).lower(),
        "data.shards": bench.shard,
        "data.limit": job_images(bench, method),
        "data.units_per_shard": 1,
        "output.storage": "compact",
        "output.dir": bench.folder / f"{way}-{method}".replace(", ", "-").replace(" ", "-"),
        "trainer.accelerator": "gpu" if bench.device.type == "cuda" else bench.device.type,
        "trainer.devices": 1,
    }
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    networks = bench.networks(acceleration.compile_backend is not None)
    figures = bench.jobs[way, method] = run_job(bench.build, flags, networks, counts)
    name = f"job, {way}, updates of {method}"
    yield Row(
        name,
        {
            "images_an_hour": figures.images_per_hour,
            "device_idle_share": figures.device_idle,
            "images": figures.images,
            "seconds": figures.seconds,
            "start_s": figures.start_seconds,
            "end_s": figures.end_seconds,
            "compiling_s": figures.warm_up_seconds,
            "forward_passes": figures.forwards,
            "backward_passes": figures.backwards,
            "peak_GB": figures.peak_bytes and figures.peak_bytes / 1e9,
        },
    )
    yield Row(
        f"{name}, of an image",
        {f"{name}_ms": 1000 * s for name, s in (figures.device_seconds | figures.host_seconds).items()},
    )


def reference(bench: FullSize, precision: Precision) -> Iterator[Row]:
    """The reference loop: one image at a time, weights not frozen; some timesteps stand for all."""
    networks = bench.networks(is_compiled=False)
    if precision != bench.precision:
        networks = StableDiffusion.load(bench.source, precision).to(bench.device)
    size = ModelDescription.of(bench.source).image_size(None, None)
    (image,) = load_images({"images": str(bench.shard)}, "txt", size, 1)

    def seconds(steps: int) -> float:
        counts = whole_counts(measured_counts()["reference"], steps)
        synchronize(bench.device)
        start = time.perf_counter()
        with fixed_reference_updates(counts):
            reference_loop(networks, networks.predict, image, networks.schedule(steps), InversionSettings())
        synchronize(bench.device)
        return time.perf_counter() - start

    seconds(1)
    of_step = (seconds(REFERENCE_STEPS) - seconds(1)) / (REFERENCE_STEPS - 1)
    rate = bench.reference_rates[precision] = 3600 / (NUM_STEPS * of_step)
    updates = sum(measured_counts()["reference"])
    values: Values = {"images_an_hour": rate, "updates_of_an_image": updates, "measured_timesteps": REFERENCE_STEPS}
    yield Row(f"reference loop, {precision}", values)


def kernel_names(bench: FullSize, acceleration: Acceleration) -> Iterator[Row]:
    """The longest kernels of each sort."""
    networks = bench.networks(acceleration.compile_backend is not None)
    predict = acceleration.predictor(networks, lambda: bench.batch_size)
    for kind in KINDS:
        found = kernels(Calls(networks).make(predict, kind, bench.batch_size), bench.device)
        yield Row(
            f"kernels, {WAYS[acceleration]}, {kind}",
            {
                "busy_share": found.busy_share,
                **{sort: " | ".join(names) or None for sort, names in found.names.items()},
            },
        )


def comparison(bench: FullSize) -> Iterator[Row]:
    """What follows from the rows: the job against the reference loop, and the job with all updates."""
    for (way, method), figures in bench.jobs.items():
        for precision, rate in bench.reference_rates.items():
            yield Row(
                f"job, {way}, updates of {method}, against the reference loop in {precision}",
                {"times": figures.images_per_hour / rate},
            )
        if {(way, kind) for kind in KINDS} <= bench.timings.keys():
            outside = figures.working_seconds / figures.images - figures.device_seconds["UNet"]
            forward, both = (bench.timings[way, kind].seconds / bench.batch_size for kind in KINDS)
            of_timestep = FORWARD_PASSES * forward + MAX_UPDATES * both
            values: Values = {"images_an_hour": 3600 / (NUM_STEPS * of_timestep + outside)}
            yield Row(f"job, {way}, all updates (computed without start and end, otherwise as {method})", values)
