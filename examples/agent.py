"""An agent that sees no velocities, with and without CPC as its auxiliary loss.

    pip install 'sslzoo[rl]' && python -m examples.agent

The agent is an A2C (Mnih et al., ICML 2016, https://arxiv.org/abs/1602.01783) whose GRU serves its
policy, its value and `sslzoo.methods.CPC`, which predicts the frames of the next observations from
the GRU's states, on the same rollouts and without a replay buffer, as in section 3.4 of CPC's paper
(https://arxiv.org/abs/1807.03748). The environments are gymnasium's CartPole-v1 without both
velocities and LunarLander-v3 without its three. Prints the mean return of the episodes
that ended in each tenth of the training, per seed; `--output` keeps them.

Deviations from the paper's agents: small environments and networks, Adam, generalized advantage
estimates; an episode that the time limit cuts counts as ended, and a prediction may cross the end
of an episode.

Shapes: N environments, T steps of a rollout, F observed features, D frame width, H state width.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning import seed_everything
from torch import Tensor, nn
from torch.distributions import Categorical

from benchmarks.speed import provenance
from sslzoo.backbones import FrameMLP
from sslzoo.batch import Batch
from sslzoo.heads import LinearSteps, Recurrent
from sslzoo.methods import CPC

ENVIRONMENTS, STEPS, DISCOUNT, TRACE, PARTS = 16, 16, 0.99, 0.95, 10
REWARD = 0.05  # its factor, so that values are of order one
WIDTH = 64  # of frames and states


class Observed(NamedTuple):
    """What is observed of an environment.

    Attributes:
        columns: of its observations; the others are velocities.
        scale: of each, in the environment's unit.
        frames: of a training, in all environments together.
    """

    columns: list[int]
    scale: list[float]
    frames: int


OBSERVED = {
    "CartPole-v1": Observed([0, 2], [1.0, 0.1], 100_000),  # m, rad
    # Position, angle, and which legs touch the ground.
    "LunarLander-v3": Observed([0, 1, 4, 6, 7], [0.5, 0.5, 0.5, 1.0, 1.0], 300_000),
}


class Rollout(NamedTuple):
    """Observations of N environments, the view that the agent's encoder takes.

    Attributes:
        values: (N, T, F).
        first: (N, T) bool, True where an episode begins.
        state: (N, H), the GRU's states before the first step.
    """

    values: Tensor
    first: Tensor
    state: Tensor


class Memory(nn.Module):
    """Frames of observations, and a GRU that forgets where an episode begins.

    Args:
        features: F.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.encoder, self.context = FrameMLP(features, WIDTH), Recurrent(WIDTH, WIDTH)
        self.frame_features = self.num_features = WIDTH

    def forward_parts(self, x: Rollout) -> tuple[Tensor, Tensor]:
        """Frames z (N, T, D) and states c (N, T, H)."""
        gru: Any = self.context
        state, states = x.state, []
        weights = gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
        z = self.encoder(x.values)
        for frame, first in zip(z.unbind(1), x.first.unbind(1), strict=True):
            state = torch.gru_cell(frame, state * ~first[:, None], *weights)
            states.append(state)
        return z, torch.stack(states, dim=1)

    def forward(self, x: Rollout) -> Tensor:
        """The mean state (N, H)."""
        return self.forward_parts(x)[1].mean(1)


class Agent(nn.Module):
    """Policy, value and CPC on one memory.

    Args:
        features: F.
        actions: number of actions.
        predicted: frames that CPC predicts.
    """

    def __init__(self, features: int, actions: int, predicted: int) -> None:
        super().__init__()
        memory = Memory(features)
        self.cpc = CPC(memory, LinearSteps(WIDTH, WIDTH, predicted), num_negatives=64)
        self.actor, self.critic = nn.Linear(WIDTH, actions), nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.actor.weight)  # the first actions are uniform

    @property
    def memory(self) -> Memory:
        memory: Memory = self.cpc.backbone  # type: ignore[assignment]
        return memory

    def state(self, observed: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """One step of the memory. Shapes: (N, F), (N,) bool, (N, H) -> (N, H)."""
        return self.memory.forward_parts(Rollout(observed[:, None], first[:, None], state))[1][:, 0]


def advantages(rewards: Tensor, values: Tensor, ended: Tensor, last: Tensor) -> Tensor:
    """Generalized advantage estimates. Shapes: (N, T), (N, T), (N, T) bool, (N,) -> (N, T)."""
    found, ahead = [], torch.zeros_like(last)
    for t in reversed(range(rewards.shape[1])):
        goes_on = (~ended[:, t]).to(last.dtype)
        delta = rewards[:, t] + DISCOUNT * last * goes_on - values[:, t]
        ahead = delta + DISCOUNT * TRACE * goes_on * ahead
        found.append(ahead)
        last = values[:, t]
    return torch.stack(found[::-1], dim=1)


class Environments:
    """N environments of one name, which start again by themselves.

    Args:
        name: one of `OBSERVED`.
        seed: of the environments.

    Raises:
        ImportError: gymnasium is not installed.
    """

    def __init__(self, name: str, seed: int) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError(
                "the agent acts in gymnasium, which is not installed; run: pip install 'sslzoo[rl]'"
            ) from error
        mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        self.all: Any = gymnasium.make_vec(
            name, ENVIRONMENTS, vectorization_mode="sync", vector_kwargs=mode
        )
        self.columns, self.scale = OBSERVED[name].columns, torch.tensor(OBSERVED[name].scale)
        self.actions = int(self.all.single_action_space.n)
        self.seed = seed

    def _seen(self, observations: Any) -> Tensor:
        return torch.as_tensor(observations, dtype=torch.float32)[:, self.columns] / self.scale

    def reset(self) -> Tensor:
        """The first observations (N, F)."""
        return self._seen(self.all.reset(seed=self.seed)[0])

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observations (N, F), rewards (N,) and whether the episode ended (N,) bool."""
        found, reward, over, cut, _ = self.all.step(actions.numpy())
        return (
            self._seen(found),
            torch.as_tensor(reward, dtype=torch.float32),
            torch.as_tensor(over | cut),
        )


def train(
    name: str,
    seed: int,
    weight: float,
    frames: int,
    predicted: int = 8,
    rate: float = 5e-3,
    entropy: float = 0.01,
) -> list[float]:
    """Mean return of the episodes that ended in each tenth of the training.

    Args:
        name: an environment of `OBSERVED`.
        seed: of networks, actions and environments.
        weight: of CPC's loss; 0: without it.
        frames: steps in all environments together.
        predicted: frames that CPC predicts.
        rate: of Adam, which falls linearly to zero.
        entropy: weight of the policy's entropy.
    """
    seed_everything(seed, verbose=False)
    environments = Environments(name, seed)
    observed = environments.reset()
    agent = Agent(observed.shape[1], environments.actions, predicted)
    optimizer = torch.optim.Adam(agent.parameters(), rate)
    state = torch.zeros(ENVIRONMENTS, WIDTH)
    first = torch.ones(ENVIRONMENTS, dtype=torch.bool)
    gained, returns = torch.zeros(ENVIRONMENTS), []
    updates = frames // (ENVIRONMENTS * STEPS)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = rate * (1 - update / updates)
        start, rows = state, []
        for _ in range(STEPS):
            with torch.no_grad():
                state = agent.state(observed, first, state)
                action = Categorical(logits=agent.actor(state)).sample()
            found, reward, ended = environments.step(action)
            rows.append((observed, first, action, REWARD * reward, ended))
            gained += reward
            returns += [(update, value) for value in gained[ended].tolist()]
            gained[ended] = 0
            observed, first = found, ended
        values, begins, actions, rewards, ends = (
            torch.stack(part, dim=1) for part in zip(*rows, strict=True)
        )
        rollout = Rollout(values, begins, start)
        states = agent.memory.forward_parts(rollout)[1]
        value, chosen = agent.critic(states)[..., 0], Categorical(logits=agent.actor(states))
        with torch.no_grad():
            last = agent.critic(agent.state(observed, first, state))[:, 0]
            gain = advantages(rewards, value, ends, last)
        loss = -(chosen.log_prob(actions) * gain).mean() - entropy * chosen.entropy().mean()
        loss = loss + 0.5 * F.mse_loss(value, gain + value.detach())
        if weight:
            agent.cpc.step = update  # the clock of its keyed draws
            view = Batch([rollout], torch.arange(ENVIRONMENTS))
            loss = loss + weight * agent.cpc.losses(view)["info_nce"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
    environments.all.close()
    return by_part(returns, updates)


def by_part(returns: list[tuple[int, float]], updates: int) -> list[float]:
    """Mean return of each tenth, of (update, return) pairs; NaN if no episode ended in one."""
    parts: list[list[float]] = [[] for _ in range(PARTS)]
    for update, value in returns:
        parts[update * PARTS // updates].append(value)
    return [sum(part) / len(part) if part else float("nan") for part in parts]


def main(args: list[str] | None = None) -> None:
    """Train with and without CPC, and print the returns."""
    parser = argparse.ArgumentParser(prog="python -m examples.agent", description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(OBSERVED), choices=OBSERVED)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--frames", type=int, help="instead of those of `OBSERVED`")
    parser.add_argument("--weight", type=float, default=0.1, help="of CPC's loss")
    parser.add_argument("--rate", type=float, default=5e-3, help="of Adam")
    parser.add_argument("--output", type=Path, help="a JSON file, which gains these results")
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    kept: dict[str, Any] = {}
    if given.output is not None and given.output.exists():
        kept = json.loads(given.output.read_text())
    for name in given.only:
        frames = given.frames or OBSERVED[name].frames
        about: dict[str, Any] = {"frames": frames, "weight": given.weight}
        about |= {"seeds": given.seeds, **provenance()}
        for arm, weight in (("a2c", 0.0), ("a2c_cpc", given.weight)):
            started, every = time.process_time(), []
            for seed in given.seeds:
                every.append(train(name, seed, weight, frames, rate=given.rate))
                print(name, arm, seed, [round(value, 1) for value in every[-1]], flush=True)
            minutes = (time.process_time() - started) / 60
            about[arm] = {"returns": every, "cpu_minutes": minutes}
        kept[name] = about
        if given.output is not None:
            given.output.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
