"""TiCo's loss, gradient and covariance equal three steps of sayannag's code; its own rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.heads import MLP
from sslzoo.memory import commit_memories
from sslzoo.methods import TiCo
from tests.golden import assert_close_to_golden, load


class Given(nn.Identity):
    """Backbone or projector that returns its input: the arrays are projections."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = self.in_features = self.out_features = dim


def test_three_steps_equal_sayannags() -> None:
    z = load("tico/loss_sayannag.npz")
    hyper = z["meta"]["hyper"]
    dim = hyper["D"]
    method = TiCo(Given(dim), Given(dim), hyper["rho"], hyper["beta"])
    for k in range(3):
        x1, x2 = (torch.tensor(z[name][k], requires_grad=True) for name in ("x1", "x2"))
        terms = method.losses(Batch([x1, x2], torch.arange(hyper["N"])))
        loss = terms["invariance"] + terms["contrast"]
        loss.backward()
        commit_memories(method)
        assert_close_to_golden(loss, z["loss"][k], 1e-6)
        assert_close_to_golden(x1.grad, z["grad_x1"][k], 2e-6)
        assert x2.grad is None  # of the momentum network
        assert_close_to_golden(method.covariance.read().view(dim, dim), z["C"][k], 1e-6)


def small(**options: float) -> TiCo:
    torch.manual_seed(0)
    return TiCo(SmallResNet((4, 8)), MLP([8, 16, 6], bias=False), **options).double()


def images(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, 6, 3, 8, 8, generator=generator, dtype=torch.float64)
    return Batch(list(views), torch.arange(6))


def test_the_momentum_network_moves_before_the_forward() -> None:
    ema, commit = small().configure_callbacks()
    assert isinstance(ema, EMA)
    assert isinstance(commit, CommitMemory)
    assert ema.when == "before_forward"


def test_the_second_view_meets_the_momentum_network() -> None:
    method, batch = small(beta=0.0).eval(), images()
    for parameter in method.teacher_projector.parameters():
        parameter.mul_(-1)
    terms = method.losses(batch)
    z1, z2 = method.embed(batch.views[0]), method.target(batch.views[1])
    torch.testing.assert_close(terms["invariance"], -(z1 * z2).sum(dim=1).mean())
    B = z1.T @ z1 / 6  # beta = 0: C_t = B
    torch.testing.assert_close(terms["contrast"], 8 * B.square().sum())


def test_micro_batches_of_a_step_have_one_old_covariance_and_are_averaged() -> None:
    method = small(beta=0.75)
    moments: list[Tensor] = []
    for seed, n in ((0, 6), (1, 2)):
        batch = images(seed)
        batch = Batch([view[:n] for view in batch.views], batch.index[:n])
        method.losses(batch)
        moments.append(method.covariance._staged[-1][0].view(6, 6))
        assert not method.covariance.read().any()
    commit_memories(method)
    wanted = 0.25 * (6 * moments[0] + 2 * moments[1]) / 8
    torch.testing.assert_close(method.covariance.read().view(6, 6), wanted)


def test_the_covariance_is_in_the_checkpoint() -> None:
    method, again = small(), small()
    method.losses(images())
    commit_memories(method)
    again.load_state_dict(method.state_dict())
    assert method.covariance.read().any()
    assert torch.equal(again.covariance.read(), method.covariance.read())


@pytest.mark.parametrize("weight", [-8.0, float("nan"), float("inf")])
def test_a_weight_that_rewards_covariance_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"covariance_weight must be in \[0, inf\), got"):
        small(covariance_weight=weight)
