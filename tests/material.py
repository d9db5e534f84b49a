"""What tests of any trainer work with: the real model, a tiny one with its tokenizer, chats, a browser, commands.

A plugin of pytest that needs no Axolotl; conftest.py loads it. Where Axolotl is not installed, without conftest.py:

    PYTHONPATH=.:startup:tests pytest -p material --noconftest tests/trainers/test_trl.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Two processes that fight over two cores with two threads each are ten times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # With a torch for GPUs comes Triton, and with that these kernels count as usable: transformers then calls them for
    # tensors of a CPU.
    sys.modules.update(dict.fromkeys(("fla", "causal_conv1d")))

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
MODELS = ROOT / ".cache" / "models"
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def environment() -> Any:
    """Take back what a run leaves in the environment: Axolotl tells accelerate there about engines and ranks."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, float32."""
    from demo.model import unpack

    folder = MODELS / "smollm2-135m-instruct"
    unpack(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def tiny_llama(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama of 3 layers with SmolLM2's tokenizer."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), tokenizer)


def write_tiny_llama(folder: Path, tokenizer: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_with_other_tokens(model: Path, folder: Path) -> None:
    """Write a copy of a model in which two tokens have each other's number."""
    shutil.copytree(model, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["user"], vocabulary["Ġthe"] = vocabulary["Ġthe"], vocabulary["user"]
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def trained_adapter(tiny_llama: Path, tmp_path: Path) -> str:
    """An adapter with an effect, of another rank and on other layers than the run's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A headless browser for report pages."""
    from browser import open_browser

    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


# For runs whose weights are compared: else Adam's first step is as long for a gradient that is nothing but rounding as
# for any other.
STEADY = {"adam_epsilon": 1e-3}


def chat(user: str, assistant: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 24 chats of different lengths, some with two turns."""
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl")


def write_chats(file: Path) -> Path:
    words = ["red", "blue", "green", "seven", "river", "stone", "garden", "winter", "music", "paper", "window", "door"]
    lines = []
    for index in range(24):
        question = f"Say {' and '.join(words[(index + j) % 12] for j in range(1 + index % 4))}."
        answer = " ".join(words[(index * 5 + j * 7) % 12] for j in range(2 + index % 9)) + "."
        line = chat(question, answer)
        if index % 3 == 0:
            line["messages"] += chat("And again?", answer.upper())["messages"]
        lines.append(json.dumps(line))
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="session")
def without_the_package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment that has all that this one has, but for the package."""
    folder = tmp_path_factory.mktemp("without")
    venv.create(folder / "venv")
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "sstoken" not in entry.name:
            (site / entry.name).symlink_to(entry)
    python = str(folder / "venv" / "bin" / "python")
    assert subprocess.run([python, "-c", "import sstoken_plugin"], capture_output=True, cwd=folder).returncode != 0
    return python


def spread_over_gpus(model: Any) -> Any:
    """Make a model say that its embeddings and its head are on two GPUs, and return it."""
    for number, layer in enumerate((model.get_input_embeddings(), model.get_output_embeddings())):
        on_gpu = type("OnGPU", (torch.nn.Parameter,), {"device": torch.device("cuda", number)})
        layer.weight = on_gpu(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    return model


def run_command(*command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of this environment; stderr is part of stdout. Ranks may wait for each other, we do not."""
    scripts = Path(sys.executable).parent
    result = subprocess.run(
        [str(scripts / command[0]), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **environment},
    )
    assert not check or result.returncode == 0, result.stdout[-5000:]
    return result


def write_page(experiment: Any, page: Path) -> None:
    """Write the page of an experiment, and its numbers beside it."""
    from sstoken_plugin.experiments.conclude import Files, conclude
    from sstoken_plugin.experiments.numbers import as_json
    from sstoken_plugin.experiments.runs import Runs

    conclude(experiment, Runs.of(experiment), Files(page, "Does it help?", page.with_suffix(".json"), as_json))
