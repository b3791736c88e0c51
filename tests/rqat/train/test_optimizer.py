"""QuantizedOptimizer: the model stays on the grid, gradients are those of fake quantization, a resume is bit-equal."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rqat.errors import ModelError, NumericsError, RqatError, RunError
from rqat.model.checkpoint import decoded
from rqat.optimizers import OPTIMIZERS, UNSUITABLE
from rqat.scheme import Scheme
from rqat.train.optimizer import QuantizedOptimizer
from rqat_kernels.grid import dequantize, snap_scale
from tests.toys import backward, built, quantized, toy

SCHEMES = [Scheme.parse(s) for s in ("w2g16", "w3g32", "w4-row", "w2g16-sym", "w8g32")]

ON_GPU = (
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there the step is one kernel; its own tests interpret it"
    ),
)
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_on_the_grid_after_every_step(scheme: Scheme, dtype: torch.dtype, device: str) -> None:
    model, optimizer = built(scheme, dtype, device)
    before = copy.deepcopy(model.state_dict())
    for step in range(4):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        for name, layer in optimizer.quantized_layers().items():
            weight = model.get_submodule(name).weight
            assert weight.dtype == dtype
            assert torch.equal(weight, dequantize(layer.codes, layer.scale, layer.zero, dtype))
            assert int(layer.codes.max()) <= scheme.max_code
            assert torch.equal(layer.scale, snap_scale(layer.scale))
            assert layer.codes.dtype == layer.zero.dtype == torch.uint8
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == list(before)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_nothing_moves_before_the_first_step(scheme: Scheme) -> None:
    """With latents far outside their cells, too: they are clamped into them."""
    reference = toy()
    layers = quantized(reference, scheme)
    model = toy()
    latents = {name: torch.randn_like(layer.codes, dtype=torch.float32) for name, layer in layers.items()}
    model.load_state_dict(reference.state_dict())
    optimizer = QuantizedOptimizer(model, layers, lr=1e-3, latents=latents)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), reference.state_dict().values(), strict=True)
    )
    for name, layer in optimizer.quantized_layers().items():
        assert torch.equal(layer.codes, layers[name].codes)
        assert not torch.equal(optimizer.latents()[name], model.get_submodule(name).weight)


def test_a_rate_by_size_suits_large_weights_and_small_ones() -> None:
    """Of a model whose weights are eight times as large the same codes change."""
    found = []
    for factor in (1, 8):
        model = toy()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        optimizer = QuantizedOptimizer(model, quantized(model, Scheme.parse("w3g16")), lr=0.2, lr_in="size")
        before = optimizer.quantized_layers()
        for step in range(4):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(9 * step + number)
                )
            optimizer.step()
        after = optimizer.quantized_layers()
        assert any(not torch.equal(layer.codes, before[name].codes) for name, layer in after.items())
        found.append((optimizer.param_groups[0]["lr"], {name: layer.codes for name, layer in after.items()}))
    (small, codes), (large, others) = found
    assert large == pytest.approx(8 * small)
    assert all(torch.equal(own, others[name]) for name, own in codes.items())


def scales_alone(scheme: Scheme, inner: Any = torch.optim.AdamW) -> tuple[nn.Sequential, QuantizedOptimizer]:
    """A toy whose codes stay; learning rates of scales and, where they are free, zero points."""
    model = toy()
    layers = quantized(model, scheme)
    return model, QuantizedOptimizer(model, layers, inner=inner, lr=None, scale_lr=1e-2, zero_lr=1e-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme.parse("w2g16-seq")], ids=str)
def test_codes_that_are_not_trained_stay(scheme: Scheme, device: str) -> None:
    model, optimizer = scales_alone(scheme)
    model.to(device)
    optimizer = QuantizedOptimizer(model, optimizer.quantized_layers(), lr=None, scale_lr=1e-2, zero_lr=1e-1)
    before = optimizer.quantized_layers()
    for step in range(6):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    after = optimizer.quantized_layers()
    assert optimizer.latents() == {}
    for name, layer in after.items():
        assert torch.equal(layer.codes, before[name].codes)
        assert (layer.scale != before[name].scale).float().mean() > 0.5
        assert torch.equal(model.get_submodule(name).weight, decoded(layer, torch.float32))
    moments = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.dim())
    groups = sum(layer.scale.numel() for layer in after.values())
    assert moments <= 4 * groups  # two for scales, two for zero points, and none for weights


@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme.parse("w2g16-seq")], ids=str)
def test_a_scale_s_gradient_is_that_of_its_values_where_codes_stay(scheme: Scheme) -> None:
    """Against autograd through the decoded layer, in float64."""
    model, optimizer = scales_alone(scheme)
    backward(model, 0)
    for bucket in optimizer.buckets:
        grad = bucket.gradient()
        assert grad is not None
        scale, zero = bucket.scale(), bucket.snapped_zero()
        _, gs, gz = bucket.straight_through(grad, scale, zero)
        along = scale.double().requires_grad_()
        offset = zero.double().requires_grad_()
        unit = bucket.grid.decode(bucket.rows, torch.ones_like(scale), zero).double()  # codes minus zero point
        values = (unit + (zero.double() - offset)) * along
        (values * grad.double()).sum().backward()
        torch.testing.assert_close(gs.double(), along.grad, rtol=1e-4, atol=1e-5)
        if not bucket.grid.fixed_zero:
            torch.testing.assert_close(gz.double(), offset.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_scales_alone_resume_with_the_same_bits(inner: Any) -> None:
    scheme = Scheme.parse("w2g16")
    whole, unbroken = scales_alone(scheme, inner)
    for step in range(6):
        backward(whole, step)
        unbroken.step()
        unbroken.zero_grad()
    model, optimizer = scales_alone(scheme, inner)
    for step in range(6):
        if step == 3:
            saved = copy.deepcopy(optimizer.state_dict())
            assert all("latent" not in bucket and "codes" not in bucket for bucket in saved["buckets"])
            model, optimizer = scales_alone(scheme, inner)
            optimizer.load_state_dict(saved)
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_something_must_be_trained() -> None:
    model = toy()
    layers = quantized(model, Scheme.parse("w2g16-sym"))
    with pytest.raises(RqatError, match="nothing is trained"):
        QuantizedOptimizer(model, layers, lr=None)
    with pytest.raises(RqatError, match="no zero points to train"):
        QuantizedOptimizer(model, layers, lr=None, zero_lr=1e-2)


class FakeQuant(torch.autograd.Function):
    """Rounds in the forward pass, is the identity in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize("lr_in", ["weights", "codes"])
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if not s.symmetric], ids=str)
def test_equals_autograd_through_fake_quantization_in_float64(scheme: Scheme, lr_in: str) -> None:
    """Three SGD steps on (w, r, z) by hand, with the quantizer in the forward pass, give the same latents to 1e-12."""
    model, optimizer = built(
        scheme, torch.float64, inner=torch.optim.SGD, other_lr=None, lr=0.5, lr_in=lr_in, scale_lr=0.3, zero_lr=5.0
    )
    names = list(optimizer.quantized_layers())
    mine: dict[str, list[Tensor]] = {}
    for name, layer in optimizer.quantized_layers().items():
        mine[name] = [
            optimizer.latents()[name].clone(),
            torch.zeros_like(layer.scale, dtype=torch.float64),
            layer.zero.double(),
            layer.scale.double(),
        ]
    for step in range(3):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()

        leaves = {name: [t.clone().requires_grad_() for t in tensors[:3]] for name, tensors in mine.items()}
        weights = {}
        for name, (w, r, z) in leaves.items():
            exact = mine[name][3] * r.exp()
            s = exact + (snap_scale(exact).double() - exact).detach()
            groups = w.view(*s.shape, -1)
            codes = (FakeQuant.apply(groups / s[..., None]) + FakeQuant.apply(z)[..., None]).clamp(0, scheme.max_code)
            weights[f"{name}.weight"] = ((codes - FakeQuant.apply(z)[..., None]) * s[..., None]).view(w.shape)
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(8, 32, generator=generator).double() for _ in range(2))
        (torch.func.functional_call(model, weights, x) - y).square().mean().backward()
        with torch.no_grad():
            for name in names:
                for i, rate in enumerate((0.5, 0.3, 5.0)):
                    # The optimizer's d s / d r is the snapped scale, autograd's is the exact one.
                    gradient = leaves[name][i].grad
                    if i == 1:
                        exact = mine[name][3] * leaves[name][1].exp()
                        gradient = gradient / exact * snap_scale(exact).double()
                    if i == 0 and lr_in == "codes":
                        groups = gradient.view(*mine[name][3].shape, -1)
                        gradient = (groups * mine[name][3][..., None]).view(gradient.shape)
                    mine[name][i] = leaves[name][i].detach() - rate * gradient
                mine[name][2].clamp_(0, scheme.max_code)
        for name in names:
            torch.testing.assert_close(optimizer.latents()[name], mine[name][0], rtol=0, atol=1e-12)
        for bucket in optimizer.buckets:
            ratios = torch.cat([mine[name][1].reshape(-1, 1) for name in bucket.names])
            torch.testing.assert_close(bucket.ratio.detach(), ratios, rtol=0, atol=1e-12)
            zeros = torch.cat([mine[name][2].reshape(-1, 1) for name in bucket.names])
            torch.testing.assert_close(bucket.zero.detach(), zeros, rtol=0, atol=1e-12)


def test_gradients_may_be_accumulated_over_micro_batches() -> None:
    states = []
    for pieces in (1, 4):
        model, optimizer = built(SCHEMES[0], torch.float64)
        generator = torch.Generator().manual_seed(9)
        x, y = (torch.randn(8, 32, generator=generator).double() for _ in range(2))
        for part_x, part_y in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            ((model(part_x) - part_y).square().sum() / y.numel()).backward()
        optimizer.step()
        states.append(optimizer.latents())
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=1e-12)


def test_every_optimizer_of_torch_is_known_to_fit_or_not() -> None:
    found = {name for name, it in vars(torch.optim).items() if isinstance(it, type) and name != "Optimizer"}
    assert found == {*OPTIMIZERS, *UNSUITABLE}


class SGD(torch.optim.SGD):
    """With a momentum that must survive, too; treated by its name as torch's own."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, fused: bool | None = None) -> None:
        super().__init__(params, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=fused)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inner", [SGD if name == "SGD" else getattr(torch.optim, name) for name in OPTIMIZERS])
def test_resume_is_bit_equal(inner: type[torch.optim.Optimizer], device: str) -> None:
    scheme = SCHEMES[0]
    model, optimizer = built(scheme, device=device, inner=inner)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second_model, second = built(scheme, device=device, inner=inner)
    second.load_state_dict(torch.load(file, weights_only=True))
    for one, two in ((model, second_model),):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    for step in range(3, 6):
        for one, opt in ((model, optimizer), (second_model, second)):
            backward(one, step)
            opt.step()
            opt.zero_grad()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), second_model.state_dict().values(), strict=True)
    )
    for name, latent in optimizer.latents().items():
        assert torch.equal(latent, second.latents()[name])


def test_a_state_of_another_scheme_or_other_layers_is_refused() -> None:
    _, optimizer = built(SCHEMES[0])
    with pytest.raises(RunError, match="scheme"):
        built(SCHEMES[1])[1].load_state_dict(optimizer.state_dict())
    with pytest.raises(RunError, match="other parameters"):
        built(SCHEMES[0], other_lr=None)[1].load_state_dict(optimizer.state_dict())
    model = toy()
    layers = quantized(model, SCHEMES[0])
    layers.pop("0")
    with pytest.raises(RunError, match="layers"):
        QuantizedOptimizer(model, layers, lr=1e-3).load_state_dict(optimizer.state_dict())


def test_schedulers_scale_every_learning_rate_of_the_inner_optimizer() -> None:
    model, optimizer = built(SCHEMES[0], lr=1.0, scale_lr=0.1, zero_lr=0.01, other_lr=0.001)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(2):
        backward(model, step)
        optimizer.step()
        scheduler.step()
    rates = {group["name"]: group["lr"] for group in optimizer.inner.param_groups}
    assert rates == pytest.approx({"latents": 0.25, "scales": 0.025, "zeros": 0.0025, "others": 0.00025})
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == pytest.approx(0.125)


def test_what_is_not_trained_costs_no_gradient() -> None:
    model, optimizer = built(SCHEMES[0], scale_lr=None, zero_lr=None, other_lr=None)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"0.weight", "3.weight"}
    before = optimizer.quantized_layers()
    backward(model, 0)
    optimizer.step()
    for name, layer in optimizer.quantized_layers().items():
        assert torch.equal(layer.scale, before[name].scale)
        assert torch.equal(layer.zero, before[name].zero)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_what_is_not_quantized_is_held_in_float32_and_shown_in_bfloat16() -> None:
    model, optimizer = built(SCHEMES[0], other_lr=1e-5)
    backward(model, 0)
    optimizer.step()
    norm, master = model[1].weight, optimizer.masters["1.weight"]
    assert torch.equal(norm, norm.bfloat16().float())
    assert torch.equal(norm, master.bfloat16().float())
    assert not torch.equal(norm, master)


def test_converges_on_a_toy_problem() -> None:
    """Two-bit weights learn what a two-bit teacher knows; rounding alone does not."""
    scheme = Scheme.parse("w2g16")
    model, optimizer = built(scheme, lr=2e-3, scale_lr=2e-3, zero_lr=None, other_lr=1e-3)
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 32, bias=False))
    losses = []
    for _ in range(200):
        x = torch.randn(64, 32)
        loss = (model(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.35 * sum(losses[:10])


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_that_is_not_finite_names_the_step_and_the_layer(device: str) -> None:
    model, optimizer = built(SCHEMES[0], device=device)
    backward(model, 0)
    model[3].weight.grad[0, 0] = torch.nan
    latents = {name: latent.clone() for name, latent in optimizer.latents().items()}
    with pytest.raises(NumericsError, match=r"step 1.*'0', '3'"):
        optimizer.step()
    assert all(torch.equal(latents[name], latent) for name, latent in optimizer.latents().items())


def test_latents_in_16_bits_and_unsuitable_optimizers_are_refused() -> None:
    model = toy()
    layers = quantized(model, SCHEMES[0])
    half = {"0": model[0].weight.detach().bfloat16()}
    with pytest.raises(RqatError, match="latents of '0' are bfloat16"):
        QuantizedOptimizer(model, layers, lr=1e-3, latents=half)
    with pytest.raises(RqatError, match="'LBFGS' cannot"):
        QuantizedOptimizer(model, layers, lr=1e-3, inner=torch.optim.LBFGS)


def test_layers_that_do_not_fit_the_model_are_refused() -> None:
    model = toy()
    layers = quantized(model, SCHEMES[0])
    with pytest.raises(ModelError, match="'9' is not in the model"):
        QuantizedOptimizer(model, {"9": layers["0"]}, lr=1e-3)
    with pytest.raises(ModelError, match="do not fit"):
        QuantizedOptimizer(model, {"3": layers["0"]}, lr=1e-3)
    model[3].weight = nn.Parameter(torch.zeros(64, 32))
    model[0].weight = model[3].weight
    with pytest.raises(ModelError, match="shares its weight"):
        QuantizedOptimizer(model, {"0": layers["0"]}, lr=1e-3)


def test_layers_are_stacked_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for largest in (1 << 24, 1):
        monkeypatch.setattr("rqat.train.buckets.LARGEST", largest)
        model, optimizer = built(SCHEMES[0])
        assert len(optimizer.buckets) == (1 if largest > 1 else 2)
        for step in range(3):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
        results.append(optimizer.latents())
    for name, latent in results[0].items():
        assert torch.equal(latent, results[1][name])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="elsewhere there is only one way to step")
@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr_in", ["weights", "codes"])
def test_one_kernel_and_many_agree(
    inner: type[torch.optim.Optimizer], dtype: torch.dtype, lr_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps with the same gradients and a schedule; after the third, each resumes from the other's state."""
    made, states = {}, {}
    for way in ("triton", "torch"):
        made[way] = built(
            SCHEMES[0],
            dtype,
            "cuda",
            inner=inner,
            weight_decay=0.1,
            lr=1e-3,
            lr_in=lr_in,
            scale_lr=1e-3,
            zero_lr=1e-2,
        )
    schedules = {
        way: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        for way, (_, optimizer) in made.items()
    }
    for step in range(5):
        for way, (model, optimizer) in made.items():
            monkeypatch.setenv("RQAT_KERNELS", way)
            if step == 3:
                optimizer.load_state_dict(states["torch" if way == "triton" else "triton"])
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
            assert optimizer._fused.taken(optimizer.buckets) == (optimizer.buckets if way == "triton" else [])
            optimizer.step()
            schedules[way].step()
        states = {way: copy.deepcopy(optimizer.state_dict()) for way, (_, optimizer) in made.items()}
    one, other = (made[way][1] for way in ("triton", "torch"))
    for name, latent in one.latents().items():
        # A latent within a millionth of the grid's border may be inside it in one and outside in the other.
        close = torch.isclose(latent, other.latents()[name], rtol=1e-5, atol=1e-6)
        assert close.float().mean() > 0.995
    for bucket, twin in zip(one.buckets, other.buckets, strict=True):
        torch.testing.assert_close(bucket.ratio, twin.ratio, rtol=1e-3, atol=1e-5)
        assert float(one.inner.state[bucket.zero]["step"]) == float(other.inner.state[twin.zero]["step"]) == 5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs both devices")
def test_a_state_from_one_device_goes_on_on_another() -> None:
    results = []
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        optimizers = {device: built(SCHEMES[0], device=device, lr=1e-3)[1] for device in (first, second)}
        for device in (first, second):
            optimizer = optimizers[device]
            for step in range(2):
                generator = torch.Generator().manual_seed(step)
                for weight in (weight for bucket in optimizer.buckets for weight in bucket.weights):
                    weight.grad = torch.randn(weight.shape, generator=generator).to(weight)
                optimizer.step()
            if device == first:
                optimizers[second].load_state_dict(optimizer.state_dict())
        results.append({name: latent.cpu() for name, latent in optimizers[second].latents().items()})
        assert all(float(optimizers[second].inner.state[bucket.latent]["step"]) == 4 for bucket in optimizer.buckets)
    for name, latent in results[0].items():
        assert torch.isclose(latent, results[1][name], rtol=1e-5, atol=1e-6).float().mean() > 0.995
