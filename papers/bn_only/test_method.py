import copy

import pytest
import torch
from torch import nn

from repro.experiments.cifar import Cifar
from repro.models.convnet import cifar_resnet
from repro.papers.bn_only import norm_parameters, train_only_norms_
from repro.papers.bn_only.cifar import cifar
from repro.papers.bn_only.cifar import network as network_of
from repro.testing import check_signature, mutation


def network():
    return cifar_resnet(8, width=4, shortcut="project", bias=False, generator=torch.Generator().manual_seed(0))


def step(model):
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.arange(8) % 10
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def check(train_only):
    """By names alone: what moves in one step is gamma, beta and the running statistics, and nothing else."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    drawn = copy.deepcopy(model)
    train_only(drawn, generator=torch.Generator().manual_seed(2))
    start = copy.deepcopy(drawn.state_dict())
    step(drawn)
    after = drawn.state_dict()
    for name in before:
        norm = f"{name.rpartition('.')[0]}.running_mean" in before
        affine = norm and name.endswith(("weight", "bias"))
        if affine:
            gamma = name.endswith("weight")
            if gamma:
                assert 0 <= start[name].min() and start[name].max() <= 1 and start[name].std() > 0.1, name
            else:
                assert not start[name].any(), name
            assert not torch.equal(after[name], start[name]), f"{name} is trained"
        elif norm:
            assert not torch.equal(after[name], before[name]), f"{name} is measured"
        else:
            assert torch.equal(after[name], before[name]), f"{name} stays as it was drawn"


def broken(fault):
    def train_only(model, generator):
        match fault:
            case "gamma at 1":
                return train_only_norms_(model, gamma="keep")
            case "no beta":
                train_only_norms_(model, generator=generator)
                for name, p in norm_parameters(model).items():
                    p.requires_grad_(name.endswith("weight"))
            case "the output layer too":
                train_only_norms_(model, generator=generator)
                model.head.weight.requires_grad_(True)
            case "shortcuts left out":
                train_only_norms_(model, generator=generator)
                for block in model.blocks:
                    for p in block.skip.parameters():
                        p.requires_grad_(False)
            case "in evaluation mode":
                train_only_norms_(model, generator=generator)
                model.eval()
            case _:
                train_only_norms_(model, generator=generator)
        return None

    return train_only


test_oracle, test_mutant_dies = mutation(check, broken, train_only_norms_)


def test_counts_and_order():
    trained = train_only_norms_(network())
    names = norm_parameters(network())
    assert len(trained) == len(names) and sum(p.numel() for p in trained) == sum(p.numel() for p in names.values())
    assert len({id(p) for p in trained}) == len(trained)


def test_generator_draws_the_same():
    one, other = network(), network()
    for model in (one, other):
        train_only_norms_(model, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_refusals():
    with pytest.raises(ValueError, match="Linear has no BatchNorm with parameters: write norms="):
        train_only_norms_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has no BatchNorm"):
        norm_parameters(nn.BatchNorm2d(3, affine=False))
    with pytest.raises(ValueError, match="gamma='ones' is unknown; write uniform or keep"):
        train_only_norms_(network(), gamma="ones")
    check_signature(train_only_norms_)


def test_d1_other_norms():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.GroupNorm(1, 2))
    trained = train_only_norms_(model, norms=(nn.LayerNorm, nn.GroupNorm))
    assert [id(p) for p in trained] == [id(p) for k in (1, 3) for p in model[k].parameters()]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    ]


def test_d2_shared_parameters_are_drawn_once():
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(norm, nn.Linear(4, 4), norm)
    trained = train_only_norms_(model, generator=torch.Generator().manual_seed(0))
    assert len(trained) == 2
    want = torch.empty(4).uniform_(0, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm.weight.detach(), want)


# --- the networks of the profile `paper` ------------------------------------------------------------------------------


def networks(width=4, **settings):
    return Cifar(**{"width": width, "steps": 1, "batch": 8, "lr": 0.1, "trivial": (), **settings})


def test_of_random_weights_two_a_channel_move_and_decay():
    moved = {}
    for decay in (0.0, 0.5):
        model = network_of("random_8", torch.Generator().manual_seed(0), networks(weight_decay=decay))
        before = copy.deepcopy(model.state_dict())
        step(model)
        moved[decay] = {name: (p - before[name]).detach() for name, p in model.named_parameters()}
    assert any(change.any() for change in moved[0.0].values())
    for name, change in moved[0.5].items():
        if change.dim() == 4:
            chosen = change != 0
            assert (chosen.flatten(1).sum(1) == 2).all(), name
            torch.testing.assert_close(change, moved[0.0][name] - 0.05 * before[name] * chosen)
        else:
            assert not change.any(), name


def test_which_arms_decay(monkeypatch):
    """Pictures of zeros give gamma no gradient: by a step of rate 0.1 and decay 10 it is 0, or as it was drawn."""
    x, y = torch.zeros(16, 3, 8, 8), torch.zeros(16, dtype=torch.int64)
    monkeypatch.setattr(Cifar, "load", lambda self, device: ((x, y), (x, y)))
    off = {
        arm: cifar(arm, 0, networks(weight_decay=10.0, crop=0, flip=False), torch.device("cpu"))["off"]
        for arm in ("norms_8", "all_8", "undecayed_8", "random_8")
    }
    assert off["norms_8"] == off["all_8"] == 1.0 and off["undecayed_8"] == off["random_8"] < 0.1


def test_what_the_arms_train():
    trained = {}
    for arm in ("norms_14", "undecayed_14", "output_14", "all_14"):
        model = network_of(arm, torch.Generator().manual_seed(0), networks(width=16))
        trained[arm] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert model.head.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert trained["norms_14"] == trained["undecayed_14"] == 1120  # Table 1
    assert trained["output_14"] == 650 and trained["all_14"] > 170_000
