"""The bench of the index measures what it says: a mirror of its own making, in which what is known is found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from deploy.bench import indexbench, verifybench
from deploy.bench.lines import verify_lines
from engine.fragment import FRAGMENT_READ_MAX
from engine.index import PackIndex
from engine.packtable import PACK_ROW_BYTES


def test_fragments_of_the_bench_are_as_large_as_the_format_allows() -> None:
    packs = -(-indexbench.FRAGMENT_ENTRIES // indexbench.PACK_BLOCKS)
    size = 28 * indexbench.FRAGMENT_ENTRIES + PACK_ROW_BYTES * packs + 208
    assert FRAGMENT_READ_MAX - 8192 < size <= FRAGMENT_READ_MAX


def test_known_ids_are_found_and_new_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    for number in range(1, 9):
        indexbench.add_fragment(tmp_path, 1000, number, 20)
    assert sum(indexbench.merge(tmp_path)["files"]) == 8000
    found = indexbench.look(tmp_path, [["known", "64"], ["mixed", "4096"]])
    assert [case["ids"] for case in found["cases"]] == ["known", "mixed"]
    assert found["memory"]["filter_mib"] < 17
    index = PackIndex()
    index.install(*indexbench.open_mirror(tmp_path).views())
    known = np.concatenate([np.load(path) for path in (tmp_path / "known").iterdir()])
    assert index.lookup(known)["length"].all()
    new = indexbench.ids_of_kind("new", known, np.random.default_rng(0), 500)
    assert not index.lookup(new)["length"].any()


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(str(tmp_path))):
        indexbench.run(tmp_path / "mirror", 1 << 50)
    assert not list(tmp_path.iterdir())


def test_a_verification_finds_what_the_map_of_the_bench_lacks(tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    blocks = 64 * 1000
    for number in range(1, 5):
        indexbench.add_fragment(tmp_path, blocks // 4, number, 20)
    indexbench.merge(tmp_path)
    made = verifybench.make_map(tmp_path, blocks)
    assert sum(made["index_files"]) == blocks
    found = verifybench.compare(tmp_path, blocks)
    # One in a thousand was made up.
    assert 20 < found["missing"] < 150
    state = verifybench.BenchMap(tmp_path / "volume", blocks)
    lacking = state.missing_pages(0, blocks // 64)
    assert int(np.bitwise_count(state.missing(lacking)).sum()) == found["missing"]
    assert found["packs"] == 4 * -(-blocks // 4 // indexbench.PACK_BLOCKS)
    assert [line.unit for line in verify_lines({"blocks": blocks, **found})] == ["s", "MiB"]
    with pytest.raises(SystemExit, match=re.escape(str(tmp_path))):
        verifybench.run(tmp_path / "mirror", 1 << 50)
