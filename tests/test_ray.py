"""Axolotl's runs in Ray's workers (`use_ray`): scripts/test_ray.sh installs Ray and runs this file."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write
from material import run_command
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: scripts/test_ray.sh installs it")


def test_two_workers_train_as_two_ranks_of_torchrun(config: dict[str, Any], tmp_path: Path):
    config = {
        **config,
        "plugins": ["sstoken", "cpu_plugin.OnCpu"],
        "sstoken": {"ratio": 0.5, "warmup_ratio": 0.25},
        "micro_batch_size": 1,
        # What Ray takes to be the resources of a worker, if nothing is said, is a GPU.
        "ray_num_workers": 2,
        "resources_per_worker": {"CPU": 1},
    }
    ways = {
        "torchrun": ("torchrun", "--standalone", "--nproc_per_node", "2", "-m", "axolotl.cli.train"),
        "ray": (Path(sys.executable).name, str(Path(__file__).parent / "ray_launch.py")),
    }
    weights = {}
    for name, command in ways.items():
        folder = tmp_path / name
        folder.mkdir()
        file = write({**config, "output_dir": str(folder / "out")}, folder)
        said = run_command(*command, str(file), ACCELERATE_USE_CPU="true").stdout
        assert said.count("ssToken is active") == 1, said
        assert (folder / "out" / "sstoken" / "report.html").exists()
        weights[name] = load_file(folder / "out" / "adapter_model.safetensors")
    assert weights["ray"].keys() == weights["torchrun"].keys()
    for name, weight in weights["torchrun"].items():
        torch.testing.assert_close(weights["ray"][name], weight, atol=1e-6, rtol=1e-5, msg=name)
