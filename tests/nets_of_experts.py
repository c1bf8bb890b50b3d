"""Nets that choose by value: mixtures of experts, codebooks, and numbers used in other ways."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nets import TOKENS, Forward, module, structure, weight
from torch import Tensor, nn

EXPERTS, CHOSEN = 5, 2


def routed(forward: Forward) -> nn.Module:
    return module(
        forward,
        stem=nn.Linear(8, 7),
        router=nn.Linear(7, EXPERTS),
        up=weight(EXPERTS, 7, 6),
        down=weight(EXPERTS, 6, 7),
        head=nn.Linear(7, 3),
    )


def chosen(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return self.router(x).softmax(-1).topk(CHOSEN, -1)


def mixed(self: Any, x: Tensor, shares: Tensor) -> Tensor:
    hidden = torch.einsum("btd,edh->bteh", x, self.up).relu()
    return self.head(torch.einsum("bteh,ehd,bte->btd", hidden, self.down, shares))


@structure("expert 5~", "hidden 6", "hidden 7", "hidden 7", args=(TOKENS,))
def experts_by_one_hot() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        share, which = chosen(self, x)
        return mixed(self, x, (F.one_hot(which, EXPERTS) * share[..., None]).sum(-2))

    return routed(forward)


@structure("expert 5~", "hidden 6", "hidden 7", "hidden 7", args=(TOKENS,))
def experts_by_scatter() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        scores = self.router(x)
        best, which = scores.topk(CHOSEN, -1)
        return mixed(self, x, torch.zeros_like(scores).scatter(-1, which, best.softmax(-1)))

    return routed(forward)


@structure("expert 5~", "hidden 6", "hidden 7", "hidden 7", args=(TOKENS,))
def one_expert_each() -> nn.Module:
    """The Switch Transformer's routing."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        shares = self.router(x).softmax(-1)
        which = shares.argmax(-1)
        hidden = torch.einsum("btd,btdh->bth", x, self.up[which]).relu()
        out = torch.einsum("bth,bthd->btd", hidden, self.down[which])
        return self.head(out * shares.gather(-1, which[..., None]))

    return routed(forward)


@structure("expert 5~", "hidden 6", "hidden 7", "hidden 7", args=(TOKENS,))
def rows_sorted_by_expert() -> nn.Module:
    """Sorted as for a grouped product, and put back where they were."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(0, 1)
        share, which = chosen(self, x)
        which, order = which.reshape(-1).sort()
        rows = torch.einsum("nd,ndh->nh", x[order // CHOSEN], self.up[which]).relu()
        rows = torch.einsum("nh,nhd->nd", rows, self.down[which])
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        out = rows[back].view(*share.shape, -1) * share[..., None]
        used = torch.histc(which.float(), bins=EXPERTS, min=0, max=EXPERTS - 1) / order.shape[0]
        balance = (self.router(x).softmax(-1).mean(0) * used).sum()
        return self.head(out.sum(1)) * (1 + balance)

    return routed(forward)


@structure("expert 9~", "hidden 7~", args=(TOKENS,))
def nearest_in_a_codebook() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        nearest = torch.cdist(x, self.book).argmin(-1)
        return self.head(self.book[nearest] + F.embedding(nearest, self.book))

    return module(forward, stem=nn.Linear(8, 7), book=weight(9, 7), head=nn.Linear(7, 3))


@structure("hidden 6", "hidden 7", "hidden 7", args=(TOKENS,))
def the_expert_after_the_chosen() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        share, which = chosen(self, x)
        hidden = torch.einsum("btd,btkdh,btk->bth", x, self.up[(which + 1) % EXPERTS], share)
        return self.head(hidden.relu() @ self.down[0])

    return routed(forward)


@structure("hidden 6", "hidden 7", "hidden 7", args=(TOKENS,))
def numbers_changed_in_place() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        share, which = chosen(self, x)
        which.view(-1).add_(1).remainder_(EXPERTS)
        hidden = torch.einsum("btd,btkdh,btk->bth", x, self.up[which], share)
        return self.head(hidden.relu() @ self.down[0])

    return routed(forward)


@structure("hidden 6", "residual 7", args=(TOKENS,))
def experts_one_by_one() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        share, which = chosen(self, x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            own = ((which == e) * share).sum(-1, keepdim=True)
            out = out + own * ((x @ self.up[e]).relu() @ self.down[e])
        return self.head(out)

    return routed(forward)


@structure("hidden 6", "hidden 7", "hidden 7", args=(TOKENS,))
def choices_returned() -> nn.Module:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        scores = self.router(x)
        best, which = scores.topk(CHOSEN, -1)
        out = mixed(self, x, torch.zeros_like(scores).scatter(-1, which, best.softmax(-1)))
        return out, which

    return routed(forward)


@structure("hidden 5~", "hidden 7", args=(TOKENS,))
def largest_values_only() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.score(self.stem(x)).topk(3, -1).values)

    return module(forward, stem=nn.Linear(8, 7), score=nn.Linear(7, 5), head=nn.Linear(3, 4))
