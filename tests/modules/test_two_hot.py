from __future__ import annotations

import pytest
import torch

from torchrl_pwm import TwoHotCodec
from torchrl_pwm.modules import symexp, symlog

FORWARD = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 2e-4}


@pytest.fixture
def math(golden):
    return golden("math")


@pytest.fixture
def codec(math):
    config = math["config"]
    return TwoHotCodec(config["num_bins"], config["vmin"], config["vmax"])


def test_symlog_and_symexp_match_the_reference(math):
    torch.testing.assert_close(symlog(math["inputs"]["x"]), math["outputs"]["symlog"], **FORWARD)
    torch.testing.assert_close(symexp(math["inputs"]["y"]), math["outputs"]["symexp"], **FORWARD)


def test_bins_match_the_reference_and_are_even_in_symlog_space(math, codec):
    torch.testing.assert_close(codec.bins, math["outputs"]["bins"], **FORWARD)
    torch.testing.assert_close(symexp(codec.bins), math["outputs"]["bin_centres"], **FORWARD)
    torch.testing.assert_close(codec.bins.diff(), torch.full((100,), math["config"]["bin_size"]), **FORWARD)


def test_two_hot_codes_match_the_reference(math, codec):
    torch.testing.assert_close(codec.encode(math["inputs"]["labels"]), math["outputs"]["two_hot"], **FORWARD)


def test_decoding_matches_the_reference_in_both_spaces(math, codec):
    logits, out = math["inputs"]["logits"], math["outputs"]
    torch.testing.assert_close(codec.decode(logits), out["two_hot_inv"], **FORWARD)
    torch.testing.assert_close(codec.decode(logits, "raw"), out["two_hot_inv"], **FORWARD)
    torch.testing.assert_close(codec.decode(logits, "symlog"), out["two_hot_inv_symlog_space"], **FORWARD)


def test_decoding_a_code_gives_back_the_label_clipped_to_the_range(math, codec):
    roundtrip = codec.decode((codec.encode(math["inputs"]["labels"]) + 1e-12).log())
    torch.testing.assert_close(roundtrip, math["outputs"]["roundtrip"], **FORWARD)


def test_cross_entropy_and_its_gradient_match_the_reference(math, codec):
    logits = math["inputs"]["ce_logits"].requires_grad_()
    loss = codec.cross_entropy(logits, math["inputs"]["labels"])
    torch.testing.assert_close(loss, math["outputs"]["soft_ce"], **FORWARD)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient[:12], math["outputs"]["soft_ce_grad_first12"], **GRADIENT)


def test_gradient_of_decoding_matches_the_reference(math, codec):
    logits = math["inputs"]["logits"].requires_grad_()
    (gradient,) = torch.autograd.grad(codec.decode(logits).sum(), logits)
    torch.testing.assert_close(gradient[:12], math["outputs"]["two_hot_inv_grad_first12"], **GRADIENT)


def test_without_bins_values_pass_through(math):
    codec, labels, y = TwoHotCodec(0), math["inputs"]["labels"], math["inputs"]["y"][:, None]
    torch.testing.assert_close(codec.encode(labels), math["outputs"]["two_hot_bins0"], **FORWARD)
    for space in ("raw", "symlog"):
        torch.testing.assert_close(codec.decode(y, space), math["outputs"]["two_hot_inv_bins0"], **FORWARD)
    torch.testing.assert_close(codec.cross_entropy(y + 2, y), torch.full_like(y, 4.0))


def test_one_bin_regresses_symlog(math):
    codec, labels, y = TwoHotCodec(1), math["inputs"]["labels"], math["inputs"]["y"][:, None]
    torch.testing.assert_close(codec.encode(labels), math["outputs"]["two_hot_bins1"], **FORWARD)
    torch.testing.assert_close(codec.decode(y), math["outputs"]["two_hot_inv_bins1"], **FORWARD)
    torch.testing.assert_close(codec.decode(y, "symlog"), y)
    torch.testing.assert_close(codec.cross_entropy(y, labels[: len(y)]), (y - symlog(labels[: len(y)])).square())


@pytest.mark.parametrize("shape", [(1,), (4, 1), (2, 3, 1)])
@pytest.mark.parametrize("num_bins", [2, 21])
def test_codes_are_distributions_of_any_batch_shape(shape, num_bins):
    code = TwoHotCodec(num_bins, -3.0, 5.0).encode(20 * torch.randn(shape))
    assert code.shape == (*shape[:-1], num_bins)
    assert code.ge(0).all()
    torch.testing.assert_close(code.sum(-1), torch.ones(shape[:-1]))


def test_the_range_is_asymmetric_if_asked_for():
    codec = TwoHotCodec(5, -1.0, 3.0)
    assert codec.bins.tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert codec.encode(symexp(torch.tensor([99.0]))).argmax() == 4
    assert codec.encode(symexp(torch.tensor([-99.0]))).argmax() == 0


def test_two_codecs_with_different_ranges_do_not_share_bins():
    narrow, wide = TwoHotCodec(11, -1.0, 1.0), TwoHotCodec(11, -10.0, 10.0)
    logits = torch.randn(4, 11)
    torch.testing.assert_close(wide.decode(logits, "symlog"), 10 * narrow.decode(logits, "symlog"))


def test_bins_follow_the_module_and_stay_out_of_the_state_dict():
    codec = TwoHotCodec(5).to(torch.float64)
    assert codec.bins.dtype == torch.float64
    assert not codec.state_dict()


@pytest.mark.parametrize("arguments", [(-1,), (5, 1.0, 1.0), (5, 2.0, -2.0)])
def test_an_impossible_codec_is_refused(arguments):
    with pytest.raises(ValueError, match="num_bins >= 0 and vmin < vmax"):
        TwoHotCodec(*arguments)


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match='"raw" or "symlog", found \'log\''):
        TwoHotCodec(5).decode(torch.zeros(1, 5), "log")
