"""Names and layouts of torchvision's weights; test_resnet.py compares the outputs."""

import keras
import numpy as np
import pytest

from tfsimclr.networks import resnet, torchvision_names

# Tensors in the state dict of torchvision's networks, without those of `fc` and the
# counters of the batch norms: 5 for each convolution with its batch norm.
TENSORS = {18: 100, 34: 180, 50: 265, 101: 520, 152: 775}


def without_values(**arguments):
    with keras.StatelessScope(initialize_variables=False):
        return resnet.resnet(**arguments)


@pytest.mark.quick
@pytest.mark.parametrize(
    "path,name",
    [
        ("stem_conv/kernel", "conv1.weight"),
        ("stem_bn/moving_variance", "bn1.running_var"),
        ("stage1_block2_3_conv/kernel", "layer1.1.conv3.weight"),
        ("stage3_block23_2_bn/gamma", "layer3.22.bn2.weight"),
        ("stage4_block1_shortcut_conv/kernel", "layer4.0.downsample.0.weight"),
        ("stage4_block1_shortcut_bn/beta", "layer4.0.downsample.1.bias"),
        ("stage1_block1_1_mix_conv/kernel", "layer1.0.conv1_mix.weight"),
    ],
)
def test_names(path, name):
    assert torchvision_names.torchvision_name(path) == name


@pytest.mark.parametrize("depth", TENSORS)
def test_every_variable_has_a_name_of_its_own(depth):
    model = without_values(depth=depth)
    names = torchvision_names.variables_by_name(model)
    assert len(names) == len(model.variables) == TENSORS[depth]


@pytest.mark.parametrize("stem", resnet.STEMS)
def test_selective_kernels_have_names_too(stem):
    model = without_values(depth=50, selective_kernel=True, stem=stem)
    names = torchvision_names.variables_by_name(model)
    assert len(names) == len(model.variables)


@pytest.mark.quick
def test_layouts_are_each_others_inverse():
    kernel = np.arange(2 * 3 * 4 * 5, dtype="float32").reshape(2, 3, 4, 5)
    there = torchvision_names.to_torch(kernel)
    assert there.shape == (5, 4, 2, 3)
    assert there[4, 3, 1, 2] == kernel[1, 2, 3, 4]
    np.testing.assert_array_equal(torchvision_names.from_torch(there), kernel)
    vector = np.arange(3.0)
    np.testing.assert_array_equal(torchvision_names.to_torch(vector), vector)


@pytest.mark.quick
def test_tensors_without_counterpart():
    for name in ("fc.weight", "fc.bias", "layer1.0.bn1.num_batches_tracked"):
        assert torchvision_names.is_without_counterpart(name)
    assert not torchvision_names.is_without_counterpart("layer1.0.bn1.weight")
