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
    _compare_steps(case, comparison)
    for name, schedule in case.facts["schedules"].items():
        stored = case[f"schedule/{name}"]
        steps = np.array(schedule["steps"])
        ours = WarmupPolynomial(schedule["base_rate"], schedule["warmup"], schedule["total_steps"])
        rate = np.array([float(ours(step)) for step in steps])
        rates = np.stack([rate, rate * schedule["backbone_multiplier"]], axis=1)
        left = schedule["total_steps"] - steps[:, None]
        relative = np.where(left <= 0, 0.0, np.where(left <= LAST, 2e-3, 1e-6))
        comparison.add(f"schedule/{name}", rates, stored, relative * np.abs(stored))


def _compare_steps(case, comparison):
    """Compares the variables after each step, and the moments after the last one."""
    facts = case.facts
    described = {str(v["index"]): v for v in facts["variables"]}
    variables = {
        i: tf.Variable(case[f"{i}/initial"], name=v["name"].removesuffix(":0"))
        for i, v in described.items()
    }
    encoder = [variables[i] for i, v in described.items() if v["group"] == "encoder"]
    optimizer = AdamW(
        facts["total_steps"],
        learning_rate=facts["base_rate"],
        warmup_steps=facts["warmup"],
        weight_decay=facts["weight_decay"],
    )
    optimizer.build_for(
        types.SimpleNamespace(
            trainable_variables=[*variables.values()],
            pixel_encoder=types.SimpleNamespace(trainable_variables=encoder),
        )
    )
    rates = []
    for step in range(facts["steps"]):
        gradients = [tf.constant(case[f"{i}/gradients"][step]) for i in variables]
        optimizer.apply(gradients, tf.constant(True))
        rates.append([float(optimizer._rates[m]) for m in (1.0, optimizer.encoder_multiplier)])
        for i, variable in variables.items():
            comparison.add(f"{i}/values", variable, case[f"{i}/values"][step], TOLERANCE)
    stored = case["rates_main_and_backbone"]
    comparison.add("rates_main_and_backbone", rates, stored, 1e-6 * np.abs(stored))
    for i, first, second in zip(variables, optimizer._first, optimizer._second, strict=True):
        comparison.add(f"{i}/m_last", first, case[f"{i}/m_last"], TOLERANCE)
        comparison.add(f"{i}/v_last", second, case[f"{i}/v_last"], TOLERANCE)
