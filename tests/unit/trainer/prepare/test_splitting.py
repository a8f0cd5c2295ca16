"""Splits and duplicates: the same on every run, nothing in two places."""

from __future__ import annotations

from collections import Counter

import pytest
from finetune_api.sections.data import Split
from finetune_trainer.prepare import hashes
from finetune_trainer.prepare.hashes import HashSet, hash_of
from finetune_trainer.prepare.rows import RowInvalid
from finetune_trainer.prepare.splitting import Splitter, draw, group_key
from hypothesis import given
from hypothesis import strategies as st


def test_shares_are_as_asked() -> None:
    split = Split(train=0.7, validation=0.2, test=0.1)
    drawn = Counter(draw(f"g{i}", split) for i in range(20_000))
    assert abs(drawn["train"] / 20_000 - 0.7) < 0.015
    assert abs(drawn["validation"] / 20_000 - 0.2) < 0.015
    assert abs(drawn["test"] / 20_000 - 0.1) < 0.015


def test_a_groups_split_depends_on_seed_and_name_alone() -> None:
    names = [f"g{i}" for i in range(200)]
    first = Splitter(Split()).assign(names)
    backwards = Splitter(Split()).assign(names[::-1])
    assert first == backwards[::-1]
    assert first != Splitter(Split(seed=1)).assign(names)


def test_a_share_of_nothing_holds_nothing_out() -> None:
    assert set(Splitter(Split(train=1, validation=0, test=0)).assign([f"g{i}" for i in range(500)])) == {"train"}


def test_groups_pinned_to_training_are_held_out_of_no_data_set() -> None:
    splitter = Splitter(Split(train=0.1, validation=0.45, test=0.45))
    groups = [f"g{i}" for i in range(100)]
    splitter.pin(groups)
    assert set(splitter.assign(groups)) == {"train"}
    assert splitter.leaked() == 0


def test_a_leak_would_be_counted() -> None:
    splitter = Splitter(Split(train=0.1, validation=0.45, test=0.45))
    groups = [f"g{i}" for i in range(100)]
    held_out = sum(name != "train" for name in splitter.assign(groups))
    splitter.pin(groups)  # too late, against the rule
    assert splitter.leaked() == held_out > 0


def test_the_group_is_the_columns_value_else_the_row_itself() -> None:
    assert group_key({"doc": "a"}, "doc", b"1" * 16) == group_key({"doc": "a"}, "doc", b"2" * 16)
    assert group_key({}, "doc", b"1" * 16) != group_key({}, "doc", b"2" * 16)
    assert group_key({"doc": "a"}, None, b"1" * 16) == group_key({}, None, b"1" * 16)
    with pytest.raises(RowInvalid):
        group_key({"doc": ["a"]}, "doc", b"1" * 16)


members = st.lists(st.integers(0, 300).map(lambda n: hash_of(str(n))), max_size=60)


@given(batches=st.lists(members, max_size=8))
def test_a_hash_set_is_a_set(batches: list[list[bytes]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "_RECENT_LIMIT", 16)  # so that runs are made and merged
        ours, plain = HashSet(), set[bytes]()
        for batch in batches:
            expected = []
            for member in batch:
                expected.append(member not in plain)
                plain.add(member)
            assert ours.add(batch) == expected
            assert len(ours) == len(plain)
        everything = [hash_of(str(n)) for n in range(300)]
        assert ours.contains(everything) == [member in plain for member in everything]


def test_hashes_that_end_in_zero_are_found() -> None:
    ending = [bytes([i]) * 15 + b"\0" for i in range(1, 50)]
    one, other = HashSet(), HashSet()
    one.add(ending)
    other.add(ending[:20])
    assert one.common(other) == 20
    assert all(one.contains(ending))


def test_parts_of_a_hash_do_not_run_together() -> None:
    assert hash_of("ab", "c") != hash_of("a", "bc")
