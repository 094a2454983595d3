"""ReSSL's loss: the same relations to a queue of other images, in a weak and a strong view.

Zheng, You, Wang, Qian, Zhang, Wang and Xu, NeurIPS 2021, https://arxiv.org/abs/2107.09282.
Reference code: KyleZheng1997/ReSSL at 4d67daa, ressl.py and ressl_multi.py.

Deviations: none.

Shapes: n local images, V strong crops of each, K queue rows, D width. The (n, K) logits of a crop
are not kept: the gradient is formed with them in the forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import check_positive, shapes
from sslzoo.distributed import row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import attach_gradient, needs_gradient


def relational(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Mean cross entropy of the strong crops' similarities to the queue, with the weak view's.

    The image's own key is not among the similarities, so that there is no positive pair.

    Args:
        query: (V, n, D) strong crops of the student, L2-normalized by the caller.
        key: (n, D) weak views of the teacher, L2-normalized by the caller; a constant.
        queue: (K, D) keys of earlier images; a constant.
        student_temperature: tau_s; 0.1 in the paper.
        teacher_temperature: tau_t, below tau_s; 0.04 in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    check_positive("student_temperature", student_temperature)
    check_positive("teacher_temperature", teacher_temperature)
    if query.dim() != 3 or query.shape[1:] != key.shape or queue.shape[1:] != key.shape[1:]:
        raise ValueError(
            "query, key and queue must be (V, n, D), (n, D) and (K, D), got "
            f"{shapes(query, key, queue)}"
        )
    with no_autocast(query):
        query = at_least_float32(query)
        others = queue.detach().to(query.dtype)  # (K, D)
        scale = world_size() / row_layout(len(key)).total / len(query)
        with torch.no_grad():
            target = (key.to(query.dtype) @ others.T).div_(teacher_temperature).softmax(dim=1)
            total, grad = query.new_zeros(()), torch.empty_like(query)
            for crop, q in enumerate(query):
                log_p = (q @ others.T).div_(student_temperature).log_softmax(dim=1)
                total -= (target * log_p).sum()
                grad[crop] = log_p.exp_().sub_(target) @ others
        grad *= scale / student_temperature
        return attach_gradient(total * scale, query, grad if needs_gradient(query) else None)
