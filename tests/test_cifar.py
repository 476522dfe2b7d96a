"""The recipe of CIFAR: crops and flips, a rate that falls, and the data path from local parquet."""

import numpy as np
import pytest
import torch
from torch import nn

from repro.data import original
from repro.data.kinds import Images
from repro.experiments.cifar import Cifar, classified, falling, moved
from repro.tasks import classify


def windows(picture: torch.Tensor, crop: int) -> dict[tuple[int, int, bool], torch.Tensor]:
    """Every cut of a picture with zeros around it, by its corner and whether it is mirrored."""
    _, height, width = picture.shape
    found = {}
    for mirrored in (False, True):
        framed = np.pad((picture.flip(-1) if mirrored else picture).numpy(), ((0, 0), (crop, crop), (crop, crop)))
        for top in range(2 * crop + 1):
            for left in range(2 * crop + 1):
                cut = framed[:, top : top + height, left : left + width]
                found[top, left, mirrored] = torch.from_numpy(cut.copy())
    return found


def test_pictures_are_cut_and_mirrored_each_by_itself():
    x, source = 1 + torch.rand(400, 2, 5, 4), torch.Generator().manual_seed(0)
    seen = []
    for picture, ours in zip(x, moved(x, source, 1, True), strict=True):
        places = [place for place, cut in windows(picture, 1).items() if torch.equal(cut, ours)]
        assert len(places) == 1, "one cut of the picture itself"
        seen += places
    counts = {place: seen.count(place) for place in seen}
    assert len(counts) == 18, "every place, mirrored and not"
    assert max(counts.values()) < 4 * min(counts.values()), "about as often as one another"


def test_without_crop_and_flip_pictures_stay():
    x, source = torch.rand(3, 1, 4, 4), torch.Generator().manual_seed(0)
    assert torch.equal(moved(x, source, 0, False), x)
    kept = moved(x, source, 2, False)
    assert all(
        any(torch.equal(cut, ours) for cut in windows(one, 2).values()) for one, ours in zip(x, kept, strict=True)
    )


def test_the_rate_falls_at_its_shares():
    rate = falling((0.5, 0.75), 0.1, warmup=2)
    assert [rate(step, 8) for step in range(8)] == pytest.approx([0.1, 0.1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cifar_is_all_training_images_in_order(monkeypatch):
    def images(name: str, device: torch.device) -> Images:
        assert name == "cifar100"
        x = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 32, 32).contiguous()
        cut = {"train": slice(0, 6), "valid": slice(6, 9), "test": slice(9, 12)}
        splits = {f"{s}_{a}": v[at] for s, at in cut.items() for a, v in (("x", x), ("y", torch.arange(12)))}
        return Images(**splits, classes=100, mean=(0.0,) * 3, std=(1 / 255,) * 3)

    monkeypatch.setattr(original, "images", images)
    config = Cifar(data="cifar100", steps=1, batch=1, lr=0.1, examples=8, test=2)
    (x, y), (test_x, test_y) = config.load(torch.device("cpu"))
    assert config.classes == 100
    assert y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7] and test_y.tolist() == [9, 10]
    torch.testing.assert_close(x[:, 0, 0, 0], torch.arange(8.0))
    torch.testing.assert_close(test_x[:, 2, 31, 31], torch.tensor([9.0, 10.0]))


def test_the_recipe_reaches_the_training_loop():
    class Seen(nn.Module):
        """Remembers what it was given in training; learns nothing but a bias."""

        def __init__(self):
            super().__init__()
            self.bias, self.batches = nn.Parameter(torch.zeros(10)), []

        def forward(self, x):
            if self.training:
                self.batches.append(x.clone())
            return self.bias.expand(len(x), 10)

    source = torch.Generator().manual_seed(0)
    data = [(torch.rand(20, 3, 6, 6, generator=source) + 1, torch.randint(10, (20,), generator=source)) for _ in "ab"]
    plain = {"steps": 8, "batch": 5, "lr": 1.0, "trivial": ()}
    ends = {}
    for name, config in {
        "recipe": Cifar(**plain, crop=2),
        "whole": Cifar(**plain, crop=0, flip=False),
        "flat": Cifar(**plain, crop=0, flip=False, falls=()),
    }.items():
        model = Seen()
        result = classified(model, "cifar", 0, config, torch.device("cpu"), data=tuple(data))
        zeros = torch.cat(model.batches).eq(0).any()
        assert bool(zeros) == (name == "recipe"), "zeros come from the frame alone"
        assert 0 <= result["error"] <= 1
        ends[name] = model.bias.detach()
    assert torch.equal(ends["recipe"], ends["whole"]), "the same order of examples"
    assert (ends["whole"] - ends["flat"]).abs().max() > 1e-3, "the rate falls"
    bare = Seen()
    given = {"optimizer": "momentum", "weight_decay": 1e-4, "schedule": "constant"}
    classify(bare, "cifar", 0, Cifar(**plain), torch.device("cpu"), data=tuple(data), score="error", **given)
    assert torch.equal(bare.bias, ends["flat"]), "SGD with momentum and decay"
