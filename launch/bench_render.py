"""Speed of the source `rendered`: milliseconds per scene, layout, visibility, picture and JPEG together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from launch import bench_report, cli
from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.rendered import RenderConfig, render


def bench(args: Sequence[str]) -> dict[str, Any]:
    """Renders scenes one after another in one process.

    For one core, run it under `taskset -c 0`: Mesa otherwise draws with one thread per core.
    `milliseconds_*` are wall-clock per scene; `cpu_milliseconds` is the process's own time, which other
    work on the machine disturbs less.
    """
    parser = cli.parser("Milliseconds per rendered scene.", prog="python -m launch.bench render")
    parser.add_argument("--scenes", type=int, default=100, help="how many scenes to time")
    parser.add_argument("--objects", type=int, default=4, help="objects per scene")
    parser.add_argument("--image-size", type=int, default=224, help="side of the picture in pixels")
    parser.add_argument("--samples", type=int, default=4, help="samples per pixel")
    parser.add_argument("--seed", type=int, default=0, help="of the stream of scenes")
    parser.add_argument("--mesh-folder", default=None, help="folder of .sh3f files: use their meshes instead")
    parser.add_argument("--mesh-cache", default=None, help="folder for parsed meshes")
    flags = parser.parse_args(args)
    if flags.scenes < 1:
        raise UserError(f"--scenes={flags.scenes} must be at least 1")
    config = RenderConfig(
        image_size=flags.image_size, objects=(flags.objects, flags.objects), samples=flags.samples,
        assets="sweethome3d" if flags.mesh_folder else "procedural", mesh_folder=flags.mesh_folder,
        mesh_cache=flags.mesh_cache)
    for index in range(2):      # opens the context, compiles the shaders, fills the caches
        render(config, flags.seed, flags.scenes + index)
    wall, cpu = [], time.process_time()
    for index in range(flags.scenes):
        start = time.perf_counter()
        render(config, flags.seed, index)
        wall.append(1e3 * (time.perf_counter() - start))
    cpu = 1e3 * (time.process_time() - cpu) / flags.scenes
    wall.sort()
    result = {"scenes": flags.scenes, "objects": flags.objects, "image_size": flags.image_size,
              "assets": config.assets, "milliseconds_mean": round(statistics.fmean(wall), 2),
              **bench_report.median("milliseconds_median", wall, 2),
              "milliseconds_p95": round(wall[int(0.95 * (len(wall) - 1))], 2),
              "cpu_milliseconds": round(cpu, 2)}
    print(f"{flags.scenes} scenes of {flags.objects} objects at {flags.image_size} px, {config.assets}: "
          f"{result['milliseconds_mean']} ms per scene (median {result['milliseconds_median']}, "
          f"95 % under {result['milliseconds_p95']}), {result['cpu_milliseconds']} ms of processor time")
    return bench_report.finish(result, "moderngl")
