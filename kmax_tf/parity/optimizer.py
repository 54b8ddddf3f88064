"""Golden cases of the optimizer: steps of AdamW on two groups of variables, learning rates."""

import types

import numpy as np
import tensorflow as tf

from kmax_tf.parity.cases import Case, Comparison
from kmax_tf.training.optimizer import AdamW, WarmupPolynomial

TOLERANCE = 2e-6  # of values, absolute
LAST = 10  # steps before the end, where 1 - step / steps is rounded


def compare(case: Case, comparison: Comparison) -> None:
    """Compares every array of an optimizer's case."""
    facts = case.facts
    described = facts["variables"]
    variables = [
        tf.Variable(case[f"{v['index']}/initial"], name=v["name"].removesuffix(":0"))
        for v in described
    ]
    encoder = [v for v, d in zip(variables, described) if d["group"] == "encoder"]
    model = types.SimpleNamespace(
        trainable_variables=variables,
        pixel_encoder=types.SimpleNamespace(trainable_variables=encoder),
    )
    optimizer = AdamW(
        facts["total_steps"],
        learning_rate=facts["base_rate"],
        warmup_steps=facts["warmup"],
        weight_decay=facts["weight_decay"],
    )
    optimizer.build_for(model)
    gradients = [case[f"{v['index']}/gradients"] for v in described]
    rates = []
    for step in range(facts["steps"]):
        optimizer.apply([tf.constant(g[step]) for g in gradients], tf.constant(True))
        used = optimizer._rates
        rates.append([float(used[m]) for m in (1.0, optimizer.encoder_multiplier)])
        for i, variable in enumerate(variables):
            stored = case[f"{described[i]['index']}/values"][step]
            comparison.add(f"{described[i]['index']}/values", variable, stored, TOLERANCE)
    stored = case["rates_main_and_backbone"]
    comparison.add("rates_main_and_backbone", rates, stored, 1e-6 * np.abs(stored))
    moments = {variable.name: variable for variable in optimizer.variables}
    for d, variable in zip(described, variables):
        for moment in ("m", "v"):
            name = f"{d['index']}/{moment}_last"
            comparison.add(name, _moment(moments, variable, moment), case[name], TOLERANCE)

    for name, schedule in facts["schedules"].items():
        stored = case[f"schedule/{name}"]
        steps = np.array(schedule["steps"])
        ours = WarmupPolynomial(schedule["base_rate"], schedule["warmup"], schedule["total_steps"])
        rate = np.array([float(ours(step)) for step in steps])
        ours = np.stack([rate, rate * schedule["backbone_multiplier"]], axis=1)
        left = schedule["total_steps"] - steps[:, None]
        relative = np.where(left <= 0, 0.0, np.where(left <= LAST, 2e-3, 1e-6))
        comparison.add(f"schedule/{name}", ours, stored, relative * np.abs(stored))


def _moment(moments, variable, moment):
    (found,) = (
        v
        for name, v in moments.items()
        if name.split(":")[0].endswith(f"{moment}/{variable.name.split(':')[0]}")
    )
    return found
