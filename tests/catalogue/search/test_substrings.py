"""Names cut at their seams, and parts of words found by the ends of words."""

from __future__ import annotations

import pytest

from catalogue.search import substrings


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("glucoseMg_dl", ["glucose", "Mg", "dl"]),
        ("__a  b-2C", ["a", "b", "2", "C"]),
        ("HTTP", ["HTTP"]),
        ("", []),
        ("_", []),
    ],
)
def test_a_name_is_cut_where_a_word_ends(name: str, words: list[str]) -> None:
    assert substrings.words_of(name) == words


@pytest.mark.parametrize("word", ["blutzuckerwert", "datendaten", "患者数据", "x" * 300])
def test_every_part_of_a_word_begins_one_of_its_ends_and_nothing_else_does(word: str) -> None:
    least = 2 if word[0] == "患" else 4
    ends = substrings.ends([word, "rose"], least=4, most=100_000).split()
    for start in range(len(word)):
        for part in {word[start : start + size] for size in (least, 7, substrings.LONGEST)}:
            assert substrings.is_part(part, 4) == (len(part) >= least)
            assert any(end.startswith(part) for end in ends) or len(part) < least
    assert all(end in word or end == "rose" for end in ends)
    assert not substrings.is_part("a" * (substrings.LONGEST + 1), 4)


def test_many_words_give_so_many_ends() -> None:
    words = [f"word{number}" for number in range(10_000)]
    assert 1_000 < len(substrings.ends(words, least=4, most=1_000)) < 1_500


@pytest.mark.parametrize(
    ("asked", "name", "fits"),
    [
        ("pressure", "blood_pressure", True),
        ("blood_pressure", "meanBloodPressure", False),  # as written; folding is the index's
        ("bloodpressure", "blood_pressure", True),
        ("blood_mean", "blood_pressure_mean", False),
        ("mean_blood", "blood_mean", False),
        ("", "blood", False),
    ],
)
def test_words_fit_a_name_side_by_side_or_by_its_letters(asked: str, name: str, fits: bool) -> None:
    assert substrings.are_within(substrings.words_of(asked), substrings.words_of(name)) == fits
