"""The batch types refuse wrong shapes with a line that says what was wanted."""

import pytest
import torch

from slm_fn.core.types import LMBatch, PairBatch, check_lm_batch, check_pair_batch

GOOD = LMBatch(torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 4))


def test_good_batches_pass_through():
    assert check_lm_batch(GOOD) is GOOD
    pairs = PairBatch(GOOD, GOOD, torch.zeros(2, 2))
    assert check_pair_batch(pairs) is pairs


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (GOOD._replace(tokens=torch.zeros(2, 5)), "tokens"),
        (GOOD._replace(tokens=torch.zeros(5, dtype=torch.long)), "tokens"),
        (GOOD._replace(mask=torch.ones(2, 5)), r"mask.*\(2, 4\)"),
        (GOOD._replace(mask=torch.ones(2, 4, dtype=torch.long)), "mask"),
    ],
)
def test_a_wrong_part_is_named(bad, names):
    with pytest.raises(ValueError, match=names):
        check_lm_batch(bad)
    for pairs in (PairBatch(bad, GOOD, torch.zeros(2, 2)), PairBatch(GOOD, bad, torch.zeros(2, 2))):
        with pytest.raises(ValueError, match=names):
            check_pair_batch(pairs)


def test_sides_of_a_pair_may_differ_in_length_but_not_in_rows():
    longer = LMBatch(torch.zeros(2, 9, dtype=torch.long), torch.ones(2, 8))
    check_pair_batch(PairBatch(GOOD, longer, torch.zeros(2, 2)))
    three = LMBatch(torch.zeros(3, 5, dtype=torch.long), torch.ones(3, 4))
    for pairs in (PairBatch(GOOD, three, torch.zeros(2, 2)), PairBatch(GOOD, GOOD, torch.zeros(2))):
        with pytest.raises(ValueError, match="PairBatch rows disagree"):
            check_pair_batch(pairs)
