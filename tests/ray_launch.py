"""`axolotl train FILE --use-ray` where no worker has a GPU: `python tests/ray_launch.py FILE`.

Axolotl asks Ray for workers with GPUs, whatever the YAML says: here it gets workers with CPUs. Ray itself is started
first, at an address that needs no network.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# A slow machine may take longer to start Ray than Ray waits for.
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_raylet_start_wait_time_s="300")

import ray
import ray.train


def main(file: str) -> None:
    ray.init(num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=200_000_000)
    asked = ray.train.ScalingConfig

    def without_gpus(**keys: Any) -> ray.train.ScalingConfig:
        return asked(**{**keys, "use_gpu": False})

    ray.train.ScalingConfig = without_gpus
    from axolotl.cli.train import do_cli

    do_cli(file, use_ray=True)


if __name__ == "__main__":
    # Axolotl reads what is left of the command line.
    main(sys.argv.pop())
