"""Recurrent networks with a norm slot, written as Ba, Kiros & Hinton 2016 (arXiv:1607.06450, supplement) put the norms.

W, U: input and hidden weights; s: logistic sigmoid; *: element-wise.  N_x, N_h normalise the two projections apart,
each over all its summed inputs; the cell is normalised on its way to h only.

    tanh    h = tanh(N_h(U h) + N_x(W x) + b)            joint=True: h = tanh(N(U h + W x) + b), Eq. 4
    lstm    (i, f, o, g) = N_h(U h) + N_x(W x) + b;   c = s(f) * c + s(i) * tanh(g);   h = s(o) * tanh(N_c(c))
    gru     (z, r) = N_h(U h) + N_x(W x) + b;   k = tanh(N_xk(W_k x) + b_k + s(r) * N_hk(U_k h))
            h = (1 - s(z)) * h + s(z) * k

torch.nn.LSTM orders its gates i, f, g, o; torch.nn.GRU has 1 - s(z) where we have s(z), and a second bias on U_k h.
Norms see (T, B, n) or (B, n) and must treat cases and steps apart (BatchNorm does not).
"""

import torch
from torch import Tensor, nn

from repro.models.slots import Init, Norm, embedding, has_bias, identity, linear

GATES = {"tanh": 1, "lstm": 4, "gru": 3}
State = Tensor | tuple[Tensor, Tensor]


class RNN(nn.Module):
    """One recurrent layer.  x: (B, T, n_in), state: h (B, width), of an LSTM (h, c) -> outputs (B, T, width), state.

    Weights start as N(0, 1 / fan_in), biases and states as 0.  b is dropped where the norms have a bias, except in the
    LSTM, whose equation has both.
    """

    def __init__(
        self,
        cell: str,
        n_in: int,
        width: int,
        *,
        generator: torch.Generator,
        norm: Norm = identity,
        joint: bool = False,
        init: Init | None = None,
    ):
        super().__init__()
        if cell not in GATES:
            raise ValueError(f"cell={cell!r} is unknown; write one of {', '.join(GATES)}")
        if joint and cell != "tanh":
            raise ValueError(f"joint=True is Eq. 4 for cell='tanh'; drop it for cell={cell!r}")
        self.cell, self.width, self.joint = cell, width, joint
        n = GATES[cell] * width
        self.input = linear(n_in, n, bias=False, std=n_in**-0.5, generator=generator)
        self.hidden = linear(width, n, bias=False, std=width**-0.5, generator=generator)
        gates = 2 * width if cell == "gru" else n
        self.norm_h = norm(gates)
        self.norm_x = nn.Identity() if joint else norm(gates)
        if cell == "lstm":
            self.norm_c = norm(width)
        if cell == "gru":
            self.norm_hk, self.norm_xk = norm(width), norm(width)
        self.bias = None if has_bias(self.norm_h) and cell != "lstm" else nn.Parameter(torch.zeros(n))
        if init is not None:
            init(self, generator)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if state is None:
            zeros = x.new_zeros(len(x), self.width)
            state = (zeros, zeros) if self.cell == "lstm" else zeros
        # The inputs of all steps are projected and normalised at once; only what depends on h is in the loop.
        w = self.hidden.weight.t()
        return getattr(self, f"_{self.cell}")(self.input(x.transpose(0, 1)), w, state)

    def _tanh(self, x_TBH: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x_TBH, plain, steps = self.norm_x(x_TBH), isinstance(self.norm_h, nn.Identity), []
        if self.bias is not None and (plain or not self.joint):
            x_TBH = x_TBH + self.bias
        for x in x_TBH.unbind():
            if plain:
                a = torch.addmm(x, h, w)
            elif self.joint:
                a = self.norm_h(torch.addmm(x, h, w))
                a = a if self.bias is None else a + self.bias
            else:
                a = x + self.norm_h(h @ w)
            h = a.tanh()
            steps.append(h)
        return torch.stack(steps, 1), h

    def _lstm(self, x_TBG: Tensor, w: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, State]:
        (h, c), plain, steps, sizes = state, isinstance(self.norm_h, nn.Identity), [], [3 * self.width, self.width]
        for x in (self.norm_x(x_TBG) + self.bias).unbind():
            a = torch.addmm(x, h, w) if plain else x + self.norm_h(h @ w)
            ifo, g = a.split(sizes, 1)
            i, f, o = ifo.sigmoid().chunk(3, 1)
            c = torch.addcmul(f * c, i, g.tanh())
            h = o * self.norm_c(c).tanh()
            steps.append(h)
        return torch.stack(steps, 1), (h, c)

    def _gru(self, x_TBG: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        steps, sizes = [], [2 * self.width, self.width]
        gates, inner = x_TBG.split(sizes, 2)
        gates, inner = self.norm_x(gates), self.norm_xk(inner)
        if self.bias is not None:
            b, b_k = self.bias.split(sizes)
            gates, inner = gates + b, inner + b_k
        for x, x_k in zip(gates.unbind(), inner.unbind(), strict=True):
            u, u_k = (h @ w).split(sizes, 1)
            z, r = (x + self.norm_h(u)).sigmoid().chunk(2, 1)
            h = torch.lerp(h, torch.addcmul(x_k, r, self.norm_hk(u_k)).tanh(), z)
            steps.append(h)
        return torch.stack(steps, 1), h


class RecurrentLM(nn.Module):
    """tokens (B, T) -> logits (B, T, vocab): embedding, `layers` recurrent layers of one width, linear head."""

    def __init__(
        self,
        cell: str,
        vocab: int,
        width: int,
        *,
        generator: torch.Generator,
        layers: int = 1,
        norm: Norm = identity,
        joint: bool = False,
        init: Init | None = None,
    ):
        super().__init__()
        self.embedding = embedding(vocab, width, std=1.0, generator=generator)
        self.layers = nn.ModuleList(
            RNN(cell, width, width, norm=norm, joint=joint, generator=generator) for _ in range(layers)
        )
        self.head = linear(width, vocab, bias=True, std=width**-0.5, generator=generator)
        if init is not None:
            init(self, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)
