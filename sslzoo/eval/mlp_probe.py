"""MLP probe: a classifier with one hidden layer on cached features.

CPC's paper (https://arxiv.org/abs/1807.03748, section 3.1) reports it besides the linear probe,
since it also finds information that is not linearly separable. It is deterministic, since it has
its own generator.
Shapes: n samples, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.eval.linear import checked_labels, standardize


def mlp_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    num_classes: int,
    hidden: int = 512,
    epochs: int = 50,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
) -> float:
    """Test accuracy of a Linear-ReLU-Linear classifier trained with Adam on standardized features.

    Args:
        train: (n, D) features of the training set, of one rank or gathered.
        train_labels: (n,) any dtype.
        test: (m, D).
        test_labels: (m,).
        num_classes: C.
        hidden: width of the hidden layer.
        epochs: passes over the training set.
        batch_size: samples per step.
        lr: initial learning rate of Adam, which decays linearly to 0.
        seed: determines the initial weights and the order of the samples.

    Returns:
        Fraction in [0, 1].
    """
    train_labels = checked_labels("MLP probe, training set", train, train_labels, num_classes)
    test_labels = checked_labels("MLP probe, test set", test, test_labels, num_classes)
    x, asked = standardize(train.float(), test.float())
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(seed)
        layers = nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        probe = nn.Sequential(*layers).to(x.device)
        optimizer = torch.optim.Adam(probe.parameters(), lr=lr)
        steps = epochs * -(-len(x) // batch_size)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).to(x.device).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(probe(x[rows]), train_labels[rows]).backward()
                optimizer.step()
                decay.step()
    with torch.no_grad():
        return (probe(asked).argmax(1) == test_labels).double().mean().item()
