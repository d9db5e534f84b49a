"""A file that is replaced is there as before, or whole."""

import pytest

from sstoken_plugin.base.files import replacing, write_bytes


def cut_short(file):
    with replacing(file) as new:
        new.write_bytes(b"half of the n")
        raise OSError("the disk is full")


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    file = tmp_path / "page.html"
    write_bytes(b"old", file)
    with pytest.raises(OSError, match="full"):
        cut_short(file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    write_bytes(b"new", file)
    assert file.read_bytes() == b"new"
