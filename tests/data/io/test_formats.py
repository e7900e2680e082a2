"""Formats by the names of files."""

from slm_fn.data.io import formats


def test_what_a_name_says() -> None:
    assert formats.detect_format("a/B.TXT") == ("text", "")
    assert formats.detect_format("a.md.zst") == ("text", "zstd")
    assert formats.detect_format("a.parquet.gz") == ("parquet", "gzip")
    assert (
        formats.detect_format("a.json")
        is formats.detect_format("a.gz")
        is formats.detect_format("txt")
        is None
    )
    assert formats.printable_path("a\nb\udcff") == "a\\nb\\udcff"
