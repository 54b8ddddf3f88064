"""The names and layout of the PyTorch port hold the same weights as the official checkpoint."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.experiment import Experiment
from kmax_tf.importers import importer
from kmax_tf.importers.variables import variables
from kmax_tf.parity import cases
from kmax_tf.parity import model as parity_model

# Official names of modules -> the port's, each rule on its own.
MODULES = [
    (r"^encoder/_stem", "backbone.stem.conv1"),
    (r"^encoder/_stage(\d)/_block(\d+)/_conv(\d)_bn(_act)?", r"backbone.res\1.<\2>.conv\3"),
    (r"^encoder/_stage(\d)/_block(\d+)/_shortcut", r"backbone.res\1.<\2>.shortcut"),
    (r"^encoder/(downsample_layers/\d)/layer_with_weights-(\d)", r"backbone.\1.\2"),
    (r"^encoder/(stages/\d)/layer_with_weights-(\d+)", r"backbone.\1.\2"),
    (r"/depthwise_conv/", "/dwconv/"),
    (r"/pointwise_conv", "/pwconv"),
    (r"^pixel_decoder/_backbone_norms", "sem_seg_head.pixel_decoder._in_norms"),
    (r"^pixel_decoder/_skip_connections", "sem_seg_head.pixel_decoder._resized_fuses"),
    (r"/_resized_conv_bn1", "._conv_bn_low"),
    (r"/_resized_conv_bn2", "._conv_bn_high"),
    (
        r"^pixel_decoder/_stages/(\d)/_block(\d)",
        r"sem_seg_head.pixel_decoder._stages.\1._blocks.<\2>",
    ),
    (r"_rpe/embeddings", "_rpe/_embeddings.weight"),
    (r"_axis/qkv_kernel", "_axis/qkv_transform.conv.weight"),
    (r"^transformer_decoder/cluster_centers", "sem_seg_head.predictor._cluster_centers.weight"),
    (r"^transformer_decoder/_(class|mask)_emb", r"sem_seg_head.predictor._\1_emb"),
    (
        r"^transformer_decoder/_kmax_decoder/(\d)/_block1_transformer",
        r"sem_seg_head.predictor._kmax_transformer_layers.\1",
    ),
    (r"_auxiliary_clustering_predictor/_", "_predcitor/"),
    (
        r"^(pixel_space|transformer_mask|transformer_class)_",
        r"sem_seg_head.predictor._predcitor/\1_",
    ),
    (
        r"_predcitor/pixel_space_head/conv_block/_conv1_bn_act/_depthwise",
        "_predcitor._pixel_space_head_conv0bnact",
    ),
    (
        r"_predcitor/pixel_space_head/conv_block/_conv1_bn_act/_pointwise",
        "_predcitor._pixel_space_head_conv1bnact",
    ),
    (r"_predcitor/pixel_space_head/final_conv", "_predcitor._pixel_space_head_last_convbn.conv"),
    (r"_predcitor/pixel_space_feature_batch_norm", "_predcitor._pixel_space_head_last_convbn.norm"),
    (r"_predcitor/", "_predcitor._"),
    (r"_memory_attention", "_query_self_attention"),
    (r"_memory_", "_query_"),
    (r"^semantic_decoder/_aspp/_conv_bn_act", "SEMANTIC._aspp._aspp_conv0"),
    (r"^semantic_decoder/_aspp/_proj_conv_bn_act", "SEMANTIC._aspp._proj_conv_bn_act"),
    (r"^semantic_decoder/_aspp/(\w+)/_conv_bn_act", r"SEMANTIC._aspp.\1"),
    (r"^semantic_decoder/_low_level_conv1", "SEMANTIC._low_level_projection_os8"),
    (r"^semantic_decoder/_low_level_conv2", "SEMANTIC._low_level_projection_os4"),
    (r"^semantic_decoder/_fusion_conv1/_conv1_bn_act", "SEMANTIC._low_level_fusion_os8"),
    (r"^semantic_decoder/_fusion_conv2/_conv1_bn_act", "SEMANTIC._low_level_fusion_os4"),
    (r"(_os\d)/_depthwise", r"\1_conv0_bn_act"),
    (r"(_os\d)/_pointwise", r"\1_conv1_bn_act"),
    (r"^semantic_head_without_last_layer/_conv1_bn_act/_depthwise", "SEMANTIC.conv_block_0"),
    (r"^semantic_head_without_last_layer/_conv1_bn_act/_pointwise", "SEMANTIC.conv_block_1"),
    (r"^semantic_last_layer", "SEMANTIC.final_conv.conv"),
    (r"^SEMANTIC", "sem_seg_head.predictor._auxiliary_semantic_predictor"),
    (r"/layer_scale$", "/gamma_"),
    (r"^(backbone\.(stem|res).*)/_conv/", r"\1/"),  # a convolution of detectron2 owns its norm
    (r"/_(depthwise_)?conv/", ".conv."),
    (r"/_batch_norm/", ".norm."),
    (r"[/.](depthwise_)?kernel$", ".weight"),
    (r"[/.]gamma$", ".weight"),
    (r"[/.]beta$", ".bias"),
    (r"/moving_mean$", ".running_mean"),
    (r"/moving_variance$", ".running_var"),
    (r"gamma_$", "gamma"),
    (r"/", "."),
]


def port_entry(key, value):
    """Name and value in the port of an official variable."""
    leaf, name = key.rsplit("/", 1)[-1], key
    for pattern, replacement in MODULES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"<(\d+)>", lambda found: str(int(found[1]) - 1), name)  # blocks count from 0
    if leaf == "depthwise_kernel":
        value = value.transpose(2, 3, 0, 1)
    elif leaf == "qkv_kernel":
        value = value.T[:, :, None]
    elif leaf == "cluster_centers":
        value = value[0].T
    elif re.search(r"_pixel_(conv1_bn_act|v_conv_bn)/_conv", key):  # over pixels in 2-D there
        value = value.transpose(2, 1, 0)[..., None]
    elif leaf == "kernel":
        order = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}[value.ndim]
        value = value.transpose(order)
    elif leaf != "embeddings":
        value = value.reshape(-1)
    return name, value


def without_semantic_decoder(name, value, dataset):
    """What the port does else where, as on Cityscapes, classes and ids are ordered differently."""
    name = re.sub(r"(_semantic_predictor)\.conv_block_(\d)", r"\1.\2", name)
    name = re.sub(r"(_semantic_predictor)\.final_conv", r"\1.2", name)
    if "_transformer_class_head" in name:
        by_id = np.argsort([category.id for category in dataset.categories])
        value = value[[*by_id, len(by_id)]]
    return name, value


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["coco_r50", "coco_convnext_tiny", "cityscapes_r50"])
def test_same_weights(shared, variant):
    folder = shared / "golden"
    rule = cases.Case(str(folder), "model", variant).rule()
    keys = json.loads((folder / "checkpoint_keys" / f"{variant}.json").read_text())
    official = {e["key"]: rule.weight(e["key"], e["shape"], 1) for e in keys}
    experiment = config.load(Experiment, parity_model.gin_file(variant))
    dataset = experiment.dataset
    port = [port_entry(rule.strip(key), value) for key, value in official.items()]
    if variant.startswith("cityscapes"):
        port = [without_semantic_decoder(*entry, dataset) for entry in port]
    port += [
        (name.replace("running_var", "num_batches_tracked"), np.array(1))
        for name, _ in port
        if name.endswith(".running_var")
    ]
    names = {name for name, _ in port}
    assert "backbone.res5.2.conv3.norm.weight" in names or "convnext" in variant
    assert "sem_seg_head.predictor._kmax_transformer_layers.5._query_qkv_conv_bn.norm.bias" in names

    model = experiment.model(dataset.num_classes).create_variables(65, 97)
    importer.import_weights(model, "deeplab2", official, dataset)
    expected = {path: v.numpy() for path, v in variables(model).items()}
    for v in model.variables:
        v.assign(tf.zeros_like(v))
    importer.import_weights(model, "pytorch", dict(port), dataset)
    for path, v in variables(model).items():
        np.testing.assert_array_equal(v.numpy(), expected[path], path)
