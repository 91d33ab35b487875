"""Keys of config.json and rows of tensors of models with mixtures of experts."""

from transformer_zoo.published import rows
from transformer_zoo.published.spec import Key


def config(count: Key, chosen: int) -> dict[str, Key]:
    """The keys that they have.

    Args:
        count: the key of the number of experts.
        chosen: the number of a token's experts in a config.json without it.
    """
    return {
        "num_experts": count,
        "num_chosen": Key("num_experts_per_tok", chosen),
        "balance_weight": Key("router_aux_loss_coef", 0.001),
    }


def body(mixture: str, names: str) -> rows.Rows:
    """The rows of a mixture whose files hold each expert apart: `*` of the layer, and `*` of the expert.

    Args:
        mixture: the name of the mixture of a layer, such as "layers.*.mlp".
        names: those of the gate, up and down projections below an expert, such as "w1 w3 w2".
    """
    gate, up, down = (f"{mixture}.experts.*.{name}" for name in names.split())
    return (
        *rows.dense(f"{mixture}.gate", "blocks/experts/router"),
        *rows.dense(gate, "blocks/experts/gate"),
        *rows.dense(up, "blocks/experts/up"),
        *rows.dense(down, "blocks/experts/down"),
    )
