"""Terms about models: training, registration of models, deletion of models.

The order mining > training > generative training follows the ODRL community's draft AI vocabulary.
"""

from __future__ import annotations

from policies.vocabulary.terms import (
    ANY,
    DUTY,
    EQ,
    Action,
    Operand,
    Phase,
    Tier,
    ValueType,
    ds,
    odrl,
)

OPERANDS: tuple[Operand, ...] = (
    Operand(
        name=ds("modelRegistry"),
        type=ValueType.IRI,
        ops=frozenset({EQ, ANY}),
        phase=Phase.AFTER,
        tier=Tier.CONTRACTUAL,
        fact="ds:modelRegistry",
        enforced_by="ledger",
        where=frozenset({DUTY}),
        help="The registry in which derived models are entered, with agreement ids and dataset digests.",
        sentence="in the registry {value}",
    ),
)

ACTIONS: tuple[Action, ...] = (
    Action(
        name=ds("mining"),
        parent=odrl("use"),
        help="Automated analysis of the data to find patterns (text and data mining).",
        phrase="mine the data",
    ),
    Action(
        name=ds("train"),
        parent=ds("mining"),
        help="Train a model on the data.",
        phrase="train models on the data",
    ),
    Action(
        name=ds("trainGenerative"),
        parent=ds("train"),
        help="Train a generative model on the data.",
        phrase="train generative models on the data",
    ),
    Action(
        name=ds("modelInput"),
        parent=odrl("use"),
        help="Feed the data to a model that exists already.",
        phrase="use the data as input of a model",
    ),
    Action(
        name=ds("releaseWeights"),
        parent=odrl("use"),
        help="Publish the weights of a model trained on the data.",
        phrase="release weights of models trained on the data",
    ),
    Action(
        name=ds("registerModel"),
        parent=odrl("use"),
        help="Enter each derived model in a register, with agreement ids and dataset digests.",
        phrase="register every model trained on the data",
        enforced_by="ledger",
        duty=True,
        use=False,
    ),
    Action(
        name=ds("deleteModel"),
        parent=odrl("use"),
        help="Delete the derived models.",
        phrase="delete every model trained on the data",
        enforced_by="ledger",
        duty=True,
        use=False,
    ),
)
