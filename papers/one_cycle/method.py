"""The 1cycle policy (Smith 2018, arXiv:1803.09820; Smith & Topin 2017, arXiv:1708.07120).

    steps 0 ... a        rate low -> high           momentum 0.95 -> 0.85      straight lines
    a ... 2 a            rate high -> low           momentum 0.85 -> 0.95
    2 a ... steps        rate low -> low / 100      momentum 0.95

low = high / 10, and 2 a is "slightly less" than the run: the last phase takes the share `rest` of it, 0.1 here.  All
phases are straight lines in the step.  Momentum moves against the rate.  `high` is found by a range test: one short run
whose rate grows in a straight line, of which the largest rate before the loss rises is taken.

Where the report gives no number, or libraries do something else:
  D1  rest = 0.1 and a last rate of low / 100; the report says "several orders of magnitude less" and calls the length
      of the last phase a matter of the run.
  D2  torch.optim.lr_scheduler.OneCycleLR has two cosine phases by default; with three_phase=True and straight lines it
      is this policy, up to the place of the bends, which differs by about half a step.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["OneCycle", "momentum_at", "range_test", "rate_at"]


def _height(step: float, steps: int, rest: float) -> float:
    """Where the cycle stands: 0 at both ends, 1 at its top, and below 0 in the last phase, -1 at its end."""
    if not 0 <= rest < 1:
        raise ValueError(f"rest={rest}: write a share of the steps, from 0 to below 1")
    if steps < 2:
        raise ValueError(f"steps={steps}: a cycle takes at least 2")
    last = steps - 1
    cycle = (1 - rest) * last
    if step > cycle and last > cycle:
        return -min((step - cycle) / (last - cycle), 1.0)
    return max(0.0, 1 - abs(2 * step / cycle - 1))


def rate_at(step: float, steps: int, *, div: float = 10.0, final_div: float = 100.0, rest: float = 0.1) -> float:
    """Return the rate of a step from 0 to steps - 1, as a share of the highest one.

    div: highest over lowest rate.  final_div: lowest rate over that of the last step.  ValueError for fewer than two
    steps, or a rest that is no share.
    """
    height = _height(step, steps, rest)
    low = 1 / div
    return low + (1 - low) * height if height >= 0 else low + (low - low / final_div) * height


def momentum_at(step: float, steps: int, *, high: float = 0.95, low: float = 0.85, rest: float = 0.1) -> float:
    """Return the momentum of a step: `low` where the rate is highest, `high` at both ends and in the last phase."""
    return high - (high - low) * max(_height(step, steps, rest), 0.0)


class OneCycle(torch.optim.lr_scheduler.LRScheduler):
    """The policy as a scheduler: call `step` after each batch.

    max_lr: highest rate, of every group.  cycle_momentum: move `momentum`, or the first of `betas`, against the rate.
    ValueError where the optimizer has neither.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_lr: float,
        total_steps: int,
        *,
        div: float = 10.0,
        final_div: float = 100.0,
        rest: float = 0.1,
        cycle_momentum: bool = True,
        max_momentum: float = 0.95,
        base_momentum: float = 0.85,
        last_epoch: int = -1,
    ):
        names = ("momentum", "betas")
        if cycle_momentum and not all(any(name in group for name in names) for group in optimizer.param_groups):
            raise ValueError(f"{type(optimizer).__name__} has no momentum to cycle: write cycle_momentum=False")
        self.max_lr, self.total_steps, self.rest = max_lr, total_steps, rest
        self.div, self.final_div = div, final_div
        self.cycle_momentum, self.max_momentum, self.base_momentum = cycle_momentum, max_momentum, base_momentum
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Set the momentum of this step, and return its rates.  ValueError beyond the last step."""
        step = self.last_epoch
        if step >= self.total_steps:
            raise ValueError(f"step {step + 1} of a cycle of {self.total_steps}: write a larger total_steps")
        if self.cycle_momentum:
            high, low = self.max_momentum, self.base_momentum
            value = momentum_at(step, self.total_steps, high=high, low=low, rest=self.rest)
            for group in self.optimizer.param_groups:
                if "momentum" in group:
                    group["momentum"] = value
                else:
                    group["betas"] = (value, *group["betas"][1:])
        share = rate_at(step, self.total_steps, div=self.div, final_div=self.final_div, rest=self.rest)
        return [self.max_lr * share for _ in self.optimizer.param_groups]


def range_test(
    closure: Callable[[], Tensor], optimizer: torch.optim.Optimizer, low: float, high: float, steps: int
) -> tuple[list[float], list[float]]:
    """Return rates and losses of `steps` steps whose rate grows from low to high; end where a loss is not finite.

    closure: zeroes the gradients, takes the next batch, computes its loss and the gradients.  The model is changed.
    """
    rates, losses = [], []
    for step in range(steps):
        rate = low + (high - low) * step / max(steps - 1, 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = float(closure().detach())
        rates.append(rate)
        losses.append(loss)
        if not math.isfinite(loss):
            break
        optimizer.step()
    return rates, losses
