"""Knowledge distillation: learn from a larger network's softened outputs."""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    The factor T^2 keeps the gradient's size independent of T (Hinton, Vinyals and Dean 2015,
    arXiv 1503.02531, section 2). Both arguments are logits of shape (N, classes).

    >>> logits = torch.tensor([[2.0, -1.0]])
    >>> distillation_loss(logits, logits, 4.0).item()
    0.0
    """
    soft_student = F.log_softmax(student.float() / temperature, dim=1)
    soft_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True) * temperature**2
