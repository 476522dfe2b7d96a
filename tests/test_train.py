"""The training loop: batches as functions of (seed, step), schedules, resumption, divergence, seeds in one pass."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro import batched, train
from repro.batched import fit_batched
from repro.errors import Diverged, ReproError
from repro.models.gpt import GPT
from repro.models.mlp import MLP, ResidualMLP
from repro.models.rnn import RecurrentLM
from repro.train import Order, Source, evaluate_classifier, evaluate_lm, fit, generator, seed_of

WIDTHS = (12, 16, 16, 4)


def examples(n: int = 200, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    source = generator("examples", n)
    x = torch.randn(n, WIDTHS[0], generator=source, dtype=torch.float64)
    y = (x @ torch.randn(WIDTHS[0], WIDTHS[-1], generator=source, dtype=torch.float64)).argmax(1)
    return x.to(dtype), y


def text(n: int = 3000) -> torch.Tensor:
    return torch.randint(0, 17, (n,), generator=generator("text")).cumsum(0).remainder(17).to(torch.uint8)


def mlp(seed: int = 0, **slots) -> MLP:
    return MLP(WIDTHS, generator=generator("model", seed), **slots)


class HandBatchNorm(nn.Module):
    """Batch normalization by elementary operations; assigns one running buffer and changes the other in place."""

    def __init__(self, n: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0, correction=0)
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean.detach()
            self.running_var.mul_(0.9).add_(0.1 * var.detach())
        return (x - mean) / torch.sqrt(var + 1e-5) * self.weight + self.bias


# --- batches and randomness ------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step():
    forward, backward = Order(50, 8, seed=3), Order(50, 8, seed=3)
    ahead = [forward(step).tolist() for step in range(20)]
    assert [backward(step).tolist() for step in reversed(range(20))] == ahead[::-1]
    assert ahead != [Order(50, 8, seed=4)(step).tolist() for step in range(20)]
    epoch = sum(ahead[:6], [])
    assert len(set(epoch)) == 48 and set(epoch) <= set(range(50))
    assert ahead[6:12] != ahead[:6]


def test_windows_of_text_are_a_function_of_seed_and_step():
    order = Order(100, 8, seed=3, replacement=True)
    late = order(train.CHUNK + 1).tolist()
    assert order(0).tolist() == Order(100, 8, seed=3, replacement=True)(0).tolist()
    assert order(train.CHUNK + 1).tolist() == late and len(late) == 8
    tokens = text()
    x, y = Source(tokens, 5, torch.device("cpu")).take(torch.tensor([0, 7]))
    assert x.tolist() == [tokens[0:5].tolist(), tokens[7:12].tolist()]
    assert y.tolist() == [tokens[1:6].tolist(), tokens[8:13].tolist()]
    assert y.dtype == torch.int64


def test_the_last_window_of_a_text_is_reached():
    source = Source(torch.arange(9), 4, torch.device("cpu"))
    assert source.n == 5
    assert source.take(torch.tensor([4]))[1].tolist() == [[5, 6, 7, 8]]


def test_seeds_differ_by_name_and_number():
    values = [seed_of("a", 1), seed_of("a", 2), seed_of("b", 1), seed_of("a", "1"), seed_of("a1")]
    assert len(set(values)) == 5 and all(0 <= v < 2**63 for v in values)
    assert seed_of("model", 3) == 7302702394008341474  # the same on every machine


def test_fit_is_repeatable_and_leaves_the_global_generator_alone():
    data, runs = examples(), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model = mlp(act=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.3)))
        runs.append(fit(model, data, steps=12, batch=32, lr=1e-2, seed=1).train_loss)
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1] and len(runs[0]) == 12
    assert runs[0] != fit(mlp(), data, steps=12, batch=32, lr=1e-2, seed=1).train_loss


@pytest.mark.parametrize(
    "options, hint",
    [
        ({"batch": 500}, "write a batch from 1 to 200"),
        ({"context": 4}, "without context="),
        ({"optimizer": "lion"}, "adamw"),
        ({"schedule": "step"}, "cosine"),
    ],
)
def test_mistakes_say_what_to_write(options, hint):
    with pytest.raises(ReproError, match=hint):
        fit(mlp(), examples(), **{"steps": 2, "batch": 8, "lr": 0.1, "seed": 0, **options})


# --- the update ------------------------------------------------------------------------------------------------------


def test_fit_equals_the_loop_written_out():
    x, y = examples(dtype=torch.float64)
    ours, theirs = mlp().double(), mlp().double()
    schedule = train.cosine(warmup=0.2, floor=0.1)
    history = fit(
        ours,
        (x, y),
        steps=25,
        batch=32,
        lr=0.05,
        seed=7,
        optimizer="momentum",
        schedule=schedule,
        clip=0.5,
        weight_decay=0.01,
    )
    order, losses = Order(200, 32, seed=7), []
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False)
    for step in range(25):
        index = order(step)
        loss = F.cross_entropy(theirs(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 0.05 * schedule(step, 25)
        optimizer.step()
        losses.append(loss.item())
    assert history.train_loss == pytest.approx(losses, rel=1e-12)


def test_schedules():
    steps = 100
    for make in (train.constant, train.linear, train.cosine):
        warmed = make(warmup=0.1)
        assert [warmed(s, steps) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
        assert warmed(10, steps) == pytest.approx(1.0) and make(warmup=10)(4, steps) == pytest.approx(0.5)
    assert train.constant()(99, steps) == 1.0
    assert train.linear(floor=0.2)(50, steps) == pytest.approx(0.6)
    assert train.cosine(floor=0.2)(25, steps) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    cycle = train.one_cycle(peak=0.3, start=0.04, floor=0.001)
    assert [cycle(s, steps) for s in (0, 30, 65)] == pytest.approx([0.04, 1.0, 0.5005])
    assert max(range(steps), key=lambda s: cycle(s, steps)) == 30
    root = train.inverse_sqrt(warmup=10)
    assert [root(s, steps) for s in (0, 9, 39)] == pytest.approx([0.1, 1.0, 0.5])


def test_groups_scale_the_learning_rate_and_hold_weights():
    model, data = mlp(), examples()
    before = copy.deepcopy(model.state_dict())

    def groups(m: nn.Module) -> list[dict]:
        return [{"params": [m.head.weight], "lr_scale": 0.0}, {"params": [m.head.bias]}]

    fit(model, data, steps=3, batch=32, lr=0.1, seed=0, optimizer="sgd", groups=groups)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.bias"}


def test_hook_sees_the_gradients_before_the_update():
    model, data, seen = mlp(), examples(), []

    def hook(step: int, m: nn.Module, loss: torch.Tensor) -> None:
        seen.append((step, m.head.weight.grad.norm().item(), m.head.bias.detach().clone(), loss.item()))

    history = fit(model, data, steps=3, batch=32, lr=0.1, seed=0, optimizer="sgd", hook=hook)
    assert [s[0] for s in seen] == [0, 1, 2] and all(s[1] > 0 for s in seen)
    assert torch.equal(seen[0][2], torch.zeros(4)) and not torch.equal(seen[1][2], torch.zeros(4))
    assert [s[3] for s in seen] == history.train_loss


def test_an_optimizer_with_a_closure():
    class Twice(torch.optim.SGD):
        """Takes its step with the gradient at the weights it has just moved to, as SAM does."""

        needs_closure = True

        def step(self, closure):
            for p in self.param_groups[0]["params"]:
                p.data.add_(p.grad, alpha=0.01)
            losses.append(closure().item())
            return super().step()

    losses = []
    history = fit(mlp(), examples(), steps=3, batch=32, lr=0.01, seed=0, optimizer=lambda g, lr: Twice(g, lr=lr))
    assert len(losses) == 3 and all(up > at for up, at in zip(losses, history.train_loss, strict=True))


def test_curves_amp_augmentation_and_channels_last():
    x = torch.randn(40, 2, 6, 6, generator=generator("images"))
    y = torch.arange(40) % 3
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    shapes = []

    def augment(batch: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        shapes.append(batch.is_contiguous(memory_format=torch.channels_last))
        return batch + 0.01 * torch.randn(batch.shape, generator=source)

    def evaluate(m: nn.Module) -> dict[str, float]:
        assert not m.training and not torch.is_grad_enabled()
        return evaluate_classifier(m, x, y, batch=16)

    history = fit(
        model,
        (x, y),
        steps=7,
        batch=16,
        lr=1e-3,
        seed=0,
        amp=torch.bfloat16,
        channels_last=True,
        augment=augment,
        evaluate=evaluate,
        eval_every=3,
    )
    assert history.eval_steps == [3, 6, 7] and all(shapes) and model.training
    assert {name: len(curve) for name, curve in history.curves.items()} == {"loss": 3, "accuracy": 3, "error": 3}
    assert history.final["error"] == pytest.approx(1 - history.final["accuracy"])


def test_evaluation_against_plain_sums():
    x, y = examples(90)
    model = mlp()
    with torch.no_grad():
        logits = model(x)
    wanted = {"loss": F.cross_entropy(logits, y).item(), "accuracy": (logits.argmax(1) == y).double().mean().item()}
    measured = evaluate_classifier(model, x, y, batch=32)
    assert {k: measured[k] for k in wanted} == pytest.approx(wanted, rel=1e-6)
    tokens = text(100)
    lm = GPT(17, 8, 16, 1, heads=2, generator=generator("lm"))
    long = tokens.long()
    with torch.no_grad():
        losses = [F.cross_entropy(lm(long[None, i : i + 8])[0], long[i + 1 : i + 9]).item() for i in range(0, 96, 8)]
    assert evaluate_lm(lm, tokens, 8, batch=5)["loss"] == pytest.approx(sum(losses) / 12, rel=1e-6)
    assert evaluate_lm(lm, tokens, 8, windows=3)["loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-6)
    with pytest.raises(ReproError, match="smaller context"):
        evaluate_lm(lm, tokens, 100)


# --- divergence ------------------------------------------------------------------------------------------------------


class Bomb(nn.Module):
    """Passes x on, until the call with this number."""

    def __init__(self, at: int):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return x * float("nan") if self.calls > self.at else x


@pytest.mark.parametrize("step", [0, 5, 15, 16, 37, 39])
def test_divergence_names_the_first_step(step):
    model = nn.Sequential(mlp(), Bomb(step))
    with pytest.raises(Diverged) as caught:
        fit(model, examples(), steps=40, batch=16, lr=1e-3, seed=0, evaluate=lambda m: {}, eval_every=7)
    assert caught.value.step == step
    assert train.Diverged is Diverged


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "unfused"])
@pytest.mark.parametrize("kind", ["mlp", "lm", "conv"])
def test_a_killed_run_resumes_bitwise(tmp_path, optimizer, kind):
    if optimizer == "unfused":

        def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
            return torch.optim.RAdam(groups, lr=lr, foreach=False)

    images = torch.randn(80, 2, 6, 6, generator=generator("images")), torch.arange(80) % 3

    def build(seed: int) -> nn.Module:
        if kind == "lm":
            return GPT(17, 8, 16, 1, heads=2, tied=True, dropout=0.2, generator=generator("lm", seed))
        if kind == "mlp":
            return mlp(seed, norm=nn.BatchNorm1d, act=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.3)))
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(64, 3))
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.1, generator=generator("conv", seed))
        return model

    def run(model: nn.Module, checkpoint=None, kill=None) -> train.History:
        def hook(step: int, *_: object) -> None:
            if step == kill:
                raise Killed

        data = {"lm": (text(),), "mlp": (examples(),), "conv": (images,)}[kind]
        return fit(
            model,
            *data,
            context=8 if kind == "lm" else None,
            steps=23,
            batch=16,
            lr=3e-3,
            seed=5,
            optimizer=optimizer,
            schedule="cosine",
            hook=hook,
            checkpoint=checkpoint,
            checkpoint_every=4,
            eval_every=5,
            evaluate=lambda m: {"norm": sum(p.square().sum() for p in m.parameters())},
            channels_last=kind == "conv",
        )

    whole = build(0)
    undisturbed = run(whole)
    path = tmp_path / "run" / "state.safetensors"
    for kill in (2, 9, 17):  # before the first checkpoint, and twice between two
        with pytest.raises(Killed):
            run(build(0 if kill == 2 else 1), path, kill)  # once a checkpoint exists the given weights do not matter
        assert path.exists() == (kill > 2)
        if kill == 2:
            with pytest.raises(Killed):
                run(build(0), path, 5)
    resumed = build(2)
    assert run(resumed, path) == undisturbed
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    again = build(3)
    assert run(again, path) == undisturbed  # a finished run is only read
    assert torch.equal(next(again.parameters()), next(whole.parameters()))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


SCRIPT = """
import os, signal, sys, torch
from repro.models.mlp import MLP
from repro.train import fit, generator

def run(path, kill=None):
    x, y = torch.randn(100, 8, generator=generator("x")), torch.arange(100) % 3
    model = MLP((8, 16, 3), generator=generator("model", 0))
    hook = lambda step, *_: os.kill(os.getpid(), signal.SIGKILL) if step == kill else None
    history = fit(model, (x, y), steps=30, batch=10, lr=1e-2, seed=0, hook=hook, checkpoint=path, checkpoint_every=3)
    return history, model.head.weight.tolist()
"""


def test_a_run_killed_by_the_system_resumes_bitwise(tmp_path):
    code = SCRIPT + "torch.set_num_threads(1)\nrun(sys.argv[1], 14)"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], capture_output=True, timeout=600)
    assert killed.returncode == -9, killed.stderr
    names: dict = {}
    exec(SCRIPT, names)
    assert (tmp_path / "killed").exists()
    assert names["run"](tmp_path / "killed") == names["run"](tmp_path / "whole")


def test_checkpoints_of_other_runs_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    common = {"steps": 4, "batch": 16, "seed": 0, "checkpoint": path}
    fit(mlp(), examples(), lr=0.1, **common)
    with pytest.raises(ReproError, match="lr=0.1, now 0.2"):
        fit(mlp(), examples(), lr=0.2, **common)
    with pytest.raises(ReproError, match="another model"):
        fit(mlp(norm=nn.LayerNorm), examples(), lr=0.1, **common)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ReproError, match="no checkpoint"):
        fit(mlp(), examples(), lr=0.1, **common)


def test_a_checkpoint_holds_tensors_and_json_only(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "state.safetensors"
    fit(mlp(), examples(), steps=4, batch=16, lr=0.1, seed=0, checkpoint=path)
    with safe_open(path, "pt") as file:
        head = json.loads(file.metadata()["repro"])
        names = set(file.keys())
    assert head["step"] == 4 and len(head["history"]["train_loss"]) == 4
    assert {"model/head.weight", "optimizer/0/exp_avg", "optimizer/0/step"} <= names


# --- several seeds in one pass ---------------------------------------------------------------------------------------

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative, of losses; stated in the header of `batched`


def both(build, data, dtype=torch.float64, seeds=(3, 4, 9), **options):
    """Models and results of the sequential and of the batched path."""
    options = {"steps": 50, "batch": 32, "lr": 3e-3, **options}
    apart, together = ([build(seed).to(dtype) for seed in seeds] for _ in range(2))
    histories = [fit(model, data, seed=seed, **options) for model, seed in zip(apart, seeds, strict=True)]
    return apart, histories, together, fit_batched(together, data, seeds=list(seeds), **options)


def close(one: float, other: float, dtype: torch.dtype) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", [lambda n: nn.Identity(), nn.LayerNorm, nn.BatchNorm1d, HandBatchNorm, nn.RMSNorm])
def test_batched_seeds_equal_sequential_ones(norm, dtype):
    x, y = examples(dtype=dtype)
    apart, histories, together, results = both(
        lambda seed: mlp(seed, norm=norm),
        (x, y),
        dtype,
        optimizer="momentum",
        lr=0.05,
        schedule="cosine",
        clip=1.0,
        weight_decay=1e-3,
        evaluate=lambda m: evaluate_classifier(m, x, y),
        eval_every=20,
    )
    assert len({h.train_loss[0] for h in histories}) == 3
    for one, history, other, result in zip(apart, histories, together, results, strict=True):
        assert result.eval_steps == history.eval_steps == [20, 40, 50]
        assert all(close(a, b, dtype) for a, b in zip(history.train_loss, result.train_loss, strict=True))
        assert all(close(a, b, dtype) for a, b in zip(history.curves["loss"], result.curves["loss"], strict=True))
        for (name, p), q in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            tolerance = 1e-9 if dtype == torch.float64 else 1e-3
            torch.testing.assert_close(q, p, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw"])
def test_every_named_optimizer_is_elementwise(optimizer):
    _, histories, _, results = both(mlp, examples(dtype=torch.float64), optimizer=optimizer, weight_decay=0.01)
    for history, result in zip(histories, results, strict=True):
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)


class Shifted(nn.Module):
    """A parameter of no axes, and PReLU."""

    def __init__(self):
        super().__init__()
        self.shift, self.prelu = nn.Parameter(torch.tensor(0.1)), nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prelu(x + self.shift)


class Tied(nn.Module):
    """A model of no known kind, one matrix used twice."""

    def __init__(self, source: torch.Generator):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        for p in self.parameters():
            nn.init.normal_(p, 0, 0.3, generator=source)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize("placement", ["pre", "post", "none"])
def test_batched_residual_networks(placement):
    def build(seed: int) -> nn.Module:
        source = generator("residual", seed)
        return ResidualMLP(12, 16, 2, 4, generator=source, norm=nn.LayerNorm, placement=placement, act=Shifted)

    _, histories, _, results = both(build, examples(dtype=torch.float64), lr=0.05, optimizer="momentum", steps=30)
    for history, result in zip(histories, results, strict=True):
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)


def test_batched_unknown_model_with_tied_weights():
    apart, histories, together, results = both(lambda s: Tied(generator("tied", s)), examples(dtype=torch.float64))
    for one, history, other, result in zip(apart, histories, together, results, strict=True):
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)
        assert other.b.weight is other.a.weight
        torch.testing.assert_close(other.a.weight, one.a.weight, rtol=1e-9, atol=1e-9)


def test_batched_language_models():
    def build(seed: int) -> nn.Module:
        return RecurrentLM("lstm", 17, 8, norm=nn.LayerNorm, generator=generator("lm", seed))

    _, histories, _, results = both(build, text(), context=6, steps=6)
    for history, result in zip(histories, results, strict=True):
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)


def test_large_slices_go_one_after_the_other(monkeypatch):
    monkeypatch.setattr(batched, "LOOP_FROM", 0)
    apart, histories, together, results = both(lambda s: mlp(s, norm=HandBatchNorm), examples(dtype=torch.float64))
    for one, history, other, result in zip(apart, histories, together, results, strict=True):
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)
        torch.testing.assert_close(other.hidden[0].norm.running_mean, one.hidden[0].norm.running_mean)
        torch.testing.assert_close(other.hidden[0].norm.running_var, one.hidden[0].norm.running_var)


def test_batched_options_groups_loss_hook_and_augmentation():
    def groups(m: nn.Module) -> list[dict]:
        decayed = [p for p in m.parameters() if p.dim() > 1]
        return [
            {"params": decayed, "weight_decay": 0.1, "lr_scale": 0.5},
            {"params": [p for p in m.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]

    def augment(x: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        return x + torch.randn(x.shape, generator=source, dtype=x.dtype)

    seen = {}

    def hook(step: int, models, losses: torch.Tensor) -> None:
        models = models if isinstance(models, list) else [models]
        seen.setdefault(len(models), []).append([m.hidden[1].linear.weight.grad.clone() for m in models])

    _, histories, _, results = both(
        mlp,
        examples(dtype=torch.float64),
        steps=12,
        groups=groups,
        augment=augment,
        hook=hook,
        loss=lambda out, y: (out - F.one_hot(y, 4)).square().mean(),
    )
    for history, result in zip(histories, results, strict=True):
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)
    for step in range(12):
        for k in range(3):
            torch.testing.assert_close(seen[3][step][k], seen[1][12 * k + step][0], rtol=1e-8, atol=1e-12)


def test_data_of_their_own():
    x, y = examples(dtype=torch.float64)
    data = [(x[:150], y[:150]), (x[50:], y[50:])]
    models = [mlp(s).double() for s in (1, 2)]
    results = fit_batched(models, data, seeds=[1, 2], steps=10, batch=16, lr=1e-2)
    for seed, part, result in zip((1, 2), data, results, strict=True):
        history = fit(mlp(seed).double(), part, seed=seed, steps=10, batch=16, lr=1e-2)
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_diverging_seed_leaves_the_others_alone(clip, optimizer):
    data = examples(dtype=torch.float64)

    def build(seed: int) -> nn.Module:
        model = mlp(seed, norm=nn.LayerNorm)
        if seed == 4:  # overflows as soon as the head has moved
            with torch.no_grad():
                model.head.weight.mul_(1e306)
        return model

    options = {"steps": 30, "batch": 32, "lr": 1e-2, "optimizer": optimizer, "clip": clip}
    with pytest.raises(Diverged) as caught:
        fit(build(4).double(), data, seed=4, **options)
    results = fit_batched([build(s).double() for s in (3, 4, 9)], data, seeds=[3, 4, 9], **options)
    assert isinstance(results[1], Diverged) and results[1].step == caught.value.step
    for seed, result in ((3, results[0]), (9, results[2])):
        history = fit(build(seed).double(), data, seed=seed, **options)
        assert result.train_loss == pytest.approx(history.train_loss, rel=1e-9)


def test_when_all_seeds_diverge_the_run_stops():
    x, y = examples()
    calls = []
    results = fit_batched(
        [mlp(s) for s in (0, 1)],
        (x * float("nan"), y),
        seeds=[0, 1],
        steps=500,
        batch=16,
        lr=0.1,
        hook=lambda step, *_: calls.append(step),
    )
    assert [r.step for r in results] == [0, 0] and len(calls) < 100


def test_models_own_their_memory_again():
    models = [mlp(s, norm=nn.BatchNorm1d) for s in (0, 1)]
    fit_batched(models, examples(), seeds=[0, 1], steps=2, batch=16, lr=0.1)
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
            assert tensor.grad is None
    kept = models[1].head.weight.clone()
    with torch.no_grad():
        models[0].head.weight.zero_()
    assert torch.equal(models[1].head.weight, kept)


def test_batched_refuses_what_it_cannot_repeat():
    common = {"steps": 2, "batch": 8, "lr": 0.1}
    with pytest.raises(ReproError, match="dropout"):
        fit_batched([mlp(act=lambda: nn.Dropout(0.1))], examples(), seeds=[0], **common)
    with pytest.raises(ReproError, match="per seed"):
        fit_batched([mlp()], examples(), seeds=[0, 1], **common)
    with pytest.raises(ReproError, match="mix"):
        fit_batched([mlp()], examples(), seeds=[0], optimizer=lambda g, lr: torch.optim.LBFGS(g, lr=lr), **common)
    with pytest.raises(ReproError, match="one length"):
        x, y = examples()
        fit_batched([mlp(), mlp()], [(x, y), (x[:9], y[:9])], seeds=[0, 1], **common)
