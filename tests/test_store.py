"""The loss cache on disk: how exact, how small, and what happens when things go wrong."""

import logging
import math
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sstoken_plugin.history.store import BLOCK_TOKENS, FILE, LARGEST, LossStore, decode, encode

MARK = b"h" * 16


def key(number):
    return number.to_bytes(8, "big")


def some_losses(samples, mean_length=100, seed=0):
    """Losses as those of a language model: most are small, a few large."""
    numbers = np.random.default_rng(seed)
    lengths = numbers.integers(mean_length // 2, mean_length * 3 // 2, samples)
    return {key(i + (seed << 24)): numbers.exponential(1.2, n).astype(np.float32) for i, n in enumerate(lengths)}


def open_store(folder, mark=MARK):
    return LossStore(folder, mark)


def test_losses_come_back_within_the_documented_error():
    losses = np.concatenate([np.linspace(0, LARGEST, 200_001), np.geomspace(1e-9, 1, 10_000)]).astype(np.float32)
    error = np.abs(decode(encode(losses)) - losses)
    assert error.max() < 1.5e-3
    assert error[losses <= 1].max() < 2e-5
    assert error[losses <= 10].max() < 1.5e-4


def test_a_loss_that_comes_back_is_stored_as_itself():
    once = decode(encode(np.linspace(0, LARGEST, 10_001, dtype=np.float32)))
    assert np.array_equal(decode(encode(once)), once)


@pytest.mark.parametrize("value", [math.nan, math.inf, LARGEST * 1.01])
def test_a_loss_that_cannot_be_stored_well_is_not(tmp_path, value):
    store = open_store(tmp_path)
    losses = np.array([1.0, value], dtype=np.float32)
    given = store.put({key(1): losses})[key(1)]
    assert np.array_equal(given, losses, equal_nan=True)
    assert store.get([key(1)]) == [None]


def test_what_is_put_is_what_another_process_gets(tmp_path):
    losses = some_losses(300)
    store = open_store(tmp_path / "made" / "for it")
    given = store.put(losses)
    assert all(np.array_equal(store.get([k])[0], given[k]) for k in losses)
    store.close()
    again = open_store(tmp_path / "made" / "for it")
    assert len(again) == 300
    assert again.missing([*losses, key(2**60)]) == [key(2**60)]
    for found, (name, values) in zip(again.get(list(losses)), given.items(), strict=True):
        assert np.array_equal(found, values), name


def test_losses_of_another_history_are_not_found(tmp_path):
    losses = some_losses(3)
    store = open_store(tmp_path)
    store.put(losses)
    store.close()
    assert open_store(tmp_path, b"other history...").get(list(losses)) == [None] * 3


@pytest.mark.parametrize(("samples", "mean_length"), [(500, 19), (975, 115), (300, 320)], ids=str)
def test_a_token_takes_three_bytes_at_most(tmp_path, samples, mean_length):
    """Sizes of the three files of instruction data."""
    losses = some_losses(samples, mean_length)
    store = open_store(tmp_path)
    for name, values in losses.items():
        store.put({name: values})
    store.close()
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size / sum(map(len, losses.values())) <= 3


def test_several_processes_read_and_write_at_once(tmp_path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from test_store import MARK, LossStore, some_losses
        store = LossStore(Path(sys.argv[1]), MARK)
        for seed in map(int, sys.argv[2:]):
            losses = some_losses(200, seed=seed)
            store.put(losses)
            store.flush()
            store.get(list(losses))
        store.close()
    """)
    here = os.path.dirname(__file__)
    parts = [[str(10 * who + turn) for turn in range(10)] for who in range(4)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), *part],
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for part in parts
    ]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output.decode()
    store = open_store(tmp_path)
    assert len(store) == 4 * 10 * 200
    for part in parts:
        losses = some_losses(200, seed=int(part[3]))
        for found, values in zip(store.get(list(losses)), losses.values(), strict=True):
            assert np.abs(found - values).max() < 1.5e-3


def test_a_reader_sees_what_another_wrote_meanwhile(tmp_path):
    reader, writer = open_store(tmp_path), open_store(tmp_path)
    losses = some_losses(2)
    assert reader.get(list(losses)) == [None, None]
    writer.put(losses)
    writer.flush()
    assert all(found is not None for found in reader.get(list(losses)))


def test_a_kill_at_any_moment_leaves_it_readable(tmp_path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from test_store import MARK, LossStore, some_losses
        store = LossStore(Path(sys.argv[1]), MARK)
        print("ready", flush=True)
        for seed in range(int(sys.argv[2]), 10**6):
            store.put(some_losses(100, seed=seed))
            store.flush()
    """)
    samples = 0
    for turn in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(turn * 1000)],
            cwd=os.path.dirname(__file__),
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1 + 0.037 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = open_store(tmp_path)
        assert len(store) % 100 == 0
        assert len(store) >= samples
        samples = len(store)
        losses = some_losses(100, seed=turn * 1000)
        assert all(found is None or len(found) for found in store.get(list(losses)))
        store.close()
    assert samples > 0


def blocks(folder):
    database = sqlite3.connect(folder / FILE)
    return database, [number for (number,) in database.execute("SELECT id FROM blocks ORDER BY id")]


@pytest.mark.parametrize("damage", ["bits", "short", "empty"])
def test_a_damaged_block_is_a_miss_with_a_warning(tmp_path, caplog, damage):
    first, second = some_losses(100), some_losses(100, seed=1)
    store = open_store(tmp_path)
    for losses in (first, second):
        store.put(losses)
        store.flush()
    store.close()
    database, (number, _) = blocks(tmp_path)
    (content,) = database.execute("SELECT losses FROM blocks WHERE id = ?", (number,)).fetchone()
    half = len(content) // 2
    content = {
        "bits": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
        "short": content[:half],
        "empty": b"",
    }[damage]
    database.execute("UPDATE blocks SET losses = ? WHERE id = ?", (content, number))
    database.commit()
    with caplog.at_level(logging.WARNING):
        again = open_store(tmp_path)
    assert f"{tmp_path / FILE} are damaged (block {number}" in caplog.text
    assert again.get(list(first)) == [None] * 100
    assert all(found is not None for found in again.get(list(second)))
    given = again.put(first)
    again.close()
    last = open_store(tmp_path)
    assert all(np.array_equal(last.get([name])[0], given[name]) for name in first)


def test_a_block_damaged_while_it_is_in_use_is_a_miss(tmp_path, caplog):
    losses = some_losses(10)
    store = open_store(tmp_path)
    store.put(losses)
    store.flush()
    database, (number,) = blocks(tmp_path)
    database.execute("UPDATE blocks SET losses = x'00' WHERE id = ?", (number,))
    database.commit()
    with caplog.at_level(logging.WARNING):
        assert store.get(list(losses)) == [None] * 10
    assert caplog.text.count("are damaged") == 1


@pytest.mark.parametrize("at", [0, 300, 1500, 40_000])
def test_a_damaged_file_never_stops_training_nor_gives_wrong_losses(tmp_path, caplog, at):
    losses = some_losses(2000)
    store = open_store(tmp_path)
    given = {}
    for name, values in losses.items():
        given |= store.put({name: values})
    store.close()
    content = bytearray((tmp_path / FILE).read_bytes())
    content[at : at + 700] = os.urandom(700)
    (tmp_path / FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = open_store(tmp_path)
        for name, found in zip(losses, again.get(list(losses)), strict=True):
            assert found is None or np.array_equal(found, given[name])
        again.put(some_losses(5, seed=9))
        again.flush()
    assert "ssToken:" in caplog.text


def test_a_full_disk_ends_the_writing_and_nothing_else(tmp_path, caplog):
    store = open_store(tmp_path)
    first, second = some_losses(200), some_losses(200, seed=1)
    store.put(first)
    store.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / FILE).stat().st_size, before[1]))
        with caplog.at_level(logging.WARNING):
            for turn in range(3):
                store.put(some_losses(200, seed=2 + turn))
                given = store.put(second)
                store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caplog.text.count("takes no more losses") == 1
    assert all(found is not None for found in store.get(list(first)))
    assert all(np.array_equal(found, given[name]) for name, found in zip(second, store.get(list(second)), strict=True))
    store.close()
    assert len(open_store(tmp_path)) == 200


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, kind):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if kind == "a file" else tmp_path / "file" / "folder"
    with pytest.raises(ValueError, match=r"sstoken\.history_cache: .*file.* cannot be used"):
        open_store(folder)


def test_little_is_lost_when_nothing_is_flushed(tmp_path):
    store = open_store(tmp_path)
    losses = some_losses(1000)
    for name, values in losses.items():
        store.put({name: values})
    written = open_store(tmp_path)
    waiting = sum(len(losses[name]) for name in written.missing(losses))
    assert waiting < BLOCK_TOKENS
