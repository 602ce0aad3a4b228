"""The tree against RFC 6962's published values, a naive tree, and the client's own reading of proofs."""

from __future__ import annotations

import pytest
from hanse.audit.verify import _climb, _is_consistent  # the second reading of the same RFC
from hypothesis import given
from hypothesis import strategies as st

from connector.audit import merkle

LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [  # of the first n of LEAVES: the test values that Certificate Transparency implementations share
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
BORDERS = [1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537]


class Forest:
    """Tiles in a dict, filled in rounds."""

    def __init__(self) -> None:
        self.tiles: merkle.Tiles = {}
        self.size = 0

    def read(self, level: int, n: int) -> bytes | None:
        return self.tiles.get((level, n))

    def add(self, leaves: list[bytes]) -> None:
        self.tiles.update(merkle.append(self.read, self.size, leaves))
        self.size += len(leaves)


def leaves(count: int) -> list[bytes]:
    return [merkle.leaf_hash(str(i).encode()) for i in range(count)]


def naive_root(hashes: list[bytes]) -> bytes:
    if not hashes:
        return merkle.EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    half = 1 << (len(hashes) - 1).bit_length() - 1
    return merkle.node_hash(naive_root(hashes[:half]), naive_root(hashes[half:]))


def grown(size: int, step: int = 1000) -> Forest:
    forest, hashes = Forest(), leaves(size)
    for at in range(0, size, step):
        forest.add(hashes[at : at + step])
    return forest


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_that_rfc_6962_implementations_share(size: int) -> None:
    forest = Forest()
    forest.add([merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES[:size]])
    assert merkle.root(forest.read, size).hex() == ROOTS[size]


@given(st.lists(st.integers(1, 700), max_size=5))
def test_rounds_of_any_size_give_the_naive_root_and_whole_tiles(rounds: list[int]) -> None:
    forest, hashes = Forest(), leaves(sum(rounds))
    for count in rounds:
        forest.add(hashes[forest.size : forest.size + count])
    assert merkle.root(forest.read, forest.size) == naive_root(hashes)
    wide = [len(forest.tiles.get((0, n), b"")) for n in range((forest.size + 255) // 256)]
    assert sum(wide) == 32 * forest.size
    assert all(part == 32 * 256 for part in wide[:-1])


def test_proofs_at_tile_borders_hold_for_the_other_reader() -> None:
    forest = grown(65_537)
    hashes = leaves(65_537)
    roots = {size: merkle.root(forest.read, size) for size in BORDERS}
    for size in BORDERS:
        for index in {0, size // 2, size - 1, (size - 1) & ~255}:
            path = merkle.inclusion_proof(forest.read, index, size)
            assert _climb(index, size, hashes[index], path) == roots[size]
    for old in BORDERS:
        for new in (size for size in BORDERS if size >= old):
            path = merkle.consistency_proof(forest.read, old, new)
            assert _is_consistent(old, new, roots[old], roots[new], path)


@given(st.integers(1, 300), st.data())
def test_a_proof_holds_for_its_leaf_and_index_only(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1))
    forest, hashes = grown(size), leaves(size)
    path = merkle.inclusion_proof(forest.read, index, size)
    root = naive_root(hashes)
    assert _climb(index, size, hashes[index], path) == root
    if other != index:
        assert _climb(index, size, hashes[other], path) != root
        assert _climb(other, size, hashes[index], path) != root
    assert _climb(index, size, hashes[index], [*path, hashes[0]]) != root
    if path:
        assert _climb(index, size, hashes[index], path[:-1]) != root


@given(st.integers(1, 200), st.integers(1, 200), st.data())
def test_consistency_with_a_changed_history_is_refused(a: int, b: int, data: st.DataObject) -> None:
    old, new = sorted((a, b))
    changed = data.draw(st.integers(0, old - 1))
    hashes = leaves(new)
    forged = [*hashes]
    forged[changed] = merkle.leaf_hash(b"something else")
    forest = Forest()
    forest.add(forged)
    path = merkle.consistency_proof(forest.read, old, new)
    assert _is_consistent(old, new, naive_root(forged[:old]), naive_root(forged), path)
    assert not _is_consistent(old, new, naive_root(hashes[:old]), naive_root(forged), path)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_a_proof_outside_of_the_tree_is_an_error(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="expected an index"):
        merkle.inclusion_proof(grown(5).read, index, size)


def test_a_missing_or_short_tile_is_named() -> None:
    forest = grown(300)
    forest.tiles[0, 1] = forest.tiles[0, 1][:-32]
    with pytest.raises(merkle.TreeBroken, match="tile 0/1"):
        merkle.root(forest.read, 300)
