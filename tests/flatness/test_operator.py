"""Products of the Hessian and of the Gauss-Newton matrix against matrices written out."""

from __future__ import annotations

import pytest
import torch
from objectives import classifier, columns
from torch import nn
from torch.nn.functional import cross_entropy

from yolo_os import UserError
from yolo_os.flatness.operator import GaussNewton, Hessian, Objective, flat, shape_as, times


def written_out(objective, model, data):
    """The Hessian by torch's own."""
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])

    def loss(vector):
        values = dict(zip(objective.parameters, shape_as(vector, objective.tensors)))
        return cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat(objective.tensors).detach())


def test_the_hessian_is_that_of_the_mean_over_all_samples():
    model, data, objective = classifier()
    torch.testing.assert_close(columns(Hessian(objective)), written_out(objective, model, data))


def test_the_library_multiplies_by_the_same_hessian():
    import hessian_eigenthings

    model, data, objective = classifier()
    library = hessian_eigenthings.HessianOperator(
        model, data[:1], lambda model, batch: cross_entropy(model(batch[0]), batch[1])
    )
    vector = torch.randn(objective.size).double()
    [product] = Hessian(objective).of_batch(0, [shape_as(vector, objective.tensors)])
    torch.testing.assert_close(flat(product), library.matvec(vector))


def test_gauss_newton_is_the_jacobian_around_the_curvature_of_the_outputs():
    model, data, objective = classifier(batches=1)
    [(x, y)] = data

    def outputs(vector):
        values = dict(zip(objective.parameters, shape_as(vector, objective.tensors)))
        return torch.func.functional_call(model, values, (x,)).flatten()

    jacobian = torch.autograd.functional.jacobian(outputs, flat(objective.tensors).detach())
    curvature = torch.autograd.functional.hessian(
        lambda z: cross_entropy(z.view(len(y), 3), y), model(x).detach().flatten()
    )
    torch.testing.assert_close(columns(GaussNewton(objective)), jacobian.T @ curvature @ jacobian)


def test_a_parameter_that_the_loss_does_not_see_has_no_curvature():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    objective = Objective(
        {"used": used, "unused": unused}, [1.0], lambda batch: used, lambda batch, made: (made**4).sum()
    )
    product = times(Hessian(objective), torch.ones(5))
    assert product.tolist() == [12.0, 12.0, 0.0, 0.0, 0.0]


def test_a_loss_without_bend_has_a_hessian_of_zero():
    weight = nn.Parameter(torch.ones(3))
    objective = Objective({"weight": weight}, [1.0], lambda batch: weight, lambda batch, made: made.sum())
    assert times(Hessian(objective), torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_gradients_are_asked_for_only_while_they_are_needed():
    _, _, objective = classifier()
    for tensor in objective.tensors:
        tensor.requires_grad_(False)
    list(Hessian(objective).of_batch(0, [[torch.ones_like(each) for each in objective.tensors]]))
    assert not any(tensor.requires_grad for tensor in objective.tensors)


@pytest.mark.parametrize("scale", [1.0, float("nan")])
def test_a_loss_that_changes_between_two_calls_is_refused(scale):
    weight = nn.Parameter(torch.ones(3))
    drawn = torch.Generator().manual_seed(0)

    def criterion(batch, made):
        return (made * torch.rand(3, generator=drawn)).sum() * scale

    objective = Objective({"weight": weight}, [1.0], lambda batch: weight, criterion)
    with pytest.raises(UserError, match="changes between two calls"):
        objective.check_determinism()
