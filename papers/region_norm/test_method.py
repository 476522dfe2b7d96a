import torch

from repro.papers.region_norm import method


def test_against_the_equation() -> None:
    x = torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(method(x), x)


def test_d1_says_what_the_departure_changes() -> None:
    raise AssertionError("write a test for each departure of papers/region_norm/method.py")
