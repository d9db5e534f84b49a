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
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from sstoken_plugin.history import database as databases
from sstoken_plugin.history import store as stores
from sstoken_plugin.history.blocks import FORMAT, LARGEST, decode, encode
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.history.store import BLOCK_TOKENS, FILE, LossStore

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
    with no_more_room((tmp_path / FILE).stat().st_size), caplog.at_level(logging.WARNING):
        for turn in range(3):
            store.put(some_losses(200, seed=2 + turn))
            given = store.put(second)
            store.flush()
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


def two_blocks(folder):
    """A store of two blocks, and what it gives."""
    store = open_store(folder)
    given = {}
    for seed in (0, 1):
        given |= store.put(some_losses(50, seed=seed))
        store.flush()
    store.close()
    return given


def test_a_row_that_another_block_has_taken_gives_no_losses_of_other_samples(tmp_path, caplog):
    """As where a file was copied over, or rows were deleted and written anew."""
    first, other = some_losses(50), some_losses(50, seed=1)
    store = open_store(tmp_path)
    store.put(first)
    store.flush()
    store.put(other)
    store.flush()
    database, (one, two) = blocks(tmp_path)
    database.execute("UPDATE blocks SET losses = (SELECT losses FROM blocks WHERE id = ?) WHERE id = ?", (two, one))
    database.commit()
    with caplog.at_level(logging.WARNING):
        assert store.get(list(first)) == [None] * 50
    assert "other samples than before" in caplog.text
    assert all(found is not None for found in store.get(list(other)))


def test_losses_of_another_length_are_none(tmp_path):
    store = open_store(tmp_path)
    store.put({key(1): np.ones(3, np.float32)})
    for _ in range(2):
        assert store.get([key(1)], [4]) == [None]
        assert store.missing([key(1)], [4]) == [key(1)]
        assert store.missing([key(1)], [3]) == []
        assert len(store.get([key(1)], [3])[0]) == 3
        store.flush()
    store.put({key(1): np.ones(4, np.float32)})
    store.close()
    assert len(open_store(tmp_path).get([key(1)], [4])[0]) == 4


def test_a_deleted_number_is_never_given_again(tmp_path):
    reader, writer = open_store(tmp_path), open_store(tmp_path)
    writer.put(some_losses(5))
    writer.flush()
    assert reader.missing(some_losses(5)) == []
    database, _ = blocks(tmp_path)
    database.execute("DELETE FROM blocks")
    database.commit()
    writer.put(some_losses(5, seed=1))
    writer.flush()
    assert reader.missing(some_losses(5, seed=1)) == []


@pytest.mark.parametrize("value", ["'text'", "x'ff'", "12", "3.5", "NULL", "zeroblob(9)", "zeroblob(99000000)"])
@pytest.mark.parametrize("column", ["losses", "history"])
def test_a_value_of_another_kind_costs_its_block_alone(tmp_path, value, column):
    given = two_blocks(tmp_path)
    database, (number, _) = blocks(tmp_path)
    database.execute(f"UPDATE blocks SET {column} = {value} WHERE id = {number}")
    database.commit()
    store = open_store(tmp_path)
    found = store.get(list(given))
    assert [losses is None for losses in found] == [True] * 50 + [False] * 50
    assert all(
        np.array_equal(losses, given[name]) for name, losses in zip(given, found, strict=True) if losses is not None
    )


def test_a_row_that_would_unpack_to_gigabytes_is_damage(tmp_path, caplog):
    given = two_blocks(tmp_path)
    database, (number, _) = blocks(tmp_path)
    bomb = zlib.compress(bytes(2**28), 9)
    database.execute("UPDATE blocks SET losses = ? WHERE id = ?", (bomb, number))
    database.commit()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    assert "are damaged" in caplog.text
    assert len(store) == 50
    assert len(given) == 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


SCHEMA_DAMAGE = {
    "a word": (b"CREATE TABLE blocks", b"CREATE TABLF blocks"),
    "a column's name": (b"history BLOB", b"histoqy BLOB"),
    "text that is no UTF-8": (b"history BLOB", b"h\xff\xfetory BLOB"),
    "the table's name": (b"CREATE TABLE blocks", b"CREATE TABLE clocks"),
    "the format": (b"SQLite format 3\x00", b"SQLite format 7\x00"),
}


@pytest.mark.parametrize("kind", SCHEMA_DAMAGE)
def test_damage_to_the_schema_never_stops_a_run(tmp_path, caplog, kind):
    given = two_blocks(tmp_path)
    old, new = SCHEMA_DAMAGE[kind]
    content = (tmp_path / FILE).read_bytes()
    assert old in content
    (tmp_path / FILE).write_bytes(content.replace(old, new))
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    for name, found in zip(given, store.get(list(given)), strict=True):
        assert found is None or np.array_equal(found, given[name])
    fresh = store.put(some_losses(5, seed=9))
    store.close()
    again = open_store(tmp_path)
    assert all(np.array_equal(again.get([name])[0], values) for name, values in fresh.items())
    assert "is damaged" in caplog.text or len(again) == 105
    if kind == "a column's name":
        assert len(again) == 105, "blocks that can be read are taken over"


@pytest.mark.parametrize("at", [0, 16, 18, 19, 20, 21, 24, 31, 39, 43, 47, 56, 59, 63, 95, 99])
def test_any_bit_of_the_header_may_flip(tmp_path, at):
    """The bytes of SQLite's header that say something, one bit at a time: nothing is lost, and writing goes on."""
    given = two_blocks(tmp_path)
    content = bytearray((tmp_path / FILE).read_bytes())
    for bit in (0, 1, 7):
        folder = tmp_path / f"bit-{bit}"
        folder.mkdir()
        changed = content.copy()
        changed[at] ^= 1 << bit
        (folder / FILE).write_bytes(changed)
        store = open_store(folder)
        for name, found in zip(given, store.get(list(given)), strict=True):
            assert found is None or np.array_equal(found, given[name])
        fresh = store.put(some_losses(5, seed=9))
        store.close()
        assert open_store(folder).missing(fresh) == [], f"bit {bit} of byte {at}"


@contextmanager
def no_more_room(size):
    """Let no file grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def damaged_in_the_middle(folder, blocks=8, samples=40, size=1024):
    """Write a store and spoil some of it; return what it gave before."""
    store = open_store(folder)
    given = {}
    for seed in range(blocks):
        given |= store.put(some_losses(samples, seed=seed))
        store.flush()
    store.close()
    content = bytearray((folder / FILE).read_bytes())
    half = len(content) // 1024 * 512
    content[half : half + size] = os.urandom(size)
    (folder / FILE).write_bytes(content)
    return given


def test_a_full_disk_while_damage_is_repaired_loses_nothing(tmp_path, caplog):
    given = damaged_in_the_middle(tmp_path)
    with no_more_room(20_000), caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
        store.put(some_losses(5, seed=99))
        store.flush()
        assert store.get(list(given)) == [None] * len(given)
        store.close()
    assert "cannot be repaired" in caplog.text
    found = open_store(tmp_path).get(list(given))
    assert sum(losses is not None for losses in found) > 100


@pytest.mark.parametrize("moment", ["_free_name", "before the last step"])
def test_a_kill_while_damage_is_repaired_loses_nothing(tmp_path, moment):
    given = damaged_in_the_middle(tmp_path)

    def work(number):
        if moment == "_free_name":
            databases._free_name = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        else:
            unlink = Path.unlink
            Path.unlink = lambda self, **kwargs: (
                os.kill(os.getpid(), signal.SIGKILL) if "journal" in self.name else unlink(self, **kwargs)
            )
        open_store(tmp_path)

    assert together(work, 1) == [-signal.SIGKILL]
    found = open_store(tmp_path).get(list(given))
    assert sum(losses is not None for losses in found) > 100
    assert len(list(tmp_path.glob("*.damaged"))) == 1


@pytest.mark.parametrize("kind", ["folder", "link to nowhere", "loop", "pipe"])
def test_what_is_no_file_is_put_aside(tmp_path, kind):
    file = tmp_path / FILE
    if kind == "folder":
        file.mkdir()
        (file / "x").touch()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file if kind == "loop" else tmp_path / "no" / "such")
    store = open_store(tmp_path)
    store.put(some_losses(5))
    store.close()
    assert len(open_store(tmp_path)) == 5


def test_a_damaged_file_that_another_process_repairs_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_WAIT_SECONDS", 0.3)
    (tmp_path / FILE).write_bytes(b"garbage" * 500)
    with (
        FileLock((tmp_path / FILE).with_suffix(".lock")),
        pytest.raises(ValueError, match="another process has held it"),
    ):
        open_store(tmp_path)
    open_store(tmp_path)


def test_a_run_without_a_model_waits_so_long_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_WAIT_SECONDS", 0.2)
    monkeypatch.setattr("sstoken_plugin.history.losses._MOST_SECONDS", 1.0)
    monkeypatch.setattr("sstoken_plugin.history.losses._SECONDS", 0.05)
    store = open_store(tmp_path)
    store.put({key(1): np.ones(3, np.float32)})
    store.flush()
    losses = HistoryLosses(None, store)
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    assert losses._kept([key(1)], [3]) == [None]
    assert 1 <= time.monotonic() - started < 3
    threading.Timer(0.4, lambda: other.execute("COMMIT")).start()
    assert losses._kept([key(1)], [3])[0] is not None


def test_a_history_without_a_finite_loss_has_no_rel_with_a_store_either(tmp_path):
    h, c = torch.tensor([math.inf, 2.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-7, 1.0])
    without, kept = (HistoryLosses(None, store).rel(h, c) for store in (None, open_store(tmp_path)))
    assert kept.tolist() == [math.inf, 0, 1]
    assert without[0] == kept[0]


def test_what_is_whole_in_a_damaged_file_is_taken_over(tmp_path, caplog):
    given = damaged_in_the_middle(tmp_path, blocks=20, samples=90, size=2048)
    with caplog.at_level(logging.WARNING):
        found = open_store(tmp_path).get(list(given))
    kept = [(name, losses) for name, losses in zip(given, found, strict=True) if losses is not None]
    assert len(kept) > 0.5 * len(given)
    assert all(np.array_equal(losses, given[name]) for name, losses in kept)


def test_a_file_of_another_format_is_put_aside_whole(tmp_path, caplog):
    two_blocks(tmp_path)
    database, _ = blocks(tmp_path)
    database.execute(f"PRAGMA user_version = {FORMAT + 7}")
    database.close()
    before = (tmp_path / FILE).read_bytes()
    with caplog.at_level(logging.WARNING):
        # The name says the format: what is wrong is the number, and every block is looked at on its own.
        assert len(open_store(tmp_path)) == 100
    assert f"format {FORMAT + 7} in place of {FORMAT}" in caplog.text
    assert (tmp_path / FILE).with_suffix(".damaged").read_bytes() == before


def test_the_file_of_version_0_1_is_left_alone(tmp_path, caplog):
    database = sqlite3.connect(tmp_path / "losses.sqlite")
    database.execute("CREATE TABLE blocks (id INTEGER PRIMARY KEY, history BLOB, losses BLOB)")
    database.close()
    before = (tmp_path / "losses.sqlite").read_bytes()
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    assert "version 0.1" in caplog.text
    store.put(some_losses(5))
    store.close()
    assert (tmp_path / "losses.sqlite").read_bytes() == before


def test_two_damaged_files_in_turn_are_both_kept(tmp_path):
    for content in (b"one " * 500, b"two " * 500):
        (tmp_path / FILE).write_bytes(content)
        open_store(tmp_path).close()
    assert {file.read_bytes()[:3] for file in tmp_path.glob("*.damaged*")} == {b"one", b"two"}


def together(work, count=4):
    """Run `work(number)` in so many processes at once; return their exit codes."""
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            try:
                work(number)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.parametrize("content", [b"garbage" * 5000, b"SQLite format 3\x00" + bytes(2000)], ids=["text", "zeros"])
def test_processes_that_meet_one_damaged_file_lose_nothing(tmp_path, content):
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        (folder / FILE).write_bytes(content)
        start = time.time() + 0.1

        def work(number, folder=folder, start=start):
            while time.time() < start:
                pass
            store = open_store(folder)
            for part in range(3):
                store.put(some_losses(20, seed=10 * number + part))
                store.flush()
            store.close()

        assert together(work) == [0] * 4
        assert len(open_store(folder)) == 4 * 3 * 20
        assert len(list(folder.glob("*.damaged*"))) == 1


def test_a_process_whose_file_was_put_aside_writes_into_the_new_one(tmp_path):
    store = open_store(tmp_path)
    store.put(some_losses(5))
    store.flush()
    (tmp_path / FILE).rename(tmp_path / "aside")
    open_store(tmp_path).close()
    store.put(some_losses(5, seed=1))
    store.flush()
    assert open_store(tmp_path).missing(some_losses(5, seed=1)) == []


def test_a_file_that_is_held_for_long_is_neither_damaged_nor_given_up(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(stores, "_WAIT_SECONDS", 0.3)
    store = open_store(tmp_path)
    first, second = some_losses(5), some_losses(5, seed=1)
    store.put(first)
    store.flush()
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            store.put(second)
            store.flush()
            assert store.get(list(first)) == [None] * 5
    assert time.monotonic() - started < 3
    assert caplog.text.count("is held by another process") == 1
    assert "damaged" not in caplog.text
    with pytest.raises(ValueError, match=r"sstoken\.history_cache: .* another process has held it for"):
        open_store(tmp_path)
    other.execute("COMMIT")
    assert all(found is not None for found in store.get(list(first)))
    store.close()
    assert len(open_store(tmp_path)) == 10


def test_a_folder_that_may_only_be_read_serves(tmp_path, caplog, monkeypatch):
    """Through SQLite's read-only mode, because a superuser may write to any file."""
    given = two_blocks(tmp_path)

    def connected(file, wait):
        return sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None)

    monkeypatch.setattr(databases, "_connected", connected)
    store = open_store(tmp_path)
    assert store.missing(given) == []
    with caplog.at_level(logging.WARNING):
        store.put(some_losses(5, seed=7))
        store.flush()
    assert "takes no more losses" in caplog.text
    assert store.missing(some_losses(5, seed=7)) == []


def test_a_flush_of_very_much_makes_blocks_that_can_be_read(tmp_path):
    store = open_store(tmp_path)
    long = {key(number): np.ones(2**21, np.float32) for number in range(4)}
    store.put(long)
    store.put({key(9): np.ones(2**22 + 1, np.float32)})
    store.close()
    again = open_store(tmp_path)
    assert len(blocks(tmp_path)[1]) > 1
    assert again.missing([*long, key(9)]) == [key(9)]
